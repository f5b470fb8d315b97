//! What a test card looks like.
//!
//! The upper part is the picture: colour bars, or the request's image, and over it what moves. In
//! its middle stands the label that says what this is. The lower part holds the prompt, the frame
//! counter and the request's figures. What there is no room for is left out, the label never.

use rayreel_domain::wire::engine::{EngineRequest, Format};

use crate::canvas::{Canvas, Color, INK, Rect, WHITE, length, rgb};
use crate::font::{self, Font};
use crate::motion::Motion;
use crate::still;

/// From the fullest wording to the shortest.
const LABELS: [&str; 3] = ["TEST PATTERN - NO MODEL", "TEST PATTERN", "TEST"];

const PAPER: Color = rgb(0xf0_f3_f6);
const MUTED: Color = rgb(0xad_b7_c2);
const AMBER: Color = rgb(0xff_c1_4d);

/// The bars of 75 % intensity, in the order of falling brightness, and the strip below them.
const BARS: [u32; 7] = [0xbfbfbf, 0xbfbf00, 0x00bfbf, 0x00bf00, 0xbf00bf, 0xbf0000, 0x0000bf];
const STRIP: [u32; 7] = [0x0000bf, 0x131313, 0xbf00bf, 0x131313, 0x00bfbf, 0x131313, 0xbfbfbf];

/// One request's card: what stays the same is drawn once, [`Card::paint`] adds what moves.
pub(crate) struct Card {
    font: Font,
    /// Everything that doesn't move; what moves is drawn over it.
    backdrop: Canvas,
    /// What it has become in the last frame.
    last: Option<Canvas>,
    label: Label,
    counter: Option<Counter>,
    /// The track along the lower edge on which the frames pass.
    progress: Rect,
    motion: Motion,
    frames: u32,
    fps: u32,
}

/// What says that this is a test pattern.
struct Label {
    area: Rect,
    text: &'static str,
    scale: i32,
}

/// Where and how the frame's number is written.
struct Counter {
    at: (i32, i32),
    scale: i32,
    wording: fn(u32, u32, u32) -> String,
}

impl Card {
    /// Lays out a card, with `image` in place of the bars if there is one, which turns into
    /// `last_image` from the first frame to the last.
    pub(crate) fn new(
        request: &EngineRequest,
        image: Option<&Canvas>,
        last_image: Option<&Canvas>,
    ) -> Card {
        let mut font = Font::new();
        let (width, height) = (request.width as i32, request.height as i32);
        let layout = Layout::new(width, height, image.is_some());
        let (backdrop, counter) = draw_backdrop(&mut font, &layout, request, image);
        let last =
            last_image.map(|image| draw_backdrop(&mut font, &layout, request, Some(image)).0);
        Card {
            label: Label::new(&mut font, &layout),
            font,
            backdrop,
            last,
            counter,
            progress: layout.progress,
            motion: Motion::new(request, layout.stage),
            frames: request.frames,
            fps: request.fps,
        }
    }

    /// Draws frame `index`, the first of which is 0, on a canvas of the card's size.
    pub(crate) fn paint(&mut self, index: u32, canvas: &mut Canvas) {
        canvas.copy_from(&self.backdrop);
        if let Some(last) = &self.last {
            let way = (self.frames - 1).max(1);
            canvas.blend(last, (index * 255 / way) as u8);
        }
        self.motion.draw(canvas, index as f32 / self.frames as f32);
        self.label.draw(canvas, &mut self.font);
        if let Some(counter) = &self.counter {
            let text = (counter.wording)(index, self.frames, self.fps);
            self.font.draw(canvas, counter.at, counter.scale, AMBER, &text);
        }
        let mut passed = self.progress;
        passed.width = passed.width * (index as i32 + 1) / self.frames as i32;
        canvas.fill(passed, self.motion.color());
    }
}

/// Draws what doesn't move, and finds the counter's place on it.
fn draw_backdrop(
    font: &mut Font,
    layout: &Layout,
    request: &EngineRequest,
    image: Option<&Canvas>,
) -> (Canvas, Option<Counter>) {
    let (width, height) = (request.width as usize, request.height as usize);
    let mut backdrop = match image {
        Some(image) => {
            let mut backdrop = still::cover(image, width, height);
            backdrop.tint(layout.panel, INK, 215);
            backdrop
        }
        None => {
            let mut backdrop = Canvas::new(width, height);
            backdrop.fill(layout.panel, INK);
            draw_bars(&mut backdrop, layout);
            draw_reticle(&mut backdrop, layout);
            backdrop
        }
    };
    let (counter, prompt_area) = draw_figures(&mut backdrop, font, layout, request);
    draw_prompt(&mut backdrop, font, layout, prompt_area, &request.prompt);
    (backdrop, counter)
}

/// Where the parts of a card are.
struct Layout {
    /// How far text of the normal size is enlarged.
    scale: i32,
    margin: i32,
    /// Where things move: the bars, or the whole of the upper part if it shows an image.
    stage: Rect,
    /// Under the bars: their counterparts, and a ramp from black to white. Empty with an image.
    strip: Rect,
    ramp: Rect,
    /// The lower part: the text.
    panel: Rect,
    progress: Rect,
}

impl Layout {
    fn new(width: i32, height: i32, image: bool) -> Layout {
        let short = width.min(height);
        let scale = ((short + 120) / 240).clamp(1, 4);
        let upper = height * 62 / 100;
        let (strip, ramp) = if image { (0, 0) } else { (upper / 14, upper / 11) };
        let stage = Rect::new(0, 0, width, upper - strip - ramp);
        let strip = Rect::new(0, stage.bottom(), width, strip);
        let ramp = Rect::new(0, strip.bottom(), width, ramp);
        let thickness = (3 * scale).min(short / 32);
        Layout {
            scale,
            margin: (6 * scale).min(short / 16),
            stage,
            strip,
            ramp,
            panel: Rect::new(0, upper, width, height - upper),
            progress: Rect::new(0, height - thickness, width, thickness),
        }
    }

    /// How far text of the small size is enlarged.
    fn small_scale(&self) -> i32 {
        (self.scale + 1) / 2
    }

    /// The part of the panel in which text may stand.
    fn text_area(&self) -> Rect {
        let Rect { x, y, width, height } = self.panel;
        let margin = self.margin;
        let height = height - self.progress.height - 2 * margin;
        Rect::new(x + 2 * margin, y + margin, width - 4 * margin, height)
    }
}

fn draw_bars(canvas: &mut Canvas, layout: &Layout) {
    let column = |row: Rect, i: i32| {
        let count = BARS.len() as i32;
        let (left, right) = (row.width * i / count, row.width * (i + 1) / count);
        Rect::new(left, row.y, right - left, row.height)
    };
    for (i, (bar, below)) in (0..).zip(BARS.into_iter().zip(STRIP)) {
        canvas.fill(column(layout.stage, i), rgb(bar));
        canvas.fill(column(layout.strip, i), rgb(below));
    }
    canvas.ramp(layout.ramp, rgb(0), WHITE);
}

/// A ring and a cross in the middle of the bars: what is round must look round.
fn draw_reticle(canvas: &mut Canvas, layout: &Layout) {
    let (x, y) = layout.stage.center();
    let reach = x.min(y) * 88 / 100;
    let (center, radius) = ((x as f32, y as f32), reach as f32);
    let half = layout.scale as f32 * 0.75;
    canvas.around(center, radius + half + 2.0, layout.stage, |dx, dy| {
        let off = (length(dx, dy) - radius).abs();
        (WHITE, (half - off + 0.5) * 0.9)
    });
    let width = layout.scale;
    for arm in [
        Rect::new(x - reach, y - width / 2, 2 * reach, width),
        Rect::new(x - width / 2, y - reach, width, 2 * reach),
    ] {
        canvas.tint(arm, WHITE, 180);
    }
}

impl Label {
    /// The fullest wording that fits, as large as it fits.
    fn new(font: &mut Font, layout: &Layout) -> Label {
        let (x, y) = layout.stage.center();
        let mut place = |text, scale| {
            let width = (font.width(text) + 16) * scale;
            let height = (font::HEIGHT + 6) * scale;
            let area = Rect::new(x - width / 2, y - height / 2, width, height);
            let fits = width <= layout.stage.width * 9 / 10 && height <= y * 9 / 5;
            (Label { area, text, scale }, fits)
        };
        for text in LABELS {
            for scale in (1..=layout.scale + 1).rev() {
                if let (label, true) = place(text, scale) {
                    return label;
                }
            }
        }
        place(LABELS[LABELS.len() - 1], 1).0
    }

    fn draw(&self, canvas: &mut Canvas, font: &mut Font) {
        let scale = self.scale;
        canvas.rounded(self.area, 5 * scale, WHITE);
        canvas.rounded(self.area.inset(scale), 4 * scale, INK);
        let at = (self.area.x + 8 * scale, self.area.y + 3 * scale);
        font.draw(canvas, at, scale, WHITE, self.text);
    }
}

/// Writes the request's figures at the foot of the panel and finds the counter's place there;
/// returns it, and the part of the panel that is left.
fn draw_figures(
    canvas: &mut Canvas,
    font: &mut Font,
    layout: &Layout,
    request: &EngineRequest,
) -> (Option<Counter>, Rect) {
    canvas.tint(layout.progress, WHITE, 40);
    let mut area = layout.text_area();
    let (scale, small) = (layout.scale, layout.small_scale());

    let wordings: [fn(u32, u32, u32) -> String; 3] = match request.format {
        Format::Png | Format::Jpeg | Format::Webp => {
            [|_, _, _| "still image".into(), |_, _, _| "still".into(), |_, _, _| "".into()]
        }
        Format::Mp4 => [
            |index, frames, fps| format!("frame {index:03}/{frames:03}  {}", timecode(index, fps)),
            |index, frames, fps| format!("{index:03}/{frames:03}  {}", timecode(index, fps)),
            |index, frames, _| format!("{index:03}/{frames:03}"),
        ],
    };
    let counter = wordings.into_iter().find_map(|wording| {
        (small..=scale).rev().find_map(|scale| {
            let text = wording(0, request.frames, request.fps);
            let width = font.width(&text) * scale;
            let fits = width <= area.width && font::HEIGHT * scale <= area.height;
            fits.then_some((wording, scale, width))
        })
    });
    let Some((wording, counter_scale, counter_width)) = counter else {
        return (None, area);
    };
    let counter_height = font::HEIGHT * counter_scale;

    let figures = figures(request);
    let figures_width = figures.iter().map(|line| font.width(line) * small).max().unwrap_or(0);
    let figures_height = figures.len() as i32 * font::HEIGHT * small;
    let beside = counter_width + 4 * layout.margin + figures_width <= area.width;
    let stacked = counter_height + layout.margin / 2 + figures_height;
    let (height, place) = if beside && figures_height * 2 <= area.height {
        (counter_height.max(figures_height), Some(Place::Beside))
    } else if figures_width <= area.width && stacked * 2 <= area.height {
        (stacked, Some(Place::Below))
    } else {
        (counter_height, None)
    };
    let top = area.bottom() - height;
    if let Some(place) = place {
        let mut y = area.bottom() - figures_height;
        for line in &figures {
            let x = match place {
                Place::Beside => area.right() - font.width(line) * small,
                Place::Below => area.x,
            };
            font.draw(canvas, (x, y), small, MUTED, line);
            y += font::HEIGHT * small;
        }
    }
    let counter_top = match place {
        Some(Place::Beside) => top + (height - counter_height) / 2,
        Some(Place::Below) | None => top,
    };
    area.height = top - layout.margin - area.y;
    let counter = Counter { at: (area.x, counter_top), scale: counter_scale, wording };
    (Some(counter), area)
}

/// Where the figures stand, seen from the counter.
#[derive(Clone, Copy)]
enum Place {
    Beside,
    Below,
}

/// The request's figures, in two lines.
fn figures(request: &EngineRequest) -> [String; 2] {
    let EngineRequest { width, height, frames, fps, steps, seed, .. } = request;
    let size = match request.format {
        Format::Mp4 => format!("{width}x{height}  {frames} frames  {fps} fps"),
        Format::Png | Format::Jpeg | Format::Webp => format!("{width}x{height}"),
    };
    let short = |scale: f64| match scale.abs() < 1000.0 {
        true => format!("{scale:.1}"),
        false => format!("{scale:.1e}"),
    };
    let guidance = match (request.guidance.map(short), request.guidance_2.map(short)) {
        (Some(first), Some(second)) => format!("  guidance {first}, {second}"),
        (Some(one), None) | (None, Some(one)) => format!("  guidance {one}"),
        (None, None) => String::new(),
    };
    let plural = if *steps == 1 { "" } else { "s" };
    [size, format!("{steps} step{plural}{guidance}  seed {seed}")]
}

fn timecode(index: u32, fps: u32) -> String {
    let millis = index * 1000 / fps;
    format!("{:02}:{:02}.{:03}", millis / 60_000, millis / 1000 % 60, millis % 1000)
}

/// Writes the prompt as large as it fits into `area`, between the small and the normal size.
fn draw_prompt(canvas: &mut Canvas, font: &mut Font, layout: &Layout, area: Rect, prompt: &str) {
    for scale in (layout.small_scale()..=layout.scale).rev() {
        let leading = 2 * scale;
        let line_height = font::HEIGHT * scale + leading;
        let room = ((area.height + leading) / line_height).max(0) as usize;
        let (lines, complete) = font.wrap(prompt, area.width / scale, room);
        if complete || scale == layout.small_scale() {
            let height = lines.len() as i32 * line_height - leading;
            let mut y = area.y + (area.height - height) / 2;
            for line in lines {
                font.draw(canvas, (area.x, y), scale, PAPER, &line);
                y += line_height;
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(width: u32, height: u32) -> EngineRequest {
        EngineRequest {
            prompt: "a red fox running through snow".into(),
            negative_prompt: String::new(),
            width,
            height,
            frames: 49,
            fps: 16,
            steps: 20,
            guidance: None,
            guidance_2: None,
            seed: 42,
            format: Format::Mp4,
            image: None,
            last_image: None,
            loras: Vec::new(),
        }
    }

    #[test]
    fn the_label_stands_on_cards_of_all_sizes() {
        for (width, height, text) in [
            (64, 64, "TEST"),
            (64, 1920, "TEST"),
            (1920, 64, "TEST PATTERN - NO MODEL"),
            (128, 96, "TEST PATTERN"),
            (832, 480, "TEST PATTERN - NO MODEL"),
            (1088, 1920, "TEST PATTERN - NO MODEL"),
        ] {
            let image = Canvas::new(8, 8);
            for image in [None, Some(&image)] {
                let label = Card::new(&request(width, height), image, None).label;
                assert_eq!(label.text, text, "{width}x{height}");
                let Rect { x, y, width: w, height: h } = label.area;
                assert!(x >= 0 && y >= 0 && x + w <= width as i32 && y + h <= height as i32);
            }
        }
    }

    #[test]
    fn the_counter_tells_frame_and_time() {
        let mut card = Card::new(&request(832, 480), None, None);
        let counter = card.counter.take().expect("a counter");
        assert_eq!((counter.wording)(12, 49, 16), "frame 012/049  00:00.750");
        assert_eq!(timecode(320, 1), "05:20.000");
        assert_eq!(timecode(1, 60), "00:00.016");
    }
}
