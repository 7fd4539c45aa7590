//! Messages to and fro, each of which is verified byte for byte at the side that gets it.

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{SendFlags, SendOp};

use super::link::{Data, Link};
use crate::demo::pattern;
use crate::demo::protocol::{Answer, Operation, Side};

/// Sizes of messages in bytes: one packet and many, whole words and odd tails, up to 1 MiB.
const SIZES: [u32; 9] = [1, 8, 63, 64, 512, 4096, 4097, 65536, 1 << 20];
/// Rounds of each size.
const ROUNDS: u32 = 4;
/// How far into the other side's window the next write of the same size goes: not aligned.
const STEP: u32 = 4099;

/// One message: its size, which of its size, who sends it, and how.
#[derive(Clone, Copy)]
struct Message {
    operation: Operation,
    sender: Side,
    bytes: u32,
    round: u32,
    /// Number of messages before this one.
    number: u32,
}

impl Message {
    fn seed(&self) -> u64 {
        let sender = u64::from(self.sender == Side::Second);
        let operation = self.operation as u64;
        u64::from(self.number) << 8 | operation << 1 | sender
    }

    /// Every second message is the variant: with immediate data, inline if it is small.
    fn is_variant(&self) -> bool {
        self.round % 2 == 1
    }

    fn remote_offset(&self) -> u32 {
        self.round * STEP
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes as usize];
        pattern::fill(self.seed(), &mut bytes);
        bytes
    }

    fn check(&self, seen: &[u8]) -> Result<()> {
        pattern::check(self.seed(), seen).with_context(|| {
            format!("{} of {} bytes, round {}", self.operation.name(), self.bytes, self.round)
        })
    }
}

/// Plays one side of the game.
pub(super) fn run(link: &mut Link, operation: Operation, side: Side) -> Result<Answer> {
    let (mut messages, mut total) = (0, 0);
    let mut number = 0;
    let most = link.max_message();
    for bytes in SIZES.into_iter().filter(|bytes| *bytes <= most) {
        for round in 0..ROUNDS {
            for sender in [Side::First, Side::Second] {
                let message = Message { operation, sender, bytes, round, number };
                number += 1;
                if sender == side {
                    give(link, &message)?;
                } else {
                    get(link, &message)?;
                    messages += 1;
                    total += u64::from(bytes);
                }
            }
        }
    }
    Ok(Answer::Verified { messages, bytes: total })
}

fn give(link: &mut Link, message: &Message) -> Result<()> {
    match message.operation {
        Operation::Send => give_by_send(link, message),
        Operation::Write => give_by_write(link, message),
        _ => {
            link.load(0, &message.content())?;
            notify(link, message, SendFlags::SIGNALED)?;
            // The other side says when it has read.
            take_notice(link, message)
        }
    }
}

fn get(link: &mut Link, message: &Message) -> Result<()> {
    let mut seen = vec![0; message.bytes as usize];
    match message.operation {
        Operation::Send => {
            let wc = link.wait_received()?;
            ensure!(wc.byte_len == message.bytes, "{} bytes instead of {}", wc.byte_len, message.bytes);
            check_immediate(message, wc.imm)?;
            link.message(&wc, &mut seen)?;
            link.post_receive(wc.wr_id)?;
        }
        Operation::Write => {
            if message.is_variant() {
                let wc = link.wait_received()?;
                ensure!(wc.byte_len == message.bytes, "{} bytes instead of {}", wc.byte_len, message.bytes);
                check_immediate(message, wc.imm)?;
                link.post_receive(wc.wr_id)?;
            } else {
                take_notice(link, message)?;
            }
            link.window.read(message.remote_offset() as usize, &mut seen).context("read the window")?;
        }
        _ => {
            take_notice(link, message)?;
            let far = link.far()?.outbox;
            let op = SendOp::Read { remote_addr: far.addr, rkey: far.rkey };
            link.post(op, Data::Window(0, message.bytes), SendFlags::default())?;
            // The fence holds the notice back until the read is done.
            notify(link, message, SendFlags { fence: true, ..SendFlags::SIGNALED })?;
            link.window.read(0, &mut seen).context("read the window")?;
        }
    }
    message.check(&seen)
}

fn give_by_send(link: &mut Link, message: &Message) -> Result<()> {
    let content = message.content();
    let op = if message.is_variant() { SendOp::SendImm(message.number) } else { SendOp::Send };
    let flags = SendFlags { solicited: message.is_variant(), ..SendFlags::SIGNALED };
    let number = if message.is_variant() && content.len() <= link.max_inline() {
        link.post(op, Data::Inline(&content), flags)?
    } else {
        link.load(0, &content)?;
        link.post(op, Data::Outbox(0, message.bytes), flags)?
    };
    link.wait_sent(number)
}

fn give_by_write(link: &mut Link, message: &Message) -> Result<()> {
    link.load(0, &message.content())?;
    let far = link.far()?.window;
    let remote_addr = far.addr + u64::from(message.remote_offset());
    let data = Data::Outbox(0, message.bytes);
    if message.is_variant() {
        let op = SendOp::WriteImm { remote_addr, rkey: far.rkey, imm: message.number };
        let number = link.post(op, data, SendFlags::SIGNALED)?;
        return link.wait_sent(number);
    }
    link.post(SendOp::Write { remote_addr, rkey: far.rkey }, data, SendFlags::default())?;
    // Comes after what was written before it.
    notify(link, message, SendFlags::SIGNALED)
}

/// Sends a small message with the number of the message that it is about.
fn notify(link: &mut Link, message: &Message, flags: SendFlags) -> Result<()> {
    let number = link.post(SendOp::Send, Data::Inline(&message.number.to_le_bytes()), flags)?;
    link.wait_sent(number)
}

/// Waits for the small message about a message.
fn take_notice(link: &mut Link, message: &Message) -> Result<()> {
    let wc = link.wait_received()?;
    let mut number = [0; 4];
    ensure!(wc.byte_len == 4, "a notice of {} bytes", wc.byte_len);
    link.message(&wc, &mut number)?;
    let number = u32::from_le_bytes(number);
    ensure!(number == message.number, "a notice of message {number} instead of {}", message.number);
    link.post_receive(wc.wr_id)
}

fn check_immediate(message: &Message, seen: Option<u32>) -> Result<()> {
    let expected = message.is_variant().then_some(message.number);
    ensure!(seen == expected, "immediate data {seen:?} instead of {expected:?}");
    Ok(())
}
