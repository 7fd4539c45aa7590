//! What was measured: samples while the bench runs, and the report of their medians.

use std::collections::HashMap;

use serde::Serialize;

use super::plan::{Operation, Quantity, Task, Way};

/// All samples so far.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    messages: HashMap<(Operation, u32, Quantity, Way), Vec<f64>>,
    copies: HashMap<u32, Vec<f64>>,
    cache_line: Vec<f64>,
}

impl Samples {
    pub(crate) fn messages(&mut self, task: &Task, way: Way, taken: Vec<f64>) {
        self.messages.entry((task.operation, task.bytes, task.quantity, way)).or_default().extend(taken);
    }

    pub(crate) fn copies(&mut self, bytes: u32, taken: Vec<f64>) {
        self.copies.entry(bytes).or_default().extend(taken);
    }

    pub(crate) fn cache_line(&mut self, taken: Vec<f64>) {
        self.cache_line.extend(taken);
    }

    /// Median nanoseconds of a message.
    pub(crate) fn message(
        &self,
        operation: Operation,
        bytes: u32,
        quantity: Quantity,
        way: Way,
    ) -> Option<f64> {
        median(self.messages.get(&(operation, bytes, quantity, way))?)
    }

    /// Median nanoseconds of a copy.
    pub(crate) fn copy(&self, bytes: u32) -> Option<f64> {
        median(self.copies.get(&bytes)?)
    }

    /// Median nanoseconds of a cache line's round trip.
    pub(crate) fn line(&self) -> Option<f64> {
        median(&self.cache_line)
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted.get(middle - 1)? + upper) / 2.0) }
}

/// One operation with messages of one size. Times are in nanoseconds; `None`: not run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) operation: Operation,
    pub(crate) bytes: u32,
    pub(crate) alone: Cell,
    pub(crate) inline: Cell,
    pub(crate) guest: Cell,
    /// A copy of so many bytes.
    pub(crate) copy: Option<f64>,
}

/// A row's numbers of one way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    /// From posting to completion; of sends half a round trip.
    pub(crate) latency: Option<f64>,
    /// Time a message takes if many are under way.
    pub(crate) each: Option<f64>,
    /// Why it was not run.
    pub(crate) left_out: Option<String>,
    pub(crate) polls: &'static str,
    pub(crate) cores: usize,
    pub(crate) doorbell: &'static str,
}

impl Row {
    pub(crate) fn cell(&self, way: Way) -> &Cell {
        match way {
            Way::Alone => &self.alone,
            Way::Inline => &self.inline,
            Way::Guest => &self.guest,
        }
    }

    /// Latency of a guest, as a multiple of the driver's alone.
    pub(crate) fn latency_ratio(&self) -> Option<f64> {
        Some(self.guest.latency? / self.alone.latency?)
    }

    /// Time of a message of a guest's, as a multiple of the driver's alone.
    pub(crate) fn time_ratio(&self) -> Option<f64> {
        Some(self.guest.each? / self.alone.each?)
    }

    /// Bandwidth of a guest, as a part of that of a copy.
    pub(crate) fn part_of_copy(&self) -> Option<f64> {
        Some(self.copy? / self.guest.each?)
    }
}

/// The machine, as far as it matters.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or("unknown CPU", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Everything that the bench has found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) command: String,
    /// Whether this program was built with optimisation.
    pub(crate) optimised: bool,
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    pub(crate) rows: Vec<Row>,
    /// Nanoseconds of a cache line's round trip between two threads.
    pub(crate) cache_line: Option<f64>,
    pub(crate) counts: Counts,
}

/// What was counted rather than timed; `Err` says why something was not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Counts {
    /// Payload bytes that guests have posted, and those that the model has copied for them.
    pub(crate) posted_bytes: u64,
    pub(crate) copied_bytes: u64,
    pub(crate) instructions: Result<Instructions, String>,
    pub(crate) system_calls: Result<SystemCalls, String>,
    pub(crate) sleeping: Result<Sleeping, String>,
}

/// Instructions to post a message and take its completion.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Instructions {
    pub(crate) alone: f64,
    pub(crate) guest: f64,
}

/// System calls while a guest polls.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SystemCalls {
    pub(crate) messages: u32,
    /// Those of the guest and of the daemon, by name.
    pub(crate) calls: Vec<(String, u64)>,
}

/// What a message costs if guest and daemon sleep.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sleeping {
    pub(crate) messages: u32,
    /// Median nanoseconds from posting to the completion.
    pub(crate) nanoseconds: f64,
    /// Writes to eventfds by the guest: kicks; and by the daemon.
    pub(crate) guest_writes: Option<u64>,
    pub(crate) daemon_writes: Option<u64>,
}

impl Sleeping {
    pub(crate) fn new(messages: u32, taken: &[f64]) -> Self {
        let nanoseconds = median(taken).unwrap_or(f64::NAN);
        Self { messages, nanoseconds, guest_writes: None, daemon_writes: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_of_unsorted_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
