//! The large transfer: all of the outbox to the other side's window, by RDMA writes. The checksum is computed
//! from what was put into the one, and from what arrived in the other.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{SendFlags, SendOp};

use super::link::{Data, Link};
use crate::demo::pattern;
use crate::demo::protocol::{Answer, Side};

/// Bytes of one write.
const PIECE: u32 = 1 << 20;
/// Writes that are outstanding.
const DEPTH: u64 = 32;
/// The immediate data of the last write.
const LAST: u32 = 0x1a57;
/// Seed of the first piece.
const SEED: u64 = 0x7261_6e73_6665_7200;

/// Plays one side.
pub(super) fn run(link: &mut Link, side: Side) -> Result<Answer> {
    match side {
        Side::First => give(link),
        Side::Second => get(link),
    }
}

fn give(link: &mut Link) -> Result<Answer> {
    let pieces = link.outbox.len() as u64 / u64::from(PIECE);
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; PIECE as usize];
    for number in 0..pieces {
        pattern::fill(SEED + number, &mut piece);
        hasher.update(&piece);
        link.load(offset(number)?, &piece)?;
    }
    let far = link.far()?.window;
    let start = Instant::now();
    for number in 0..pieces {
        let at = offset(number)?;
        let (remote_addr, rkey) = (far.addr + at as u64, far.rkey);
        let op = if number + 1 == pieces {
            SendOp::WriteImm { remote_addr, rkey, imm: LAST }
        } else {
            SendOp::Write { remote_addr, rkey }
        };
        link.wait_room(DEPTH - 1)?;
        link.post(op, Data::Outbox(at, PIECE), SendFlags::SIGNALED)?;
    }
    link.wait_room(0)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Answer::Transferred { bytes: pieces * u64::from(PIECE), crc32: hasher.finalize(), seconds })
}

fn get(link: &mut Link) -> Result<Answer> {
    let start = Instant::now();
    let wc = link.wait_received()?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(wc.imm == Some(LAST), "immediate data {:?} instead of {LAST:#x}", wc.imm);
    link.post_receive(wc.wr_id)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; PIECE as usize];
    let pieces = link.window.len() as u64 / u64::from(PIECE);
    for number in 0..pieces {
        link.window.read(offset(number)?, &mut piece).context("read the window")?;
        hasher.update(&piece);
    }
    Ok(Answer::Transferred { bytes: pieces * u64::from(PIECE), crc32: hasher.finalize(), seconds })
}

fn offset(piece: u64) -> Result<usize> {
    Ok(usize::try_from(piece * u64::from(PIECE))?)
}
