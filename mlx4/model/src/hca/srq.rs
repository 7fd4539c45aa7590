//! Shared receive queues: a linked list of work requests in host memory that several queue pairs draw from.
//! One that belongs to an XRC domain has a CQ of its own.
//!
//! The link of a work request is read when the request is taken, before its completion can be seen, since
//! the consumer rewrites it afterwards.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_wire::U16;
use mlx4_wire::cmd::Status;
use mlx4_wire::ctx::srq::{SrqContext, SrqState};
use mlx4_wire::eqe::{Eqe, EventType, SrqEvent};

use super::burst::Burst;
use super::cq::Cq;
use super::ring::{RingFault, RingMemory};
use super::running::Running;

/// Bytes of a shared receive WQE before its data segments; the link is at offset 2.
pub(crate) const NEXT_SEGMENT_BYTES: usize = 16;

/// A shared receive queue in hardware ownership.
pub(crate) struct Srq {
    pub(crate) srqn: u32,
    pub(crate) pd: u32,
    /// CQ and domain of an XRC SRQ.
    xrc: Option<(Arc<Cq>, u16)>,
    memory: RingMemory,
    entries: u32,
    stride: u32,
    record: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    context: SrqContext,
    /// Slot of the next work request.
    head: u32,
    /// Work requests taken so far, modulo 2^16.
    taken: u16,
    live: bool,
}

/// The queue or its doorbell record can't be read, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SrqFailed {
    /// What went wrong, if it happened just now.
    pub(crate) first: Option<RingFault>,
}

/// A work request taken from an SRQ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Slot number, which the completion carries.
    pub(crate) index: u16,
    /// Event that taking it has caused, to be raised once the queue pair's locks are released.
    pub(crate) limit: Option<Eqe>,
}

impl Srq {
    /// Takes an SRQ over from software (SW2HW_SRQ).
    ///
    /// # Errors
    /// BAD_PARAM for a size or page out of range, BAD_RESOURCE for a CQ that isn't there, EXCEED_LIM for too
    /// much memory of queues.
    pub(crate) fn new(
        burst: &Burst,
        running: &Running,
        srqn: u32,
        context: &SrqContext,
    ) -> Result<Self, Status> {
        let log2_page = context.pages.log2_page();
        if context.size.log2_entries() > super::caps::LOG2_MAX_SRQ_ENTRIES
            || log2_page > 31
            || context.cq.page_offset_64() != 0
            || context.stride.bytes() < 32
        {
            return Err(Status::BAD_PARAM);
        }
        let (entries, stride) = (context.size.entries(), context.stride.bytes());
        let bytes = u64::from(entries) * u64::from(stride);
        // CQ 0 is the firmware's, so a plain SRQ, which has none, says 0.
        let xrc = match context.cq.cqn() {
            0 => None,
            cqn => Some((running.cqs.get(cqn).ok_or(Status::BAD_RESOURCE)?, context.xrcd.get())),
        };
        let mut shown = *context;
        shown.size.set_state(SrqState::OK);
        Ok(Self {
            srqn,
            pd: context.pd.number(),
            xrc,
            memory: RingMemory::resolve(burst, &running.rings, context.pages.mtt_base(), log2_page, bytes)?,
            entries,
            stride,
            record: context.record_base(),
            state: Mutex::new(State { context: shown, head: 0, taken: 0, live: true }),
        })
    }

    /// Size of a work request in bytes.
    pub(crate) fn stride(&self) -> usize {
        self.stride as usize
    }

    /// The CQ of an XRC SRQ.
    pub(crate) fn xrc_cq(&self) -> Option<&Arc<Cq>> {
        self.xrc.as_ref().map(|(cq, _)| cq)
    }

    /// Whether it is an XRC SRQ of a domain.
    pub(crate) fn is_in_domain(&self, xrcd: u16) -> bool {
        self.xrc.as_ref().is_some_and(|(_, own)| *own == xrcd)
    }

    /// Takes the next work request and copies it to `wqe`, whose length is the stride; `None` if none is
    /// posted, or if the copy isn't one that `fits`: then it stays where it is.
    ///
    /// # Errors
    /// The queue can't be read; it is in error from then on.
    pub(crate) fn take_if(
        &self,
        burst: &Burst,
        wqe: &mut [u8],
        fits: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Option<Taken>, SrqFailed> {
        let mut state = self.lock();
        if state.context.size.state() == SrqState::ERROR {
            return Err(SrqFailed { first: None });
        }
        self.take_next(&mut state, burst, wqe, fits).map_err(|fault| {
            state.context.size.set_state(SrqState::ERROR);
            SrqFailed { first: Some(fault) }
        })
    }

    fn take_next(
        &self,
        state: &mut State,
        burst: &Burst,
        wqe: &mut [u8],
        fits: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Option<Taken>, RingFault> {
        let posted = self.posted(burst)?;
        let left = posted.wrapping_sub(state.taken);
        if left == 0 || !state.live {
            return Ok(None);
        }
        let slot = state.head & (self.entries - 1);
        self.memory.read(burst, u64::from(slot) * u64::from(self.stride), wqe)?;
        if !fits(wqe) {
            return Ok(None);
        }
        state.head = u32::from(u16::from_be_bytes([wqe[2], wqe[3]]));
        state.taken = state.taken.wrapping_add(1);
        let limit = state.context.limit.get();
        let crossed = limit != 0 && left - 1 < limit;
        if crossed {
            state.context.limit = U16::ZERO;
        }
        let index = u16::try_from(slot).unwrap_or(0);
        Ok(Some(Taken { index, limit: crossed.then(|| event(EventType::SRQ_LIMIT, self.srqn)) }))
    }

    fn posted(&self, burst: &Burst) -> Result<u16, RingFault> {
        let [.., high, low] = burst.dma.load_u32(self.record, Ordering::Acquire)?.to_ne_bytes();
        Ok(u16::from_be_bytes([high, low]))
    }

    /// Whether it is still in hardware ownership.
    pub(crate) fn is_live(&self) -> bool {
        self.lock().live
    }

    /// Arms the limit event (ARM_SRQ): it is due when a work request is taken and fewer than the limit are
    /// left. 0 disarms it.
    pub(crate) fn arm(&self, limit: u16) {
        self.lock().context.limit = U16::new(limit);
    }

    /// Gives the queue back to software: when this returns, no work request is taken any more.
    pub(crate) fn stop(&self) {
        self.lock().live = false;
    }

    /// The context as QUERY_SRQ and HW2SW_SRQ give it.
    pub(crate) fn context(&self, burst: &Burst) -> SrqContext {
        let state = self.lock();
        let mut context = state.context;
        let left = self.posted(burst).map_or(0, |posted| posted.wrapping_sub(state.taken));
        context.wqe_count = U16::new(left);
        context.wqe_counter = U16::new(state.taken);
        context
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event of an SRQ.
pub(crate) fn event(event_type: EventType, srqn: u32) -> Eqe {
    Eqe::new(event_type, 0, SrqEvent::new(srqn))
}

impl std::fmt::Debug for Srq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Srq").field("srqn", &self.srqn).finish_non_exhaustive()
    }
}
