//! What the bench tells its players to do, and what they answer: JSON, a line each, on their standard input and
//! output.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::plan::{Operation, Task, Way};

/// What a player is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Bring up a card of its own, with two queue pairs connected to each other. Answer: [`Answer::Done`].
    OpenAlone,
    /// Open the device at a socket and make a queue pair. Answer: [`Answer::Ready`].
    OpenGuest { socket: PathBuf },
    /// Connect the queue pair. Answer: [`Answer::Done`].
    Connect { far: Endpoint },
    /// Post messages and wait for them. Answer: [`Answer::Nanoseconds`].
    Measure { task: Task, way: Way },
    /// Be the other end of sends. Answer: [`Answer::Done`].
    Serve { task: Task },
    /// Copy memory of a memfd to that of another. Answer: [`Answer::Nanoseconds`].
    Copy { bytes: u32, times: u32 },
    /// Send a cache line to another thread and back. Answer: [`Answer::Nanoseconds`].
    CacheLine { rounds: u32 },
    /// Post so many messages at once, and take their completions, so many times. Answer: [`Answer::Done`].
    Count { operation: Operation, windows: u32, way: Way },
    /// Wait for events instead of polling. Answer: [`Answer::Nanoseconds`].
    Sleep { messages: u32 },
    /// End everything and leave. Answer: [`Answer::Done`].
    Leave,
}

/// What a player answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Ready(Endpoint),
    /// Nanoseconds for one message, copy or round trip: a number for each batch.
    Nanoseconds(Vec<f64>),
    /// It could not be done.
    Failed(String),
}

/// What a side has to know of the other to connect and to reach its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) lid: u16,
    pub(crate) qpn: u32,
    /// Address and rkey of the memory that it offers.
    pub(crate) addr: u64,
    pub(crate) rkey: u32,
}
