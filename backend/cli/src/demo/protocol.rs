//! What the demo tells its guests to do, and what they answer: JSON, a line each, on their standard input and
//! output. This is also how the guests learn each other's addresses.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a guest is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Open the device at a socket, in place of one that is open. Answer: [`Answer::Opened`].
    Open { socket: PathBuf },
    /// Make a link: a queue pair and its memory. Answer: [`Answer::Ready`].
    Prepare { plan: LinkPlan },
    /// Connect the link. Answer: [`Answer::State`].
    Connect { far: Endpoint },
    /// Ping-pong with the other guest. Answer: [`Answer::Verified`].
    PingPong { operation: Operation, side: Side },
    /// Write all of the outbox to the other guest's window, or receive it. Answer: [`Answer::Transferred`].
    Transfer { side: Side },
    /// Write with a wrong rkey, or be written to. Answer: [`Answer::Refused`].
    WrongKey { side: Side },
    /// Change a word of the other guest's memory by atomic operations, or have it changed. Answer:
    /// [`Answer::Verified`].
    Atomics { side: Side },
    /// Measure. Answer: [`Answer::Measured`], of the second side without numbers.
    Measure { operation: Operation, bytes: u32, waiting: Waiting, side: Side },
    /// End the link, with all that it has posted. Answer: [`Answer::Tally`].
    Close,
    /// Close the device and end. Answer: [`Answer::Gone`].
    Leave,
}

/// What a guest answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The device is open.
    Opened { device: String, port: String, lid: u16, mtu: u32, doorbells: Doorbells },
    /// A link is ready to be connected.
    Ready(Endpoint),
    /// The state of the link's queue pair.
    State(String),
    /// So many messages of so many bytes in all have come, as they had to be.
    Verified { messages: u64, bytes: u64 },
    /// What was sent, or came.
    Transferred { bytes: u64, crc32: u32, seconds: f64 },
    /// How the write with the wrong rkey ended here.
    Refused(Refusal),
    /// Numbers.
    Measured(Option<Measurement>),
    /// What was posted on the link, from its start to its end.
    Tally(Tally),
    /// The device is closed.
    Gone,
    /// It did not work.
    Failed(String),
}

/// How doorbells reach the HCA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Doorbells {
    Relayed,
    Direct,
}

impl Doorbells {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Direct => "direct",
        }
    }
}

/// How messages are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Service {
    /// Reliable connection.
    Rc,
    /// The same, with a shared receive queue.
    Srq,
    /// Unreliable connection.
    Uc,
    /// Datagrams.
    Ud,
}

impl Service {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rc => "RC",
            Self::Srq => "RC, SRQ",
            Self::Uc => "UC",
            Self::Ud => "UD",
        }
    }
}

/// What a link is made of. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LinkPlan {
    /// How it carries messages.
    pub(crate) service: Service,
    /// What is sent or read by the other side.
    pub(crate) outbox: usize,
    /// What the other side writes to, and what is read goes to.
    pub(crate) window: usize,
    /// Receive requests.
    pub(crate) receives: u32,
    /// Size of what one receive takes.
    pub(crate) slot: u32,
    /// Whether all receives have the same memory, as their content doesn't matter.
    pub(crate) one_slot: bool,
}

/// Memory that the other side may reach.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RemoteMemory {
    pub(crate) addr: u64,
    pub(crate) rkey: u32,
}

/// What the other side needs to know of a link.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) lid: u16,
    pub(crate) qpn: u32,
    pub(crate) psn: u32,
    pub(crate) outbox: RemoteMemory,
    pub(crate) window: RemoteMemory,
}

/// Who begins, and acts where only one side does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Side {
    First,
    Second,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    Send,
    Write,
    Read,
    FetchAdd,
    CompareSwap,
}

impl Operation {
    /// Those that carry messages of any size.
    pub(crate) const MESSAGES: [Self; 3] = [Self::Send, Self::Write, Self::Read];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Write => "write",
            Self::Read => "read",
            Self::FetchAdd => "fetch-add",
            Self::CompareSwap => "compare-swap",
        }
    }

    /// Whether the program at the other side takes part.
    pub(crate) fn is_two_sided(self) -> bool {
        self == Self::Send
    }
}

/// How a guest waits for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Waiting {
    /// It polls.
    Poll,
    /// It sleeps until the completion channel has an event.
    Sleep,
}

/// How a write with a wrong rkey ended at one side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// How the write completed; at the side that was written to, how a receive did.
    pub(crate) status: String,
    /// The state of the queue pair.
    pub(crate) state: String,
    /// The asynchronous event of the side that was written to.
    pub(crate) event: Option<String>,
    /// Whether the memory is what it was.
    pub(crate) untouched: bool,
}

/// What one side has measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// Median latency in nanoseconds.
    pub(crate) median: u64,
    /// Of a hundred, the slowest but one: in nanoseconds.
    pub(crate) percentile99: u64,
    /// Messages in a second.
    pub(crate) rate: f64,
    /// Payload bytes in a second.
    pub(crate) bandwidth: f64,
}

/// What was posted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Send requests of connections.
    pub(crate) sends: u64,
    /// Send requests of datagrams.
    pub(crate) datagrams: u64,
    /// Receive requests, without those that were left in a shared queue.
    pub(crate) receives: u64,
    /// Receive requests that a message of a connection came for.
    pub(crate) received: u64,
    /// Receive requests that a datagram came for.
    pub(crate) received_datagrams: u64,
    /// Requests that were flushed.
    pub(crate) flushed: u64,
    /// Bytes that send requests of connections carried, atomics aside.
    pub(crate) payload: u64,
    /// Send requests with a wrong rkey.
    pub(crate) wrong_keys: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.sends += other.sends;
        self.datagrams += other.datagrams;
        self.receives += other.receives;
        self.received += other.received;
        self.received_datagrams += other.received_datagrams;
        self.flushed += other.flushed;
        self.payload += other.payload;
        self.wrong_keys += other.wrong_keys;
    }
}
