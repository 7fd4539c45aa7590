//! Queue pairs in error states: every posted work request completes as flushed, those that are posted later
//! too (IBTA vol. 1, 10.3.1.6; Linux waits for it when it drains a queue pair).
//!
//! Posting to a receive queue rings no doorbell, so the doorbell record of a queue pair in ERR is looked at
//! from time to time.

use std::time::{Duration, Instant};

use mlx4_wire::cqe::Syndrome;
use mlx4_wire::eqe::EventType;

use super::Next;
use super::receive::ReceiveWork;
use super::send::SendWork;
use super::side::Side;
use super::wqe::owned;
use crate::hca::qp::Half;

/// Work requests of one queue that are flushed before other queue pairs have their turn.
const BATCH: u32 = 32;

/// How long until a receive queue in ERR is looked at again: longer each time that nothing was there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff(u32);

/// The longest pause is 2^7 ms.
const MAX_DOUBLINGS: u32 = 7;

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(1 << self.0);
        self.0 = (self.0 + 1).min(MAX_DOUBLINGS);
        pause
    }
}

/// Flushes the send queue: the WQE in hand, then what is posted.
pub(super) fn sends(side: &Side<'_>, work: &mut SendWork) -> Next {
    for _ in 0..BATCH {
        let posted = || matches!(owned(side.burst, side.attrs, work.counter()), Ok(Some(_)));
        if work.current.is_none() && !posted() {
            return Next::Idle;
        }
        work.flush(side);
    }
    Next::Again
}

/// Flushes both queues of a queue pair in ERR, sends first.
pub(super) fn all(side: &Side<'_>, work: &mut SendWork) -> Next {
    if side.attrs.xrcd.is_none() {
        match sends(side, work) {
            Next::Idle => {}
            more => return more,
        }
    }
    let mut half = side.qp.receive();
    let Half { attrs, work } = &mut *half;
    receives(&Side { attrs, ..*side }, work)
}

fn receives(side: &Side<'_>, work: &mut ReceiveWork) -> Next {
    if work.in_hand.is_some() {
        side.hca.counters.flushed_wqes.add(1);
        work.fail_in_hand(side, Syndrome::WR_FLUSH_ERR);
    }
    if side.attrs.srq.is_some() || side.attrs.xrcd.is_some() {
        if !std::mem::replace(&mut work.last_wqe, true) {
            side.raise(EventType::SRQ_QP_LAST_WQE);
        }
        return Next::Idle;
    }
    if side.attrs.rq.is_none() {
        return Next::Idle;
    }
    for _ in 0..BATCH {
        match work.take_to_flush(side) {
            Ok(Some(index)) => {
                work.poll = Backoff::default();
                side.hca.counters.flushed_wqes.add(1);
                side.error(false, index, Syndrome::WR_FLUSH_ERR);
            }
            Ok(None) => return Next::At(Instant::now() + work.poll.next()),
            // The driver has taken the record's memory back; nothing more will be posted.
            Err(_) => return Next::Idle,
        }
    }
    Next::Again
}
