//! Reads server-sent events from the pieces in which they arrive.
use std::mem::take;

/// One event. Without a name and data, it only says where a watch is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: String,
}

/// Keeps what is not whole yet.
#[derive(Default)]
pub(crate) struct Reader {
    line: Vec<u8>,
    event: Event,
    size: usize,
}

/// An event has at most so many bytes.
const MOST: usize = 1 << 20;

// === impl Reader ===

impl Reader {
    /// The events that are whole with `bytes`.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.size += 1;
                if self.size > MOST {
                    return Err(format!("an event has more than {MOST} bytes"));
                }
                self.line.push(*byte);
                continue;
            }
            let line = String::from_utf8(take(&mut self.line)).map_err(|_| "an event is no text")?;
            events.extend(self.line(line.strip_suffix('\r').unwrap_or(&line)));
        }
        Ok(events)
    }

    /// An empty line ends an event.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            self.size = 0;
            return Some(take(&mut self.event)).filter(|event| *event != Event::default());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.name = value.to_owned(),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {} // a comment, or a field that is not known here
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_in_pieces_of_any_size() {
        let text = ": hello\n\nevent: put\r\nid: 1.2\r\ndata: {}\r\n\r\nid: 1.3\n\ndata:a\ndata:b\nretry: 5\n\nevent: half\n";
        let event = |name: &str, id: Option<&str>, data: &str| Event {
            name: name.to_owned(),
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        let expected = [event("put", Some("1.2"), "{}"), event("", Some("1.3"), ""), event("", None, "a\nb")];
        for size in [1, 2, 3, 7, 1_000] {
            let mut reader = Reader::default();
            let read: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|piece| reader.read(piece).unwrap()).collect();
            assert_eq!(read, expected, "{size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut reader = Reader::default();
        assert!((0..100).any(|_| reader.read(&[b'x'; 65_536]).is_err()));
        let mut reader = Reader::default();
        let lines = "data: x\n".repeat(10_000);
        assert!((0..100).any(|_| reader.read(lines.as_bytes()).is_err()));
        assert!(Reader::default().read(b"data: \xff\n").is_err());
    }
}
