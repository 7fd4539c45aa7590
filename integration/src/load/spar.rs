//! Requests that are always outstanding, until the other end is gone.

use anyhow::{Context as _, Result, ensure};
use paraverbs_verbs::{SendData, SendFlags, SendOp, SendWr, Wc, WcStatus};

use super::End;
use crate::peer::Endpoint;

/// Bytes of one request.
const BYTES: u32 = 256 << 10;
/// Bytes of memory that a sparring end needs: it writes from the first half and reads to the second.
pub const SPAR_BYTES: usize = 2 * BYTES as usize;
/// Requests that are outstanding.
pub const SPAR_DEPTH: u32 = 8;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Requests that succeeded.
    pub done: u64,
    /// How the first one ended that didn't.
    pub status: WcStatus,
}

/// Writes to the other end and reads from it, [`SPAR_DEPTH`] requests at a time, until one of them fails; the
/// rest is flushed then. `busy` is called when all have been posted for the first time.
///
/// # Errors
/// A verb fails, or requests behind the failed one aren't flushed.
pub fn spar(end: &End, to: Endpoint, busy: impl FnOnce()) -> Result<Ending> {
    let mut posted = 0;
    for _ in 0..SPAR_DEPTH {
        post(end, to, posted)?;
        posted += 1;
    }
    busy();
    let mut ended: u64 = 0;
    let mut failed = None;
    let mut wcs = [Wc::default(); SPAR_DEPTH as usize];
    while ended < posted {
        for wc in end.completions(&mut wcs)? {
            match failed {
                None if wc.status == WcStatus::Success => {
                    post(end, to, posted)?;
                    posted += 1;
                }
                None => failed = Some(Ending { done: ended, status: wc.status }),
                Some(ending) => {
                    ensure!(wc.status == WcStatus::WrFlushErr, "{:?} after {ending:?}", wc.status);
                }
            }
            ended += 1;
        }
    }
    failed.context("no request failed")
}

fn post(end: &End, to: Endpoint, number: u64) -> Result<()> {
    let (op, offset) = if number.is_multiple_of(2) {
        (SendOp::Write { remote_addr: to.address, rkey: to.rkey }, 0)
    } else {
        let half = u64::from(BYTES);
        (SendOp::Read { remote_addr: to.address + half, rkey: to.rkey }, BYTES as usize)
    };
    let data = [end.mr.sge(offset, BYTES)];
    let data = SendData::Sges(&data);
    Ok(end.qp.post_send(&SendWr { wr_id: number, op, data, flags: SendFlags::SIGNALED })?)
}
