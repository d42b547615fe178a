//! What becomes of the lines that a child writes.

use std::collections::VecDeque;

use hatchery_actor::output::Output;
use hatchery_actor::settings::Settings;

use crate::printer::{Printer, Stream};

/// Lines of standard output that are kept for whoever asks.
const LINES: usize = 1000;
/// And their bytes, ends not counted.
const BYTES: usize = 256 * 1024;

/// Where the lines of one child go.
pub(crate) struct Outputs {
    out: Output,
    err: Output,
    /// Before each line that has one: `[/shop/web] `.
    prefix: Vec<u8>,
}

impl Outputs {
    pub(crate) fn new(settings: &Settings, path: &str) -> Outputs {
        Outputs { out: settings.stdout, err: settings.stderr, prefix: format!("[{path}] ").into_bytes() }
    }

    /// Prints a line, if it is to be printed.
    pub(crate) fn line(&self, printer: &Printer, stream: Stream, line: &[u8]) {
        let output = match stream {
            Stream::Out => self.out,
            Stream::Err => self.err,
        };
        match output {
            Output::Inherit | Output::Lines => printer.line(stream, line),
            Output::Prefixed => printer.line(stream, &[&self.prefix, line].concat()),
            _ => {}
        }
    }

    /// Whether standard output is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.out == Output::Capture
    }
}

/// The last lines of a standard output that is captured.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Kept {
    pub(crate) fn push(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line).trim_end_matches('\n').to_owned();
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > LINES || self.bytes > BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// The last so many, oldest first.
    pub(crate) fn last(&self, lines: usize) -> Vec<String> {
        self.lines.iter().skip(self.lines.len().saturating_sub(lines)).cloned().collect()
    }

    /// All that are kept.
    pub(crate) fn all(&self) -> Vec<String> {
        self.last(LINES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_by_lines_and_bytes() {
        let mut kept = Kept::default();
        for number in 0..2 * LINES {
            kept.push(format!("{number}\n").as_bytes());
        }
        assert_eq!(kept.all().len(), LINES);
        assert_eq!(kept.last(1), [format!("{}", 2 * LINES - 1)]);
        for _ in 0..LINES {
            kept.push(&[b'x'; 4096]);
        }
        assert_eq!(kept.all().len(), BYTES / 4096);
    }
}
