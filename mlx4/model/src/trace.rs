//! A readable trace of what a driver does with an HCA: each command with its mailboxes, decoded and as
//! bytes, resets, and the first send WQEs of each QP.
//!
//! One record a line, `HCA number what`; below a command stand its mailboxes, each as one line of hex (for
//! golden bytes) and one of decoded fields; below a WQE its bytes. Doorbells are not traced.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A trace that several HCAs write to.
#[derive(Debug)]
pub struct Trace {
    out: Mutex<Out>,
}

#[derive(Debug)]
struct Out {
    file: BufWriter<File>,
    number: u64,
    failed: bool,
}

impl Trace {
    /// Creates or overwrites the file.
    ///
    /// # Errors
    /// The file can't be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Self { out: Mutex::new(Out { file, number: 0, failed: false }) })
    }

    /// Writes a record: what happened at the HCA with a node GUID, and indented lines below it.
    pub(crate) fn record(&self, node_guid: u64, what: &str, below: &[String]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let number = out.number;
        out.number += 1;
        let mut text = format!("{node_guid:016x} {number} {what}\n");
        for line in below {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
        let written = out.file.write_all(text.as_bytes()).and_then(|()| out.file.flush());
        if let (Err(error), false) = (written, out.failed) {
            log::warn!("trace can't be written: {error}");
            out.failed = true;
        }
    }
}

/// Bytes as hexadecimal digits, two each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
