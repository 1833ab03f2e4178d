//! `porthole log`: the hypervisor's ring buffer.

use std::time::Duration;

use porthole_uapi::System;
use serde::Serialize;

use super::{CommandError, print};
use crate::cli::LogArgs;

/// How often `--follow` looks.
const POLL: Duration = Duration::from_millis(200);

#[derive(Serialize, Debug, PartialEq, Eq)]
struct Line {
    position: u64,
    text: String,
}

/// Cuts a stream of bytes into lines with their positions.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    /// Position of the first byte of `rest`.
    position: u64,
}

impl Lines {
    /// Bytes that stand at `position`; lines that are complete now.
    fn push(&mut self, position: u64, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        if position != self.position + self.rest.len() as u64 {
            // The ring went on without us: what is left of the old line stands for itself.
            lines.extend(self.finish());
            self.position = position;
        }
        self.rest.extend(bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.push(Line {
                position: self.position,
                text: String::from_utf8_lossy(&line[..end]).into_owned(),
            });
            self.position += line.len() as u64;
        }
        lines
    }

    /// The last line, if it has no end.
    fn finish(&mut self) -> Option<Line> {
        let rest = std::mem::take(&mut self.rest);
        let line = (!rest.is_empty()).then(|| Line {
            position: self.position,
            text: String::from_utf8_lossy(&rest).into_owned(),
        });
        self.position += rest.len() as u64;
        line
    }
}

fn write(lines: impl IntoIterator<Item = Line>, json: bool) -> Result<(), CommandError> {
    for line in lines {
        let text = if json {
            serde_json::to_string(&line)?
        } else {
            line.text
        };
        print(&format!("{text}\n"))?;
    }
    Ok(())
}

pub(super) fn log(system: &System, args: &LogArgs) -> Result<u8, CommandError> {
    let mut lines = Lines::default();
    let mut next = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (position, length) = system.log_read(next, &mut buffer)?;
        write(lines.push(position, &buffer[..length]), args.json)?;
        next = position + length as u64;
        if length == 0 && !args.follow {
            write(lines.finish(), args.json)?;
            return Ok(0);
        }
        if length == 0 {
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(position: u64, text: &str) -> Line {
        Line {
            position,
            text: text.to_owned(),
        }
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(0, b"one\ntw"), [line(0, "one")]);
        assert_eq!(lines.push(6, b"o\n\n"), [line(4, "two"), line(8, "")]);
        assert_eq!(lines.push(9, b"end"), []);
        assert_eq!(lines.finish(), Some(line(9, "end")));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn a_ring_that_went_on_starts_a_new_line() {
        let mut lines = Lines::default();
        lines.push(0, b"old");
        assert_eq!(
            lines.push(1000, b"new\n"),
            [line(0, "old"), line(1000, "new")]
        );
    }
}
