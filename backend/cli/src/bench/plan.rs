//! What is measured: operations, sizes, ways, and how many messages each takes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Largest message in bytes.
pub(crate) const MOST_BYTES: u32 = 8 << 20;
/// Sizes that are measured if none are asked for, in bytes.
pub(crate) const SIZES: [u32; 12] =
    [2, 8, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20];
/// Sizes of a quick run.
pub(crate) const QUICK_SIZES: [u32; 3] = [2, 4 << 10, 64 << 10];
/// Requests under way at most.
pub(crate) const DEPTH: u32 = 128;
/// Payload bytes under way at most, unless one message has more.
const WINDOW_BYTES: u32 = 8 << 20;
/// Requests of one completion, if as many may be under way.
const SIGNAL_EVERY: u32 = 16;
/// Batches that the messages of one measurement of latency are timed in.
pub(crate) const BATCHES: u32 = 8;

/// What is done with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    /// RDMA write.
    Write,
    /// RDMA read.
    Read,
    /// Send; the other side polls too.
    Send,
}

impl Operation {
    pub(crate) const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Send];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Send => "send",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How messages go: the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// The driver in one process, with the engine in a thread of its own: (a).
    Alone,
    /// The same with the engine in the caller: (a').
    Inline,
    /// A guest through the daemon: (b).
    Guest,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Alone, Self::Inline, Self::Guest];

    /// The letter that the page has for it.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Alone => "a",
            Self::Inline => "a'",
            Self::Guest => "b",
        }
    }

    /// Which threads poll, for an operation.
    pub(crate) fn pollers(self, operation: Operation) -> &'static str {
        match (self, operation) {
            (Self::Alone, Operation::Send) => "caller, other end, engine",
            (Self::Alone, _) => "caller, engine",
            (Self::Inline, _) => "caller",
            (Self::Guest, Operation::Send) => "guest a, guest b, daemon's relay",
            (Self::Guest, _) => "guest a, daemon's relay",
        }
    }

    /// Cores that those threads need.
    pub(crate) fn cores(self, operation: Operation) -> usize {
        match (self, operation) {
            (Self::Inline, _) => 1,
            (_, Operation::Send) => 3,
            _ => 2,
        }
    }

    /// How doorbells reach the HCA.
    pub(crate) fn doorbell(self) -> &'static str {
        match self {
            Self::Alone => "slot, read by the engine's thread",
            Self::Inline => "slot, read by the caller",
            Self::Guest => "slot in guest memory, read by the relay",
        }
    }
}

/// What of messages is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Quantity {
    /// One message after the other: time from posting to completion, of sends half a round trip.
    Latency,
    /// As many under way as there may be: time a message takes.
    Rate,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) operation: Operation,
    pub(crate) quantity: Quantity,
    /// Bytes of a message.
    pub(crate) bytes: u32,
    pub(crate) messages: u32,
}

impl Task {
    /// Messages under way at most.
    pub(crate) fn depth(&self) -> u32 {
        (WINDOW_BYTES / self.bytes.max(1)).clamp(2, DEPTH)
    }

    /// Messages of a one-sided operation that are executed: of latency, whole batches.
    pub(crate) fn executed(&self) -> u32 {
        match self.quantity {
            Quantity::Latency => self.messages / BATCHES * BATCHES,
            Quantity::Rate => self.messages,
        }
    }

    /// Messages of one completion.
    pub(crate) fn signal_every(&self) -> u32 {
        SIGNAL_EVERY.min(self.depth() / 2).max(1)
    }
}

/// How long everything may take.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) sizes: Vec<u32>,
    pub(crate) operations: Vec<Operation>,
    /// How often each measurement is made.
    pub(crate) rounds: u32,
    /// Messages of each measurement, if not as many as fit in `time`.
    pub(crate) messages: Option<u32>,
    /// About how long one measurement takes on an idle machine.
    pub(crate) time: Duration,
}

impl Plan {
    /// Messages of a measurement with so many bytes each.
    pub(crate) fn messages(&self, bytes: u32) -> u32 {
        let nanoseconds = 1000 + u64::from(bytes) / 16;
        let fitting = self.time.as_nanos() / u128::from(nanoseconds);
        let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
        self.messages.unwrap_or(fitting).max(BATCHES)
    }

    /// The measurements of an operation and a size.
    pub(crate) fn tasks(&self, operation: Operation, bytes: u32) -> [Task; 2] {
        let messages = self.messages(bytes);
        [Quantity::Latency, Quantity::Rate].map(|quantity| Task { operation, quantity, bytes, messages })
    }
}

/// A size as people write it: `64K`, `8M` or plain bytes.
pub(crate) fn parse_size(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: u32 = match &text[digits.len()..] {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        unit => return Err(format!("unit {unit:?} of a size; write 64K, 8M or a number of bytes")),
    };
    let number: u32 = digits.parse().map_err(|_| format!("{text:?} is no size; write 64K or 8M"))?;
    match number.checked_mul(factor) {
        Some(bytes @ 1..=MOST_BYTES) => Ok(bytes),
        _ => Err(format!("{text} is not a size from 1 byte to 8 MiB")),
    }
}

/// A size in bytes, as people write it.
pub(crate) fn size(bytes: u32) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(["2", "64K", "8MiB", "512B"].map(parse_size), [2, 65536, 8 << 20, 512].map(Ok));
        for wrong in ["", "0", "9M", "K", "5G", "-1", "99999999999"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!([2, 4096, 1 << 20, 1500].map(size), ["2 B", "4 KiB", "1 MiB", "1500 B"]);
    }

    #[test]
    fn large_messages_are_fewer_and_every_batch_has_one() {
        let plan = Plan {
            sizes: vec![],
            operations: vec![],
            rounds: 1,
            messages: None,
            time: Duration::from_millis(10),
        };
        assert_eq!([2, 65536, 8 << 20].map(|bytes| plan.messages(bytes)), [10_000, 1962, 19]);
        let quick = Plan { messages: Some(1), ..plan };
        assert_eq!(quick.messages(2), BATCHES);
        let depths = [2, 1 << 20, 8 << 20].map(|bytes| quick.tasks(Operation::Write, bytes)[0]);
        assert_eq!(depths.map(|task| (task.depth(), task.signal_every())), [(128, 16), (8, 4), (2, 1)]);
    }
}
