//! What programs say to a terminal, as text for the log and for people elsewhere.

/// The text without colours and other escape sequences, and of control characters only tabs and ends of
/// lines. A sequence that is not ended takes the rest of its line along.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        for part in anstream::adapter::strip_str(line) {
            plain.extend(part.chars().filter(|c| !c.is_control() || matches!(c, '\t' | '\n')));
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_controls_go_and_text_stays() {
        for (said, expected) in [
            ("\u{1b}[1;31mERROR\u{1b}[0m: no\tmemory", "ERROR: no\tmemory"),
            ("\u{1b}[38;5;208m猫\u{1b}[K é", "猫 é"),
            ("\u{1b}]0;a title\u{7}\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\", "link"),
            ("bell\u{7} back\u{8} null\0 del\u{7f} C1\u{85}\u{9b}", "bell back null del C1"),
            ("cut off \u{1b}[3", "cut off "),
            ("open \u{1b}]0;a title\nthe next line", "open the next line"),
            ("a\nb\n", "a\nb\n"),
        ] {
            assert_eq!(plain(said), expected, "{said:?}");
        }
    }
}
