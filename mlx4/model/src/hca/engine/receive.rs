//! The receive half of a queue pair: where its responder stands, and receive WQEs from its own queue or an
//! SRQ.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlx4_wire::Number24;
use mlx4_wire::cqe::{Cqe, CqeSource, Syndrome};
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{DataSeg, INVALID_LKEY};
use zerocopy::FromBytes;

use super::flush::Backoff;
use super::resources::Resources;
use super::sg::SgList;
use super::side::Side;
use super::wqe::pointer;
use crate::hca::qp::Queue;
use crate::hca::ring::RingFault;
use crate::hca::srq::{self, NEXT_SEGMENT_BYTES, Srq};
use crate::hca::tpt::User;

/// Where the receive half of a queue pair stands.
#[derive(Debug, Default)]
pub(crate) struct ReceiveWork {
    /// Next PSN to come.
    pub(super) psn: u32,
    /// Messages completed.
    pub(super) msn: u32,
    /// Receive WQEs taken from the queue pair's own queue.
    counter: u16,
    /// The message that has begun to arrive.
    pub(super) message: Option<Message>,
    /// The receive WQE that was taken and isn't completed.
    pub(super) in_hand: Option<u16>,
    /// The list of the WQE in hand.
    pub(super) list: SgList,
    /// XRC target: the SRQ that the last request named.
    pub(super) shared: Option<Arc<Srq>>,
    wqe: Vec<u8>,
    /// Reads and atomics that were executed.
    pub(super) resources: Resources,
    /// A gap in the PSNs was reported, and nothing that was expected has come since.
    pub(super) gap_reported: bool,
    /// The event of the first packet in RTR has been raised.
    pub(super) established: bool,
    /// The event of the last WQE from the SRQ has been raised.
    pub(super) last_wqe: bool,
    pub(super) poll: Backoff,
}

/// A message of which a part has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: MessageKind,
    /// Bytes that have arrived.
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    Send,
    Write,
}

/// Why there is no receive WQE in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoWqe {
    /// None is posted, or (datagrams only) the next one is too small.
    NotReady,
    /// The queue or its doorbell record can't be read; the queue pair can't go on.
    Unreadable,
}

impl ReceiveWork {
    /// The queue pair goes to RTR, and `psn` is the first to come.
    pub(crate) fn start(&mut self, psn: u32) {
        self.psn = psn & Number24::MAX;
    }

    /// Next PSN to come.
    pub(crate) fn psn(&self) -> u32 {
        self.psn
    }

    /// Message sequence number.
    pub(crate) fn msn(&self) -> u32 {
        self.msn
    }

    /// Receive WQEs taken from the queue pair's own queue, modulo 2^16.
    pub(crate) fn counter(&self) -> u16 {
        self.counter
    }

    /// Whose keys the receive WQEs use: of an SRQ those of its own protection domain.
    pub(super) fn user(&self, side: &Side<'_>) -> User {
        let own = side.user();
        User { pd: self.srq(side).map_or(own.pd, |srq| srq.pd), ..own }
    }

    /// Whose keys remote requests use: those to an XRC target use its SRQ's protection domain, and the queue
    /// pair's own says nothing (IBTA vol. 1, annex A14).
    pub(super) fn remote_user(&self, side: &Side<'_>) -> User {
        let own = side.user();
        User { pd: self.shared.as_ref().map_or(own.pd, |srq| srq.pd), ..own }
    }

    fn srq<'a>(&'a self, side: &Side<'a>) -> Option<&'a Arc<Srq>> {
        self.shared.as_ref().or(side.attrs.srq.as_ref())
    }

    /// Completes a receive WQE. An XRC target does so on its SRQ's CQ, with the SRQ's number.
    pub(super) fn done(&self, side: &Side<'_>, mut cqe: Cqe, solicited: bool) {
        match self.shared.as_ref().and_then(|srq| Some((srq, srq.xrc_cq()?))) {
            Some((srq, cq)) => {
                cqe.source = CqeSource::new().with_remote_qpn(srq.srqn & Number24::MAX);
                side.complete(cq, &cqe, solicited);
            }
            None => side.complete(&side.attrs.receive_cq, &cqe, solicited),
        }
    }

    /// Takes the next receive WQE, unless one is in hand. One that has room for less than `least` bytes
    /// stays where it is.
    pub(super) fn take(&mut self, side: &Side<'_>, least: u64) -> Result<(), NoWqe> {
        if self.in_hand.is_some() {
            return if self.list.bytes() < least { Err(NoWqe::NotReady) } else { Ok(()) };
        }
        let taken = match (self.srq(side).cloned(), side.attrs.rq) {
            (Some(srq), _) => self.take_shared(side, &srq, least),
            (None, Some(rq)) => self.take_own(side, &rq, least).map_err(|fault| unreadable(side, fault)),
            (None, None) => Ok(None),
        };
        match taken {
            Ok(index) => {
                self.in_hand = index;
                index.map(|_| ()).ok_or(NoWqe::NotReady)
            }
            Err(Unreadable) => {
                if side.fail(QpState::ERR) {
                    side.raise(EventType::WQ_CATASTROPHIC);
                }
                Err(NoWqe::Unreadable)
            }
        }
    }

    fn take_own(&mut self, side: &Side<'_>, rq: &Queue, least: u64) -> Result<Option<u16>, RingFault> {
        if self.posted(side)?.wrapping_sub(self.counter) == 0 {
            return Ok(None);
        }
        self.wqe.resize(rq.stride as usize, 0);
        side.attrs.memory.read(side.burst, rq.slot(self.counter), &mut self.wqe)?;
        scatter_list(&self.wqe, &mut self.list);
        if self.list.bytes() < least {
            return Ok(None);
        }
        let index = self.counter;
        self.counter = index.wrapping_add(1);
        Ok(Some(index))
    }

    fn take_shared(&mut self, side: &Side<'_>, srq: &Srq, least: u64) -> Result<Option<u16>, Unreadable> {
        self.wqe.resize(srq.stride(), 0);
        let list = &mut self.list;
        let fits = |wqe: &[u8]| {
            scatter_list(wqe.get(NEXT_SEGMENT_BYTES..).unwrap_or_default(), list);
            list.bytes() >= least
        };
        let taken = srq.take_if(side.burst, &mut self.wqe, fits).map_err(|failed| {
            if let Some(fault) = failed.first {
                side.running.raise(side.burst, srq::event(EventType::SRQ_CATASTROPHIC, srq.srqn));
                unreadable(side, fault);
            }
            Unreadable
        })?;
        let Some(taken) = taken else { return Ok(None) };
        if let Some(limit) = taken.limit {
            side.running.raise(side.burst, limit);
        }
        Ok(Some(taken.index))
    }

    /// Receive WQEs posted to the queue pair's own queue, modulo 2^16.
    fn posted(&self, side: &Side<'_>) -> Result<u16, RingFault> {
        let record = side.burst.dma.load_u32(side.attrs.record, Ordering::Acquire)?;
        let [.., high, low] = record.to_ne_bytes();
        Ok(u16::from_be_bytes([high, low]))
    }

    /// Takes a receive WQE only to flush it; `None` if none is posted.
    ///
    /// # Errors
    /// The doorbell record can't be read.
    pub(super) fn take_to_flush(&mut self, side: &Side<'_>) -> Result<Option<u16>, RingFault> {
        let (posted, index) = (self.posted(side)?, self.counter);
        if posted == index {
            return Ok(None);
        }
        self.counter = index.wrapping_add(1);
        Ok(Some(index))
    }

    /// Completes the WQE in hand, if there is one, with an error.
    pub(super) fn fail_in_hand(&mut self, side: &Side<'_>, syndrome: Syndrome) {
        self.message = None;
        if let Some(index) = self.in_hand.take() {
            self.done(side, side.failed(false, index, syndrome), true);
        }
    }
}

/// A receive queue can't be read, and that was said.
struct Unreadable;

fn unreadable(side: &Side<'_>, fault: RingFault) -> Unreadable {
    log::info!("QP {:#x}: receive queue can't be read: {fault}", side.attrs.qpn);
    Unreadable
}

/// Reads the scatter list of a receive WQE.
fn scatter_list(wqe: &[u8], list: &mut SgList) {
    list.clear();
    for bytes in wqe.chunks_exact(size_of::<DataSeg>()) {
        let Ok(seg) = DataSeg::read_from_bytes(bytes) else { return };
        if seg.byte_count.count() == 0 && seg.lkey.get() == INVALID_LKEY {
            return;
        }
        list.push(pointer(&seg));
    }
}
