//! Data that goes to and fro between two guests, by write, send and read, and is compared at both ends.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{RecvWr, SendData, SendFlags, SendOp, SendWr, Sge, Wc, WcStatus};

use super::End;
use crate::peer::{Endpoint, pattern};

/// Bytes of one message.
const BYTES: usize = 60_001;
/// Where an end keeps what it writes to the other one.
const SOURCE: usize = 0;
/// Where the other end's writes arrive.
const SINK: usize = 1 << 16;
/// Where an end reads the other end's source to.
const COPY: usize = 2 << 16;
/// Bytes of memory that an end of a rally needs.
pub const RALLY_BYTES: usize = 3 << 16;
/// Number of the message that ends a rally.
const LAST: u32 = u32::MAX;

/// Which of the two ends begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This one; it ends the rally when it is told to.
    First,
    /// The other one.
    Second,
}

/// One end of a rally.
#[derive(Debug)]
struct Player<'a> {
    end: &'a End,
    to: Endpoint,
    /// The number that was received and not looked at yet.
    received: Option<u32>,
}

/// Plays until `stop` is set, which only [`Side::First`] looks at. Gives the number of messages that arrived.
///
/// The end has [`RALLY_BYTES`] bytes and is in RTS; the other end too before the first begins.
///
/// # Errors
/// A verb fails, a completion isn't a success, or data isn't what it should be.
pub fn rally(end: &End, to: Endpoint, side: Side, stop: &AtomicBool) -> Result<u64> {
    let mut player = Player { end, to, received: None };
    player.expect()?;
    let mut number = 0;
    if side == Side::First {
        player.serve(number)?;
    }
    loop {
        let received = player.take().with_context(|| format!("after message {number}"))?;
        if received == LAST {
            break;
        }
        player.compare(received)?;
        number = received + 1;
        if side == Side::First && stop.load(Ordering::Relaxed) {
            player.say(LAST)?;
            break;
        }
        player.serve(number).with_context(|| format!("message {number}"))?;
    }
    Ok(u64::from(number))
}

impl Player<'_> {
    /// Posts the receive for the next number.
    fn expect(&self) -> Result<()> {
        Ok(self.end.qp.post_recv(&RecvWr { wr_id: 0, sges: &[] })?)
    }

    /// Writes the message of a number to the other end, and says so.
    fn serve(&mut self, number: u32) -> Result<()> {
        self.end.mr.write(SOURCE, &pattern(number, BYTES))?;
        let remote_addr = self.to.address + SINK as u64;
        self.request(SendOp::Write { remote_addr, rkey: self.to.rkey }, SOURCE)?;
        self.say(number)
    }

    /// Compares what the other end has written here, and what it has written it from.
    fn compare(&mut self, number: u32) -> Result<()> {
        self.look(SINK, number).context("what was written")?;
        self.request(
            SendOp::Read { remote_addr: self.to.address + SOURCE as u64, rkey: self.to.rkey },
            COPY,
        )?;
        self.look(COPY, number).context("what was read")
    }

    fn look(&self, offset: usize, number: u32) -> Result<()> {
        let (mut seen, expected) = (vec![0; BYTES], pattern(number, BYTES));
        self.end.mr.read(offset, &mut seen)?;
        let wrong = seen.iter().zip(&expected).position(|(seen, expected)| seen != expected);
        ensure!(wrong.is_none(), "message {number} is wrong from byte {wrong:?} on");
        Ok(())
    }

    fn say(&mut self, number: u32) -> Result<()> {
        self.post(SendOp::SendImm(number), SendData::Inline(&[]))
    }

    fn request(&mut self, op: SendOp, offset: usize) -> Result<()> {
        let sges: [Sge; 1] = [self.end.mr.sge(offset, u32::try_from(BYTES)?)];
        self.post(op, SendData::Sges(&sges))
    }

    fn post(&mut self, op: SendOp, data: SendData<'_>) -> Result<()> {
        self.end.qp.post_send(&SendWr { wr_id: 1, op, data, flags: SendFlags::SIGNALED })?;
        while !self.progress()? {}
        Ok(())
    }

    /// Waits for the number that the other end says.
    fn take(&mut self) -> Result<u32> {
        loop {
            if let Some(number) = self.received.take() {
                self.expect()?;
                return Ok(number);
            }
            self.progress()?;
        }
    }

    /// Waits for a completion; says whether it was a request's.
    fn progress(&mut self) -> Result<bool> {
        let mut wc = [Wc::default()];
        let [wc] = self.end.completions(&mut wc)? else { return Ok(false) };
        ensure!(wc.status == WcStatus::Success, "a request ended in {:?}", wc.status);
        if wc.opcode.is_receive() {
            self.received = wc.imm;
        }
        Ok(!wc.opcode.is_receive())
    }
}
