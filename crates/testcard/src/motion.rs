//! What moves on a test card: a beam of light that crosses, and two discs on an orbit.
//!
//! Their paths and colours are drawn from the seed. All movement ends where it began, so that a
//! player may loop the video.

use std::f32::consts::TAU;

use rayreel_domain::wire::engine::EngineRequest;

use crate::canvas::{Canvas, Color, INK, Rect, WHITE, length, mix};

/// One round of all movement takes about this many seconds.
const ROUND_SECONDS: f32 = 5.0;

/// How many fading copies of a disc follow it, itself included.
const ECHOES: u32 = 9;

/// What moves, and how: all of it follows from the seed.
pub(crate) struct Motion {
    /// Nothing is drawn outside.
    stage: Rect,
    center: (f32, f32),
    reach: (f32, f32),
    /// How often a disc swings from side to side and up and down in one round.
    swings: (f32, f32),
    phase: f32,
    radius: f32,
    colors: [Color; 2],
    /// How far the beam leans; its sign is the way that it goes, too.
    slope: f32,
    /// Rounds in the whole video.
    rounds: f32,
}

impl Motion {
    pub(crate) fn new(request: &EngineRequest, stage: Rect) -> Motion {
        let mut dice = Dice(request.seed);
        let (x, y) = stage.center();
        let center = (x as f32, y as f32);
        let radius = center.0.min(center.1) * (0.28 + 0.12 * dice.roll());
        let paths = [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0), (1.0, 3.0), (3.0, 2.0)];
        let hue = dice.roll();
        let swings = paths[(dice.roll() * paths.len() as f32) as usize % paths.len()];
        let side = |roll: f32| if roll < 0.5 { -1.0 } else { 1.0 };
        let slope = side(dice.roll()) * (0.5 + 0.5 * dice.roll());
        let seconds = request.frames as f32 / request.fps as f32;
        Motion {
            stage,
            center,
            reach: (center.0 - radius * 1.3, center.1 - radius * 1.15),
            swings: (swings.0 * side(dice.roll()), swings.1),
            phase: dice.roll(),
            radius,
            colors: [from_hue(hue), from_hue(hue + 0.5)],
            slope,
            rounds: (seconds / ROUND_SECONDS).round().max(1.0),
        }
    }

    /// The colour that stands for the seed.
    pub(crate) fn color(&self) -> Color {
        self.colors[0]
    }

    /// Draws the moment `at`, from 0 at the first frame to 1 at the end of the last.
    pub(crate) fn draw(&self, canvas: &mut Canvas, at: f32) {
        let round = (at * self.rounds).fract();
        let (stage, half) = (self.stage, self.stage.width as f32 * 0.12);
        // From where it is just out of sight on one side to the same on the other.
        let lean = stage.height as f32 * self.slope;
        let (start, end) = (-half - lean.max(0.0), stage.width as f32 + half - lean.min(0.0));
        let way = if self.slope < 0.0 { round } else { 1.0 - round };
        canvas.beam(stage, start + (end - start) * way, self.slope, half, WHITE);

        // The echoes overlap wherever the disc is fastest.
        let (vx, vy) = (self.reach.0 * self.swings.0, self.reach.1 * self.swings.1);
        let spacing = self.radius * 0.22 / (TAU * length(vx, vy));
        for (i, color) in self.colors.into_iter().enumerate().rev() {
            let moment = round + i as f32 * 0.5;
            let radius = self.radius * (1.0 - i as f32 * 0.35);
            for echo in (1..ECHOES).rev() {
                let faded = 1.0 - echo as f32 / ECHOES as f32;
                let center = self.position(moment - echo as f32 * spacing);
                let radius = radius * (0.55 + 0.45 * faded);
                canvas.around(center, radius, self.stage, |dx, dy| {
                    (color, coverage(radius, dx, dy) * 0.4 * faded)
                });
            }
            self.disc(canvas, self.position(moment), radius, color);
        }
    }

    fn position(&self, round: f32) -> (f32, f32) {
        let swing = |times: f32, phase: f32| (TAU * (times * round + phase)).sin();
        let x = self.center.0 + self.reach.0 * swing(self.swings.0, self.phase);
        let y = self.center.1 + self.reach.1 * swing(self.swings.1, self.phase + 0.25);
        (x, y)
    }

    /// A disc lit from the upper left.
    fn disc(&self, canvas: &mut Canvas, center: (f32, f32), radius: f32, color: Color) {
        let (bright, dark) = (mix(color, WHITE, 190), mix(color, INK, 120));
        canvas.around(center, radius, self.stage, |dx, dy| {
            let lit = length(dx + radius * 0.35, dy + radius * 0.4) / (radius * 1.5);
            let shade = match lit {
                lit if lit < 0.4 => mix(bright, color, (lit / 0.4 * 255.0) as u8),
                lit => mix(color, dark, ((lit - 0.4) / 0.6 * 255.0).min(255.0) as u8),
            };
            (shade, coverage(radius, dx, dy))
        });
    }
}

/// How much of the pixel at this offset from its centre a disc covers.
fn coverage(radius: f32, dx: f32, dy: f32) -> f32 {
    (radius - length(dx, dy) + 0.5).clamp(0.0, 1.0)
}

/// The seed's dice: SplitMix64, which makes neighbouring seeds look unrelated.
struct Dice(u64);

impl Dice {
    /// From 0 up to 1.
    fn roll(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }
}

/// A strong colour of this hue, of which 1 is the full circle.
fn from_hue(hue: f32) -> Color {
    let part = |shift: f32| {
        let distance = ((hue + shift).rem_euclid(1.0) * 6.0 - 3.0).abs() - 1.0;
        (40.0 + 205.0 * distance.clamp(0.0, 1.0)) as u8
    };
    Color { r: part(0.0), g: part(2.0 / 3.0), b: part(1.0 / 3.0) }
}

#[cfg(test)]
mod tests {
    use rayreel_domain::wire::engine::Format;

    use super::*;

    fn motion(seed: u64, stage: Rect) -> Motion {
        let request = EngineRequest {
            prompt: String::new(),
            negative_prompt: String::new(),
            width: 832,
            height: 480,
            frames: 321,
            fps: 16,
            steps: 20,
            guidance: None,
            guidance_2: None,
            seed,
            format: Format::Mp4,
            image: None,
            last_image: None,
            loras: Vec::new(),
        };
        Motion::new(&request, stage)
    }

    #[test]
    fn the_end_of_the_movement_is_its_beginning() {
        for seed in 0..20 {
            let motion = motion(seed, Rect::new(0, 0, 832, 240));
            let drawn = |at| {
                let mut canvas = Canvas::new(832, 240);
                motion.draw(&mut canvas, at);
                canvas
            };
            assert!(drawn(0.0) == drawn(1.0));
            assert!(drawn(0.0) != drawn(0.3));
        }
    }

    #[test]
    fn the_discs_stay_on_the_stage() {
        for seed in 0..200 {
            let motion = motion(seed, Rect::new(0, 0, 832, 250));
            for step in 0..100 {
                let (x, y) = motion.position(step as f32 / 100.0);
                let r = motion.radius;
                assert!(x - r >= 0.0 && x + r <= 832.0 && y - r >= 0.0 && y + r <= 250.0);
            }
        }
    }
}
