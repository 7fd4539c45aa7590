//! Queue pairs that exchange data, each of them somebody's verbs: those of a stock guest, or ours.
//!
//! A [`Peer`] is a connected queue pair with memory that its other end may read and write. A test connects two
//! of them ([`connect`]) and has them exchange data that both ends look at ([`exchange`]), or plays ping-pong
//! with a program that others wrote ([`ping_pong`]). Connections end by each other's faults: [`intrude`],
//! [`trespass`], [`starve`], [`miss`].

mod pingpong;
mod stock;

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use pingpong::ping_pong;
pub use stock::StockPeer;
pub(crate) use stock::compile;

/// The bytes of memory that a peer needs for [`exchange`].
pub const EXCHANGE_BYTES: usize = 4 << 20;

/// Lengths of messages, and how many of each: inline where there is such a thing, across pages at odd
/// addresses, and of many packets.
const MESSAGES: [(usize, usize); 4] = [(8, 32), (1, 3), (4097, 9), (1 << 20, 3)];
/// The same of datagrams. Each has a place for its GRH before it, so they come one by one.
const DATAGRAMS: [(usize, usize); 4] = [(8, 1), (1, 1), (1001, 1), (4096, 1)];
/// The Q_Key of datagrams.
pub const QKEY: u32 = 0x1111_1111;
/// What is before a datagram in its receive, whether there is a GRH or not.
pub const GRH_BYTES: usize = 40;
/// Where messages lie at their source and their destination.
const OFFSETS: [usize; 2] = [4097, 8190];
/// What is looked at before and behind the destination.
const GUARD_BYTES: usize = 100;

/// How the other end of a connection is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The port's LID.
    pub lid: u16,
    /// The queue pair.
    pub qpn: u32,
    /// The PSN of its first request.
    pub psn: u32,
    /// The start of its memory.
    pub address: u64,
    /// The key of its memory.
    pub rkey: u32,
}

/// The service of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Reliable.
    Rc,
    /// Unreliable: without reads and atomics.
    Uc,
    /// Datagrams: sends of at most 4096 bytes.
    Ud,
}

impl Service {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rc => "rc",
            Self::Uc => "uc",
            Self::Ud => "ud",
        }
    }

    fn operations(self) -> &'static [Operation] {
        match self {
            Self::Rc => &[Operation::Send, Operation::Write, Operation::Read],
            Self::Uc => &[Operation::Send, Operation::Write],
            Self::Ud => &[Operation::Send],
        }
    }

    fn messages(self) -> &'static [(usize, usize)] {
        if self == Self::Ud { &DATAGRAMS } else { &MESSAGES }
    }

    /// How many messages [`exchange`] takes, in both directions.
    pub fn exchange_messages(self) -> usize {
        let one_way: usize = self.messages().iter().map(|(_, count)| count).sum();
        2 * self.operations().len() * one_way
    }
}

/// What both ends of a connection are set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Path MTU in bytes, 256 to 4096.
    pub mtu: u32,
    /// Local ACK timeout: 4.096 µs × 2^n.
    pub timeout: u8,
    /// Retries, 0 to 7.
    pub retries: u8,
    /// Retries after RNR NAKs; 7: without end.
    pub rnr_retries: u8,
}

impl Default for Terms {
    /// An MTU of 2048 bytes, a second until a retry, and all the retries that there are.
    fn default() -> Self {
        Self { mtu: 2048, timeout: 18, retries: 7, rnr_retries: 7 }
    }
}

/// An atomic operation on a word of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    /// Adds, modulo 2^64.
    FetchAdd {
        /// What is added.
        add: u64,
    },
    /// Writes if the word is as expected.
    CompareSwap {
        /// What is expected.
        compare: u64,
        /// What is written then.
        swap: u64,
    },
}

/// A stretch of an end's memory: `count` messages of `length` bytes, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Where it starts, in bytes from the start of the memory.
    pub offset: usize,
    /// The bytes of one message.
    pub length: usize,
    /// How many messages; a peer has room for 64.
    pub count: usize,
}

impl Stretch {
    /// The bytes of all messages.
    pub fn bytes(&self) -> usize {
        self.length * self.count
    }

    /// What lies before (and before a GRH) and behind.
    fn guards(&self) -> [Self; 2] {
        [self.offset - GRH_BYTES - GUARD_BYTES, self.offset + self.bytes()].map(|offset| Self {
            offset,
            length: GUARD_BYTES,
            count: 1,
        })
    }
}

/// The status of a work completion, an `ibv_wc_status`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// The queue pair was in ERR.
    pub const WR_FLUSH_ERR: Self = Self(5);
    /// The other end can't do this.
    pub const REM_INV_REQ_ERR: Self = Self(9);
    /// The other end doesn't let this key do this to this address.
    pub const REM_ACCESS_ERR: Self = Self(10);
    /// Nobody answers.
    pub const RETRY_EXC_ERR: Self = Self(12);
    /// The other end has no receive.
    pub const RNR_RETRY_EXC_ERR: Self = Self(13);
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SUCCESS => f.write_str("IBV_WC_SUCCESS"),
            Self::REM_INV_REQ_ERR => f.write_str("IBV_WC_REM_INV_REQ_ERR"),
            Self::WR_FLUSH_ERR => f.write_str("IBV_WC_WR_FLUSH_ERR"),
            Self::REM_ACCESS_ERR => f.write_str("IBV_WC_REM_ACCESS_ERR"),
            Self::RETRY_EXC_ERR => f.write_str("IBV_WC_RETRY_EXC_ERR"),
            Self::RNR_RETRY_EXC_ERR => f.write_str("IBV_WC_RNR_RETRY_EXC_ERR"),
            Self(other) => write!(f, "ibv_wc_status {other}"),
        }
    }
}

/// A queue pair in INIT, with memory that its other end may read and write.
///
/// Every method fails if a verb does, if a stretch isn't inside the memory, or if what is waited for
/// doesn't come in time. A completion that isn't a success is no failure but a [`Status`]; it is the first
/// one of its kind, and those behind it aren't waited for.
pub trait Peer {
    /// How it is reached.
    fn endpoint(&self) -> Endpoint;

    /// Takes the queue pair to RTR and RTS.
    fn connect(&mut self, to: &Endpoint, terms: &Terms) -> Result<()>;

    /// Writes the pattern of a seed over a stretch, as over one piece.
    fn fill(&mut self, at: Stretch, seed: u32) -> Result<()>;

    /// Compares a stretch with the pattern of a seed; the failure says where it differs.
    fn verify(&mut self, at: Stretch, seed: u32) -> Result<()>;

    /// Posts a receive for each message.
    fn post_recv(&mut self, at: Stretch) -> Result<()>;

    /// Waits until as many messages of that length have been received.
    fn received(&mut self, at: Stretch) -> Result<Status>;

    /// Sends all messages, and waits until they are acknowledged.
    fn send(&mut self, at: Stretch) -> Result<Status>;

    /// Writes all messages to consecutive addresses of the other end, and waits for that.
    fn write(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status>;

    /// Reads all messages from consecutive addresses of the other end, and waits for that.
    fn read(&mut self, at: Stretch, address: u64, rkey: u32) -> Result<Status>;

    /// Has the other end's word at `address` changed, and waits for that; what it was goes to the word at `result`.
    fn atomic(&mut self, result: usize, address: u64, rkey: u32, operation: Atomic) -> Result<Status>;

    /// Writes the word of 8 bytes at an offset.
    fn put_word(&mut self, at: usize, value: u64) -> Result<()>;

    /// Reads the word of 8 bytes at an offset.
    fn word(&mut self, at: usize) -> Result<u64>;

    /// The queue pair's state by its name in verbs (`RTS`, `ERR`), as the HCA is asked for it.
    fn state(&mut self) -> Result<String>;
}

/// The first `bytes` bytes of the pattern of a seed.
pub fn pattern(seed: u32, bytes: usize) -> Vec<u8> {
    let start = seed.wrapping_mul(40_503);
    let mixed = (1..=bytes).map(|position| {
        let position = u32::try_from(position & 0xffff_ffff).unwrap_or_default();
        position.wrapping_mul(2_654_435_761).wrapping_add(start)
    });
    mixed.map(|mixed| (mixed >> 24 ^ mixed >> 11).to_le_bytes()[0]).collect()
}

/// Compares bytes with the pattern of a seed.
///
/// # Errors
/// They differ; the message says where.
pub fn compare(found: &[u8], seed: u32) -> Result<()> {
    let expected = pattern(seed, found.len());
    match found.iter().zip(&expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(byte) => {
            bail!("byte {byte} of {} is {}, not {}", found.len(), found[byte], expected[byte])
        }
    }
}

/// Connects two peers to each other.
///
/// # Errors
/// A transition is refused.
pub fn connect(one: &mut dyn Peer, other: &mut dyn Peer, terms: &Terms) -> Result<()> {
    one.connect(&other.endpoint(), terms)?;
    other.connect(&one.endpoint(), terms)
}

/// How data gets from one peer to the other.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Send,
    Write,
    Read,
}

/// Has two connected peers exchange messages by send, write and (RC) read, in both directions; both ends look at
/// their data, and the destination at what lies around it too. Gives the number of messages.
///
/// # Errors
/// An operation fails, or data is not what it should be; the message says which.
pub fn exchange(one: &mut dyn Peer, other: &mut dyn Peer, service: Service) -> Result<usize> {
    let (mut seed, mut messages) = (0, 0);
    for &operation in service.operations() {
        for &(length, count) in service.messages() {
            let what = |from: &str| format!("{operation:?} of {count} x {length} bytes from the {from}");
            let [from, to] = OFFSETS.map(|offset| Stretch { offset, length, count });
            seed += 4;
            transfer(operation, (&mut *one, from), (&mut *other, to), seed).with_context(|| what("first"))?;
            seed += 4;
            transfer(operation, (&mut *other, from), (&mut *one, to), seed)
                .with_context(|| what("second"))?;
            messages += 2 * count;
        }
    }
    Ok(messages)
}

fn transfer(
    operation: Operation,
    (source, from): (&mut dyn Peer, Stretch),
    (sink, to): (&mut dyn Peer, Stretch),
    seed: u32,
) -> Result<()> {
    source.fill(from, seed)?;
    sink.fill(to, seed + 1)?;
    let guards = to.guards();
    for guard in guards {
        sink.fill(guard, seed + 2)?;
    }
    let remote = |end: Endpoint, at: Stretch| (end.address + at.offset as u64, end.rkey);
    let status = match operation {
        Operation::Send => {
            sink.post_recv(to)?;
            let status = source.send(from)?;
            let received = sink.received(to)?;
            ensure!(received == Status::SUCCESS, "receives end in {received:?}");
            status
        }
        Operation::Write => {
            let (address, rkey) = remote(sink.endpoint(), to);
            source.write(from, address, rkey)?
        }
        Operation::Read => {
            let (address, rkey) = remote(source.endpoint(), from);
            sink.read(to, address, rkey)?
        }
    };
    ensure!(status == Status::SUCCESS, "requests end in {status:?}");
    if matches!(operation, Operation::Write) {
        written(source, sink)?;
    }
    sink.verify(to, seed).context("the destination")?;
    for guard in guards {
        sink.verify(guard, seed + 2).context("around the destination")?;
    }
    source.verify(from, seed).context("the source")
}

/// Waits until what was written is there: a write of an unreliable connection completes before that, a send after it
/// comes after it.
fn written(source: &mut dyn Peer, sink: &mut dyn Peer) -> Result<()> {
    let byte = Stretch { offset: 0, length: 1, count: 1 };
    sink.post_recv(byte)?;
    let statuses = [source.send(byte)?, sink.received(byte)?];
    ensure!(statuses == [Status::SUCCESS; 2], "the send behind a write ends in {statuses:?}");
    Ok(())
}

/// Has one of two connected peers change a word of the other's by each atomic operation.
///
/// # Errors
/// One fails, or a word is not what it should be.
pub fn count(one: &mut dyn Peer, other: &mut dyn Peer) -> Result<()> {
    const RESULT: usize = 64;
    let start = u64::MAX - 3;
    let Endpoint { address, rkey, .. } = other.endpoint();
    other.put_word(0, start)?;
    let mut expected = start;
    let steps = [
        (Atomic::FetchAdd { add: 5 }, 1),
        (Atomic::CompareSwap { compare: 1, swap: u64::MAX / 3 }, u64::MAX / 3),
        (Atomic::CompareSwap { compare: 1, swap: 7 }, u64::MAX / 3),
        (Atomic::FetchAdd { add: 0 }, u64::MAX / 3),
    ];
    for (operation, after) in steps {
        one.put_word(RESULT, 0)?;
        let status = one.atomic(RESULT, address, rkey, operation)?;
        let (found, left) = (one.word(RESULT)?, other.word(0)?);
        ensure!(
            (status, found, left) == (Status::SUCCESS, expected, after),
            "{operation:?} ends in {status:?}, finds {found:#x} and leaves {left:#x}, not {expected:#x} and {after:#x}"
        );
        expected = after;
    }
    Ok(())
}

/// Has one of two peers in INIT send where the other has no receive, until the retries are used up: that ends the
/// connection at the sender, and only there.
///
/// # Errors
/// It ends otherwise.
pub fn starve(sender: &mut dyn Peer, receiver: &mut dyn Peer) -> Result<()> {
    connect(sender, receiver, &Terms { rnr_retries: 2, ..Terms::default() })?;
    let status = sender.send(Stretch { offset: 0, length: 100, count: 1 })?;
    ensure!(status == Status::RNR_RETRY_EXC_ERR, "the send ends in {status:?}");
    let states = [sender.state()?, receiver.state()?];
    ensure!(states == ["ERR", "RTS"], "sender and receiver are in {states:?}");
    Ok(())
}

/// Has one of two peers in INIT send to a queue pair that isn't connected to it: nobody answers, and the sender's
/// retries are used up.
///
/// # Errors
/// It ends otherwise.
pub fn miss(sender: &mut dyn Peer, unconnected: &mut dyn Peer) -> Result<()> {
    let terms = Terms { timeout: 12, retries: 2, ..Terms::default() };
    sender.connect(&unconnected.endpoint(), &terms)?;
    let status = sender.send(Stretch { offset: 0, length: 100, count: 1 })?;
    ensure!(status == Status::RETRY_EXC_ERR, "the send ends in {status:?}");
    let states = [sender.state()?, unconnected.state()?];
    ensure!(states == ["ERR", "INIT"], "sender and the other one are in {states:?}");
    Ok(())
}

/// Has one of two connected peers write with a key that the other never gave out: the write is refused, the
/// memory stays as it was, and the connection ends at both ends.
///
/// # Errors
/// It ends otherwise.
pub fn intrude(intruder: &mut dyn Peer, victim: &mut dyn Peer) -> Result<()> {
    let small = Stretch { offset: 0, length: 8, count: 1 };
    let Endpoint { address, rkey, .. } = victim.endpoint();
    victim.fill(small, 1)?;
    intruder.fill(small, 2)?;
    victim.post_recv(Stretch { offset: 4096, ..small })?;
    let status = intruder.write(small, address, rkey ^ 1)?;
    ensure!(status == Status::REM_ACCESS_ERR, "the write ends in {status:?}");
    let flushed = victim.received(small)?;
    ensure!(flushed == Status::WR_FLUSH_ERR, "the victim's receive ends in {flushed:?}");
    let states = [intruder.state()?, victim.state()?];
    ensure!(states == ["ERR", "ERR"], "intruder and victim are in {states:?}");
    victim.verify(small, 1).context("the victim's memory")
}

/// What one end of a connection asks of the other in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trespass {
    /// Reads with a key that was never given out.
    Read,
    /// Writes to where the memory has ended.
    WriteBehind,
    /// Changes a word with a key that was never given out.
    Atomic,
    /// Changes a word at an address that isn't a multiple of 8.
    Misaligned,
}

impl Trespass {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::WriteBehind, Self::Atomic, Self::Misaligned];
}

/// Has one of two connected peers, each with `bytes` bytes of memory, ask the other for something that it refuses:
/// memory stays as it was, and the connection ends at both ends.
///
/// # Errors
/// It ends otherwise.
pub fn trespass(intruder: &mut dyn Peer, victim: &mut dyn Peer, bytes: usize, what: Trespass) -> Result<()> {
    let small = Stretch { offset: 0, length: 8, count: 1 };
    let last = Stretch { offset: bytes - 8, ..small };
    let Endpoint { address, rkey, .. } = victim.endpoint();
    for at in [small, last] {
        victim.fill(at, 1)?;
    }
    intruder.fill(small, 2)?;
    victim.post_recv(Stretch { offset: 4096, ..small })?;
    let add = Atomic::FetchAdd { add: 1 };
    let status = match what {
        Trespass::Read => intruder.read(small, address, rkey ^ 1)?,
        Trespass::WriteBehind => intruder.write(small, address + last.offset as u64 + 1, rkey)?,
        Trespass::Atomic => intruder.atomic(0, address, rkey ^ 1, add)?,
        Trespass::Misaligned => intruder.atomic(0, address + 4, rkey, add)?,
    };
    let expected =
        if what == Trespass::Misaligned { Status::REM_INV_REQ_ERR } else { Status::REM_ACCESS_ERR };
    ensure!(status == expected, "{what:?} ends in {status:?}");
    let flushed = victim.received(small)?;
    ensure!(flushed == Status::WR_FLUSH_ERR, "after {what:?}, the victim's receive ends in {flushed:?}");
    let states = [intruder.state()?, victim.state()?];
    ensure!(states == ["ERR", "ERR"], "after {what:?}, intruder and victim are in {states:?}");
    for at in [small, last] {
        victim.verify(at, 1).with_context(|| format!("the victim's memory after {what:?}"))?;
    }
    intruder.verify(small, 2).with_context(|| format!("the intruder's memory after {what:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_of_another_seed_or_place_is_another() {
        let one = pattern(1, 1 << 20);
        assert_eq!(pattern(1, 100), one[..100]);
        let same = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        // Of independent bytes, one in 256 is the same by chance.
        for other in [pattern(2, 1 << 20), one[1..].to_vec(), one[4096..].to_vec()] {
            assert!(same(&one, &other) < (1 << 20) / 64);
        }
    }

    #[test]
    fn compare_finds_the_first_byte_that_differs() {
        let mut bytes = pattern(7, 5000);
        compare(&bytes, 7).unwrap();
        bytes[4097] ^= 1;
        let error = compare(&bytes, 7).unwrap_err().to_string();
        assert!(error.starts_with("byte 4097 of 5000 is "), "{error}");
    }

    #[test]
    fn guards_are_next_to_the_stretch() {
        let at = Stretch { offset: 8190, length: 3, count: 5 };
        let [before, behind] = at.guards();
        assert_eq!((before.offset + before.bytes(), behind.offset), (8190 - 40, 8205));
    }

    #[test]
    fn exchange_fits_into_its_memory_and_counts_its_messages() {
        for (length, count) in MESSAGES.into_iter().chain(DATAGRAMS) {
            for offset in OFFSETS {
                let [before, behind] = Stretch { offset, length, count }.guards();
                assert!(before.offset < offset && behind.offset + behind.bytes() <= EXCHANGE_BYTES);
            }
        }
        let counts = [Service::Rc, Service::Uc, Service::Ud].map(Service::exchange_messages);
        assert_eq!(counts, [282, 188, 8]);
    }
}
