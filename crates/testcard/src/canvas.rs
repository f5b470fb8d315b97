//! A picture in memory and the few shapes that a test card is made of.

use resize::px::RGB;

pub(crate) type Color = RGB<u8>;

pub(crate) const fn rgb(hex: u32) -> Color {
    Color { r: (hex >> 16) as u8, g: (hex >> 8) as u8, b: hex as u8 }
}

pub(crate) const WHITE: Color = rgb(0xff_ff_ff);
pub(crate) const INK: Color = rgb(0x0d_11_17);

/// An area of the picture. It may reach over the edges; what is outside isn't drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rect {
    pub(crate) x: i32,
    pub(crate) y: i32,
    pub(crate) width: i32,
    pub(crate) height: i32,
}

impl Rect {
    pub(crate) const fn new(x: i32, y: i32, width: i32, height: i32) -> Rect {
        Rect { x, y, width, height }
    }

    /// Smaller by `by` on every side.
    pub(crate) fn inset(self, by: i32) -> Rect {
        Rect::new(self.x + by, self.y + by, self.width - 2 * by, self.height - 2 * by)
    }

    pub(crate) fn center(self) -> (i32, i32) {
        (self.x + self.width / 2, self.y + self.height / 2)
    }

    pub(crate) fn right(self) -> i32 {
        self.x + self.width
    }

    pub(crate) fn bottom(self) -> i32 {
        self.y + self.height
    }
}

/// An RGB picture with even sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Color>,
}

impl Canvas {
    pub(crate) fn new(width: usize, height: usize) -> Canvas {
        Canvas::from_pixels(width, height, vec![Color::default(); width * height])
    }

    pub(crate) fn from_pixels(width: usize, height: usize, pixels: Vec<Color>) -> Canvas {
        assert_eq!(pixels.len(), width * height, "one pixel for every place");
        Canvas { width, height, pixels }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn height(&self) -> usize {
        self.height
    }

    pub(crate) fn pixels(&self) -> &[Color] {
        &self.pixels
    }

    /// Becomes a copy of `other`, which has the same size.
    pub(crate) fn copy_from(&mut self, other: &Canvas) {
        self.pixels.copy_from_slice(&other.pixels);
    }

    /// Lays `over`, which has the same size, over the whole; `alpha` 0 leaves it as it is, 255 hides
    /// it.
    pub(crate) fn blend(&mut self, over: &Canvas, alpha: u8) {
        for (pixel, over) in self.pixels.iter_mut().zip(&over.pixels) {
            *pixel = mix(*pixel, *over, alpha);
        }
    }

    /// The pixels of row `y` between two columns, as far as they are inside.
    fn row(&mut self, y: i32, from: i32, to: i32) -> &mut [Color] {
        if y < 0 || y >= self.height as i32 {
            return &mut [];
        }
        let from = from.clamp(0, self.width as i32) as usize;
        let to = to.clamp(from as i32, self.width as i32) as usize;
        let start = y as usize * self.width;
        &mut self.pixels[start + from..start + to]
    }

    pub(crate) fn fill(&mut self, area: Rect, color: Color) {
        for y in area.y.max(0)..area.bottom().min(self.height as i32) {
            self.row(y, area.x, area.right()).fill(color);
        }
    }

    /// Lays a colour over an area; `alpha` 0 leaves it as it is, 255 hides it.
    pub(crate) fn tint(&mut self, area: Rect, color: Color, alpha: u8) {
        for y in area.y.max(0)..area.bottom().min(self.height as i32) {
            for pixel in self.row(y, area.x, area.right()) {
                *pixel = mix(*pixel, color, alpha);
            }
        }
    }

    /// A horizontal ramp from one colour to another.
    pub(crate) fn ramp(&mut self, area: Rect, from: Color, to: Color) {
        let last = (area.width - 1).max(1);
        for x in 0..area.width {
            let color = mix(from, to, (x * 255 / last) as u8);
            self.fill(Rect::new(area.x + x, area.y, 1, area.height), color);
        }
    }

    /// A filled rectangle with rounded corners.
    pub(crate) fn rounded(&mut self, area: Rect, radius: i32, color: Color) {
        let radius = radius.clamp(0, area.width.min(area.height) / 2);
        for y in 0..area.height {
            // How far the row is above or below the straight part of the sides, pixel centres.
            let above =
                (radius as f32 - (y as f32 + 0.5)).max((y - area.height + radius) as f32 + 0.5);
            let inset = match above {
                above if above > 0.0 => {
                    let radius = radius as f32;
                    radius - (radius * radius - above * above).max(0.0).sqrt()
                }
                _ => 0.0,
            };
            let whole = inset.ceil() as i32;
            let (left, right, y) = (area.x + whole, area.right() - whole, area.y + y);
            self.row(y, left, right).fill(color);
            let edge = ((whole as f32 - inset) * 255.0) as u8;
            self.tint(Rect::new(left - 1, y, 1, 1), color, edge);
            self.tint(Rect::new(right, y, 1, 1), color, edge);
        }
    }

    /// Calls `shade` for every pixel within `radius` of a point and inside `clip`, with its offset
    /// from that point; lays the colour over it that comes back, with its opacity from 0 to 1.
    pub(crate) fn around(
        &mut self,
        center: (f32, f32),
        radius: f32,
        clip: Rect,
        shade: impl Fn(f32, f32) -> (Color, f32),
    ) {
        let reach = radius.ceil() as i32 + 1;
        let (cx, cy) = (center.0.floor() as i32, center.1.floor() as i32);
        let (left, right) = ((cx - reach).max(clip.x), (cx + reach).min(clip.right()));
        for y in (cy - reach).max(clip.y)..(cy + reach).min(clip.bottom()) {
            let dy = y as f32 + 0.5 - center.1;
            let start = left.max(0);
            for (pixel, x) in self.row(y, start, right).iter_mut().zip(start..) {
                let dx = x as f32 + 0.5 - center.0;
                let (color, opacity) = shade(dx, dy);
                *pixel = mix(*pixel, color, (opacity.clamp(0.0, 1.0) * 255.0) as u8);
            }
        }
    }

    /// A diagonal band of light, brightest in its middle, whose middle meets the top of `clip` at
    /// `x` and moves by `slope` pixels to the side with each row.
    pub(crate) fn beam(&mut self, clip: Rect, x: f32, slope: f32, half_width: f32, color: Color) {
        for y in clip.y..clip.bottom() {
            let middle = x + (y - clip.y) as f32 * slope;
            let from = ((middle - half_width).floor() as i32).max(clip.x).max(0);
            let to = ((middle + half_width).ceil() as i32).min(clip.right());
            for (pixel, x) in self.row(y, from, to).iter_mut().zip(from..) {
                let off = ((x as f32 + 0.5 - middle) / half_width).abs().min(1.0);
                let light = 1.0 - off * off;
                *pixel = mix(*pixel, color, (light * light * 110.0) as u8);
            }
        }
    }

    /// Converts to planar YUV 4:2:0, BT.709 in limited range, as the planes Y, U and V of `yuv`.
    pub(crate) fn to_yuv(&self, yuv: &mut [u8]) {
        let (width, area) = (self.width, self.width * self.height);
        let (luma, chroma) = yuv.split_at_mut(area);
        let (us, vs) = chroma.split_at_mut(area / 4);
        for (y, p) in luma.iter_mut().zip(&self.pixels) {
            let sum = 47 * u32::from(p.r) + 157 * u32::from(p.g) + 16 * u32::from(p.b);
            *y = (((sum + 128) >> 8) + 16) as u8;
        }
        let rows = self.pixels.chunks_exact(2 * width);
        let chroma = us.chunks_exact_mut(width / 2).zip(vs.chunks_exact_mut(width / 2));
        for (rows, (us, vs)) in rows.zip(chroma) {
            let (above, below) = rows.split_at(width);
            let blocks = above.as_chunks::<2>().0.iter().zip(below.as_chunks::<2>().0);
            for (([a, b], [c, d]), (u, v)) in blocks.zip(us.iter_mut().zip(vs)) {
                let sum = |part: fn(&Color) -> u8| -> i32 {
                    [a, b, c, d].into_iter().map(|p| i32::from(part(p))).sum()
                };
                let (r, g, b) = (sum(|p| p.r), sum(|p| p.g), sum(|p| p.b));
                // Four pixels are summed, so the weights of one are in units of 1/1024.
                *u = (((-26 * r - 86 * g + 112 * b + 512) >> 10) + 128) as u8;
                *v = (((112 * r - 102 * g - 10 * b + 512) >> 10) + 128) as u8;
            }
        }
    }
}

/// `over` laid on `under` with an opacity from 0 to 255.
pub(crate) fn mix(under: Color, over: Color, alpha: u8) -> Color {
    let alpha = u32::from(alpha);
    let part = |under: u8, over: u8| {
        ((u32::from(under) * (255 - alpha) + u32::from(over) * alpha + 127) / 255) as u8
    };
    Color { r: part(under.r, over.r), g: part(under.g, over.g), b: part(under.b, over.b) }
}

/// Length of an offset, without the care for overflow that makes [`f32::hypot`] slow.
pub(crate) fn length(dx: f32, dy: f32) -> f32 {
    (dx * dx + dy * dy).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_over_the_edge_are_cut_off() {
        let mut canvas = Canvas::new(8, 8);
        let far = Rect::new(-50, -50, 100, 100);
        canvas.fill(far, rgb(0x112233));
        canvas.tint(far, rgb(0xffffff), 10);
        canvas.rounded(far, 20, rgb(0x112233));
        canvas.ramp(far, rgb(0), rgb(0xffffff));
        canvas.beam(far, -3.0, 2.0, 20.0, rgb(0xffffff));
        canvas.around((-4.0, 11.0), 30.0, far, |_, _| (rgb(0xff0000), 1.0));
        assert!(canvas.pixels().iter().all(|pixel| *pixel == rgb(0xff0000)));
        canvas.fill(Rect::new(9, 9, 4, 4), rgb(0));
        canvas.fill(Rect::new(2, 2, -4, -4), rgb(0));
        assert!(canvas.pixels().iter().all(|pixel| *pixel == rgb(0xff0000)));
    }

    #[test]
    fn yuv_follows_bt709_in_limited_range() {
        let yuv_of = |color| {
            let mut yuv = [0; 6];
            Canvas::from_pixels(2, 2, vec![color; 4]).to_yuv(&mut yuv);
            assert_eq!(yuv[..4], [yuv[0]; 4]);
            [yuv[0], yuv[4], yuv[5]]
        };
        assert_eq!(yuv_of(rgb(0x000000)), [16, 128, 128]);
        assert_eq!(yuv_of(rgb(0xffffff)), [235, 128, 128]);
        assert_eq!(yuv_of(rgb(0xff0000)), [63, 102, 240]);
        assert_eq!(yuv_of(rgb(0x00ff00)), [172, 42, 26]);
        assert_eq!(yuv_of(rgb(0x0000ff)), [32, 240, 118]);
    }
}
