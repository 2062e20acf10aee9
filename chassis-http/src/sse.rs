//! Server-sent events, read from the pieces in which they arrive.
//!
//! The format is that of the HTML standard, chapter 9.2; a carriage return alone ends no line.
//!
//! ```
//! use chassis_http::sse::Reader;
//!
//! let mut reader = Reader::new(1 << 20);
//! assert!(reader.read(b"id: 7\nda")?.is_empty());
//! let events = reader.read(b"ta: hello\n\n")?;
//! assert_eq!((events[0].id.as_deref(), events[0].data.as_str()), (Some("7"), "hello"));
//! # Ok::<(), String>(())
//! ```
use std::mem::take;

/// One event. One that has only an `id` says how far a stream is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The type of the event; empty if it has none.
    pub name: String,
    /// The position in the stream, which a client sends as `last-event-id` to go on there.
    pub id: Option<String>,
    /// The lines of data, separated by line feeds.
    pub data: String,
}

/// Reads events; keeps what is not complete yet.
#[derive(Debug)]
pub struct Reader {
    most: usize,
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    size: usize,
}

// === impl Reader ===

impl Reader {
    /// A reader of events of at most `most` bytes, with the names of the fields.
    pub fn new(most: usize) -> Self {
        Reader { most, line: Vec::new(), event: Event::default(), has_data: false, size: 0 }
    }

    /// The events that are complete with `bytes`.
    ///
    /// # Errors
    /// An event is too large, or is no UTF-8. The stream can't be read any further.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.size += piece.len();
            if self.size > self.most {
                return Err(format!("an event has more than {} bytes", self.most));
            }
            let Some(end) = piece.strip_suffix(b"\n") else {
                self.line.extend_from_slice(piece);
                continue;
            };
            self.line.extend_from_slice(end);
            let line = String::from_utf8(take(&mut self.line)).map_err(|_| "an event is no text in UTF-8")?;
            events.extend(self.line(line.strip_suffix('\r').unwrap_or(&line)));
        }
        Ok(events)
    }

    /// An empty line ends an event.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            (self.size, self.has_data) = (0, false);
            return Some(take(&mut self.event)).filter(|event| *event != Event::default());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.name = value.to_owned(),
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
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
        let text = ": hello\n\nevent: put\r\nid: 1.2\r\ndata: {}\r\n\r\nid: 1.3\n\ndata:a\ndata:b\nretry: 5\n\n\
                    data:\ndata: c\ndata\n\nevent: half\n";
        let event = |name: &str, id: Option<&str>, data: &str| Event {
            name: name.to_owned(),
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        let expected = [
            event("put", Some("1.2"), "{}"),
            event("", Some("1.3"), ""),
            event("", None, "a\nb"),
            event("", None, "\nc\n"),
        ];
        for size in [1, 2, 3, 7, 1_000] {
            let mut reader = Reader::new(1 << 10);
            let read: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|piece| reader.read(piece).unwrap()).collect();
            assert_eq!(read, expected, "{size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut reader = Reader::new(1 << 20);
        assert!((0..100).any(|_| reader.read(&[b'x'; 65_536]).is_err()));
        let mut reader = Reader::new(1 << 20);
        let lines = "data: x\n".repeat(10_000);
        assert!((0..100).any(|_| reader.read(lines.as_bytes()).is_err()));
        assert!(Reader::new(1 << 20).read(b"data: \xff\n").is_err());
        // Many small events are no large one.
        let mut reader = Reader::new(64);
        assert_eq!(reader.read("data: x\n\n".repeat(100).as_bytes()).map(|events| events.len()), Ok(100));
    }
}
