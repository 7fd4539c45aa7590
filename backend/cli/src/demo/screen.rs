//! The demo's output: lines, and on a terminal a last one that tells what is going on just now.

use std::io::{self, IsTerminal, Write};

/// Standard output.
#[derive(Debug)]
pub(crate) struct Screen {
    is_terminal: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stdout().is_terminal() }
    }

    /// Writes a line.
    pub(crate) fn line(&self, text: &str) {
        self.write(&format!("{}{text}\n", self.clear()));
    }

    /// Tells what is going on; the next line takes its place.
    pub(crate) fn progress(&self, text: &str) {
        if self.is_terminal {
            self.write(&format!("{}{text} ...", self.clear()));
        }
    }

    /// Takes away what was going on.
    pub(crate) fn done(&self) {
        self.write(self.clear());
    }

    fn clear(&self) -> &'static str {
        // Start of the line, and erase it.
        if self.is_terminal { "\r\x1b[2K" } else { "" }
    }

    fn write(&self, text: &str) {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            log::debug!("nobody reads stdout: {error}");
        }
    }
}
