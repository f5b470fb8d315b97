//! Text from bitmap glyphs: 8 or 16 pixels wide, 16 high, enlarged by whole factors.
//!
//! The glyphs are GNU Unifont's (SIL Open Font License 1.1), which has all of Unicode's assigned
//! scripts, Chinese, Japanese and Korean included. Text is set from left to right in the order of
//! its characters; a mark is drawn over the character before it.

use unicode_linebreak::{BreakOpportunity, linebreaks};
use unicode_width::UnicodeWidthChar;
use unifont_bitmap::Unifont;

use crate::canvas::{Canvas, Color, Rect};

/// Height of every glyph, before it is enlarged.
pub(crate) const HEIGHT: i32 = 16;

const ELLIPSIS: char = '…';

/// At most this much of a text is looked at: more than fits on the largest picture.
const MAX_CHARS: usize = 16_384;

/// The glyphs that were used so far, unpacked.
pub(crate) struct Font {
    glyphs: Unifont,
}

/// One character's picture.
struct Glyph {
    width: i32,
    /// The leftmost pixel is the highest bit.
    rows: [u16; HEIGHT as usize],
}

impl Font {
    pub(crate) fn new() -> Font {
        Font { glyphs: Unifont::open() }
    }

    /// The glyph of a character, or the replacement character's if the font lacks it.
    fn glyph(&mut self, c: char) -> Glyph {
        let bitmap = self.glyphs.load_bitmap(c.into());
        let bytes = bitmap.get_bytes();
        let mut rows = [0; HEIGHT as usize];
        for (y, row) in rows.iter_mut().enumerate() {
            *row = match bitmap.is_wide() {
                true => u16::from_be_bytes([bytes[2 * y], bytes[2 * y + 1]]),
                false => u16::from(bytes[y]) << 8,
            };
        }
        Glyph { width: if bitmap.is_wide() { 16 } else { 8 }, rows }
    }

    fn advance(&mut self, c: char) -> i32 {
        if is_mark(c) { 0 } else { self.glyph(c).width }
    }

    /// Width of a line of text before it is enlarged.
    pub(crate) fn width(&mut self, text: &str) -> i32 {
        text.chars().map(|c| self.advance(c)).sum()
    }

    /// Draws a line of text with its upper left corner at `x`, `y`.
    pub(crate) fn draw(
        &mut self,
        canvas: &mut Canvas,
        (x, y): (i32, i32),
        scale: i32,
        color: Color,
        text: &str,
    ) {
        let (mut pen, mut last) = (x, x);
        for c in text.chars() {
            let glyph = self.glyph(c);
            let mark = is_mark(c);
            glyph.draw(canvas, (if mark { last } else { pen }, y), scale, color);
            if !mark {
                last = pen;
                pen += glyph.width * scale;
            }
        }
    }

    /// Breaks a text into lines of at most `width`, where Unicode's rules allow a break, and in
    /// the middle of a word only if it is longer than a line. What is beyond `max_lines` is cut
    /// off and an ellipsis put in its place; the second value says whether the whole text fits.
    pub(crate) fn wrap(&mut self, text: &str, width: i32, max_lines: usize) -> (Vec<String>, bool) {
        let text = readable(text);
        let mut lines = Vec::new();
        let mut line = String::new();
        let mut start = 0;
        for (end, opportunity) in linebreaks(&text) {
            let piece = &text[start..end];
            start = end;
            if !line.is_empty() && self.width(&line) + self.width(piece.trim_end()) > width {
                lines.push(std::mem::take(&mut line));
            }
            let mut used = self.width(&line);
            for c in piece.chars().filter(|c| *c != '\n') {
                let advance = self.advance(c);
                if !line.is_empty() && c != ' ' && used + advance > width {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push(c);
                used += advance;
            }
            if opportunity == BreakOpportunity::Mandatory {
                lines.push(std::mem::take(&mut line));
            }
            if lines.len() > max_lines {
                break;
            }
        }
        let complete = lines.len() <= max_lines;
        lines.truncate(max_lines);
        for line in &mut lines {
            line.truncate(line.trim_end().len());
        }
        if !complete && let Some(last) = lines.last_mut() {
            while !last.is_empty() && self.width(last) + self.advance(ELLIPSIS) > width {
                last.pop();
            }
            last.truncate(last.trim_end().len());
            last.push(ELLIPSIS);
        }
        (lines, complete)
    }
}

impl Glyph {
    fn is_set(&self, x: i32, y: i32) -> bool {
        (0..self.width).contains(&x)
            && (0..HEIGHT).contains(&y)
            && self.rows[y as usize] & (0x8000 >> x) != 0
    }

    /// Draws the glyph, its slants smoothed: where two pixels of a stroke meet at a corner alone,
    /// the notches beside that corner are filled, as the Scale2x method does.
    fn draw(&self, canvas: &mut Canvas, (left, top): (i32, i32), scale: i32, color: Color) {
        for y in 0..HEIGHT {
            for x in 0..self.width {
                let set = self.is_set(x, y);
                let area = Rect::new(left + x * scale, top + y * scale, scale, scale);
                if set {
                    canvas.fill(area, color);
                } else {
                    self.fill_corners(canvas, (x, y), area, color);
                }
            }
        }
    }

    fn fill_corners(&self, canvas: &mut Canvas, (x, y): (i32, i32), area: Rect, color: Color) {
        for (dx, dy) in [(-1, -1), (1, -1), (-1, 1), (1, 1)] {
            let set = |dx, dy| self.is_set(x + dx, y + dy);
            if set(dx, 0) && set(0, dy) && !set(dx, dy) && !set(-dx, 0) && !set(0, -dy) {
                // A triangle with legs of half the pixel.
                for step in 0..area.width / 2 {
                    let width = area.width / 2 - step;
                    let x = if dx < 0 { area.x } else { area.right() - width };
                    let y = if dy < 0 { area.y + step } else { area.bottom() - 1 - step };
                    canvas.fill(Rect::new(x, y, width, 1), color);
                }
            }
        }
    }
}

/// Whether a character is drawn over the one before it.
fn is_mark(c: char) -> bool {
    c.width() == Some(0)
}

/// Characters that only steer how text is set; the font has a dashed box for each of them.
fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A text as it is shown: line breaks kept, runs of other white space one blank, control and
/// format characters left out.
fn readable(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !shown.is_empty() {
            shown.push('\n');
        }
        for (i, word) in line.split_whitespace().enumerate() {
            if i > 0 {
                shown.push(' ');
            }
            shown.extend(word.chars().filter(|c| !c.is_control() && !is_format(*c)));
        }
        if shown.len() > MAX_CHARS {
            break;
        }
    }
    let end = shown.char_indices().nth(MAX_CHARS).map_or(shown.len(), |(i, _)| i);
    shown.truncate(end);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canvas::rgb;

    fn wrap(text: &str, columns: i32, max_lines: usize) -> (Vec<String>, bool) {
        Font::new().wrap(text, columns * 8, max_lines)
    }

    #[test]
    fn words_stay_whole() {
        let (lines, complete) = wrap("a red fox running through snow", 11, 9);
        assert_eq!(lines, ["a red fox", "running", "through", "snow"]);
        assert!(complete);
    }

    #[test]
    fn chinese_breaks_between_characters_but_not_before_a_comma() {
        let (lines, _) = wrap("狐狸在雪地里，奔跑。", 12, 9);
        assert_eq!(lines, ["狐狸在雪地", "里，奔跑。"]);
    }

    #[test]
    fn a_word_longer_than_a_line_is_broken() {
        assert_eq!(wrap("abcdefgh ij", 3, 9).0, ["abc", "def", "gh", "ij"]);
    }

    #[test]
    fn what_does_not_fit_becomes_an_ellipsis() {
        let (lines, complete) = wrap("one two three four", 9, 2);
        assert_eq!(lines, ["one two", "three…"]);
        assert!(!complete);
        assert_eq!(wrap("abcdefghij", 4, 2).0, ["abcd", "efg…"]);
        assert_eq!(wrap("one two", 3, 0), (vec![], false));
    }

    #[test]
    fn only_line_breaks_are_kept_of_white_space_and_controls() {
        let (lines, complete) = wrap(" a\t b\r\n\n\u{1b}[1mc\0\u{200d}\u{202e}d \n ", 20, 9);
        assert_eq!(lines, ["a b", "[1mcd"]);
        assert!(complete);
        assert_eq!(wrap("", 20, 9), (vec![], true));
        assert_eq!(wrap(" \n\t\n", 20, 9), (vec![], true));
    }

    #[test]
    fn marks_take_no_room_and_wide_characters_two_columns() {
        let mut font = Font::new();
        assert_eq!(font.width("e\u{301}"), 8);
        assert_eq!(font.width("雪"), 16);
        assert_eq!(font.width("🦊"), 16);
    }

    /// The pixels of a character in a font enlarged by `scale`.
    fn drawn(c: char, scale: i32) -> Canvas {
        let side = 16 * scale as usize;
        let mut canvas = Canvas::new(side, side);
        Font::new().draw(&mut canvas, (0, 0), scale, rgb(0xffffff), &c.to_string());
        canvas
    }

    #[test]
    fn slants_are_smoothed_and_straight_strokes_stay_as_they_are() {
        for (c, smoothed) in [('T', false), ('+', false), ('田', false), ('X', true), ('人', true)]
        {
            for scale in 2..=4 {
                let (small, large) = (drawn(c, 1), drawn(c, scale));
                let mut added = 0;
                for (i, pixel) in large.pixels().iter().enumerate() {
                    let (x, y) = (i % large.width(), i / large.width());
                    let source = small.pixels()[y / scale as usize * 16 + x / scale as usize];
                    assert!(source == rgb(0) || *pixel == source, "{c}: a pixel was lost");
                    added += usize::from(*pixel != source);
                }
                assert_eq!(added > 0, smoothed, "{c} at {scale}: {added} pixels added");
            }
        }
    }

    #[test]
    fn a_character_that_the_font_lacks_is_still_seen() {
        let unassigned = drawn('\u{10fffd}', 1);
        assert!(unassigned.pixels().contains(&rgb(0xffffff)));
        assert!(unassigned == drawn('\u{fffd}', 1));
    }
}
