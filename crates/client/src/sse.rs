//! Reads a stream of server-sent events (the format of WHATWG's HTML, section 9.2).

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    pub name: String,
    pub data: String,
    /// Where to resume after this event.
    pub id: Option<String>,
}

/// No event of ours is longer; whoever sends more is not our server.
const MAX_EVENT: usize = 1 << 20;

/// The stream is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Turns pieces of a stream into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// The last line, as far as it has come.
    line: Vec<u8>,
    event: Event,
}

impl Parser {
    /// Takes the next piece; gives the events that it completes.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in piece {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > MAX_EVENT {
                    return Err(TooLong);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line));
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    events.push(event);
                }
            } else {
                self.field(&line);
                if self.event.data.len() > MAX_EVENT {
                    return Err(TooLong);
                }
            }
        }
        Ok(events)
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => self.event.name = value.to_owned(),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "id" => self.event.id = Some(value.to_owned()),
            // A comment (that the connection lives), or a field that we don't use.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str, id: Option<&str>) -> Event {
        Event { name: name.to_owned(), data: data.to_owned(), id: id.map(str::to_owned) }
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream = ": hello\n\nid: 1-2\nevent: state\ndata: {\"a\":1}\n\n\
                      event: progress\r\ndata:x\r\ndata: ü\r\n\r\nretry: 5\n\n";
        let expected = [event("state", "{\"a\":1}", Some("1-2")), event("progress", "x\nü", None)];
        for size in 1..=stream.len() {
            let mut parser = Parser::default();
            let events: Vec<Event> = stream
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| parser.push(piece).expect("short"))
                .collect();
            assert_eq!(events, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_that_is_not_complete_is_not_one() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(b"data: 1\n"), Ok(vec![]));
        assert_eq!(parser.push(b"\n"), Ok(vec![event("", "1", None)]));
    }

    #[test]
    fn a_stream_without_end_of_line_is_given_up() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 16];
        assert!((0..17).any(|_| parser.push(&piece) == Err(TooLong)));
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 1 << 16], b"\n"].concat();
        assert!((0..17).any(|_| parser.push(&line) == Err(TooLong)));
    }
}
