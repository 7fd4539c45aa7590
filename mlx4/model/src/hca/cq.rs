//! Completion queues: entries into the consumer's memory, arming, and overrun.
//!
//! The consumer's index and its last arm request stand in a doorbell record in host memory; the record is
//! read when the index matters (the queue seems full) and when an arm doorbell comes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use mlx4_wire::cmd::Status;
use mlx4_wire::cqe::{CQE_BYTES, CQE_FILL, Cqe, CqeOpcode};
use mlx4_wire::ctx::cq::{CqContext, CqState, CqStatus};
use mlx4_wire::doorbell::{CQ_RECORD_ARM, CqArmCommand, CqArmRecord, CqDoorbell};
use mlx4_wire::eqe::{CqErrorEvent, CqErrorSyndrome, CqEvent, Eqe, EventType};
use mlx4_wire::{Number24, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::burst::Burst;
use super::eq::{Eq, INDEX_MASK};
use super::ring::{RingBudget, RingMemory};

/// The owner bit in the last byte of an entry.
const CQE_OWNER_BIT: u8 = 0x80;

/// A completion queue in hardware ownership.
pub(crate) struct Cq {
    pub(crate) cqn: u32,
    pub(crate) uar_page: u32,
    eq: Option<Arc<Eq>>,
    record: u64,
    overrun_ignore: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    context: CqContext,
    memory: RingMemory,
    log2_entries: u8,
    producer: u32,
    /// The consumer index as last read.
    consumer: u32,
    /// Index behind the last solicited or error entry, and whether there was one.
    solicited: Option<u32>,
    armed: Armed,
    failed: bool,
    live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    No,
    Solicited,
    Next,
}

/// The queue can't take entries: it has overrun or could not be written. Says whether it happened just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CqFailed {
    /// What went wrong, if this entry was the one that broke the queue.
    pub(crate) first: Option<CqErrorSyndrome>,
}

impl Cq {
    /// Takes a CQ over from software (SW2HW_CQ). Unless `initialised`, every entry becomes the hardware's.
    ///
    /// # Errors
    /// BAD_PARAM for a size or a page out of range, EXCEED_LIM for too much memory of queues.
    pub(crate) fn new(
        burst: &Burst,
        rings: &RingBudget,
        cqn: u32,
        context: &CqContext,
        eq: Option<Arc<Eq>>,
        initialised: bool,
    ) -> Result<Self, Status> {
        let consumer = context.consumer_index.number();
        let memory = ring(burst, rings, context)?;
        if !initialised {
            fill_ring(burst, &memory, context.size.log2_entries(), consumer);
        }
        Ok(Self {
            cqn,
            uar_page: context.size.uar_page(),
            eq,
            record: context.record_base(),
            overrun_ignore: context.flags.overrun_ignore(),
            state: Mutex::new(State {
                context: *context,
                memory,
                log2_entries: context.size.log2_entries(),
                producer: consumer,
                consumer,
                solicited: None,
                armed: match context.flags.state() {
                    CqState::ARMED => Armed::Next,
                    CqState::ARMED_SOLICITED => Armed::Solicited,
                    _ => Armed::No,
                },
                failed: false,
                live: true,
            }),
        })
    }

    /// Writes a completion, and an event if the queue is armed for it. `solicited` also for errors.
    ///
    /// # Errors
    /// The queue has no room or can't be written; the QP that completes here must go to ERR.
    pub(crate) fn push(&self, burst: &Burst, cqe: &Cqe, solicited: bool) -> Result<(), CqFailed> {
        let mut state = self.lock();
        if !state.live || state.failed {
            return Err(CqFailed { first: None });
        }
        if !self.has_room(burst, &mut state) {
            return Err(fail(&mut state, CqStatus::OVERFLOW, CqErrorSyndrome::OVERRUN));
        }
        if state.write(burst, cqe).is_err() {
            return Err(fail(&mut state, CqStatus::WRITE_FAILURE, CqErrorSyndrome::ACCESS_VIOLATION));
        }
        if solicited {
            state.solicited = Some(state.producer);
        }
        let fires = match state.armed {
            Armed::Next => true,
            Armed::Solicited => solicited,
            Armed::No => false,
        };
        if fires {
            self.notify(burst, &mut state);
        }
        Ok(())
    }

    fn has_room(&self, burst: &Burst, state: &mut State) -> bool {
        let entries = 1u32 << state.log2_entries;
        let full = |s: &State| s.producer.wrapping_sub(s.consumer) & INDEX_MASK >= entries;
        if self.overrun_ignore || !full(state) {
            return true;
        }
        if let Ok(word) = burst.dma.load_u32(self.record, Ordering::Acquire) {
            state.consumer = u32::from_be_bytes(word.to_ne_bytes()) & INDEX_MASK;
        }
        !full(state)
    }

    /// Takes an arm doorbell. The request is the one in the doorbell record; a doorbell whose sequence
    /// number differs from the record's was overtaken by a later one, which follows.
    pub(crate) fn arm(&self, burst: &Burst, doorbell: &CqDoorbell) {
        let mut state = self.lock();
        let Ok(word) = burst.dma.load_u32(self.record + CQ_RECORD_ARM, Ordering::Acquire) else { return };
        let record = CqArmRecord::from_bits(U32::from_bytes(word.to_ne_bytes()));
        if !state.live || record.sequence() != doorbell.arm.sequence() {
            return;
        }
        let unread = |state: &State, end: u32| {
            let behind = end.wrapping_sub(record.consumer_index()) & INDEX_MASK;
            behind != 0 && behind <= 1 << state.log2_entries
        };
        let (armed, pending) = match record.command() {
            CqArmCommand::NEXT | CqArmCommand::MULTIPLE => (Armed::Next, unread(&state, state.producer)),
            CqArmCommand::SOLICITED if state.armed == Armed::Next => (Armed::Next, false),
            CqArmCommand::SOLICITED => {
                (Armed::Solicited, state.solicited.is_some_and(|end| unread(&state, end)))
            }
            _ => return,
        };
        state.armed = armed;
        if pending {
            self.notify(burst, &mut state);
        }
    }

    fn notify(&self, burst: &Burst, state: &mut State) {
        state.armed = Armed::No;
        state.context.last_notified_index = Number24::wrapping(state.producer);
        if let Some(eq) = &self.eq {
            eq.push(burst, Eqe::new(EventType::COMPLETION, 0, CqEvent::new(self.cqn)));
        }
    }

    /// Moves the queue to a new ring (MODIFY_CQ): the last entry of the old one is the marker that sends
    /// the consumer over.
    ///
    /// # Errors
    /// As for [`Cq::new`]; BAD_RES_STATE if the queue has failed or the marker finds no room.
    pub(crate) fn resize(
        &self,
        burst: &Burst,
        rings: &RingBudget,
        request: &CqContext,
    ) -> Result<(), Status> {
        let memory = ring(burst, rings, request)?;
        let mut state = self.lock();
        let mut marker = Cqe::new_zeroed();
        marker.owner.set_opcode(CqeOpcode::RESIZE);
        if state.failed || !self.has_room(burst, &mut state) {
            return Err(Status::BAD_RES_STATE);
        }
        // First: whoever meets the marker turns to the new ring at once.
        fill_ring(burst, &memory, request.size.log2_entries(), state.producer + 1);
        if state.write(burst, &marker).is_err() {
            return Err(Status::BAD_RES_STATE);
        }
        state.memory = memory;
        state.log2_entries = request.size.log2_entries();
        state.context.size.set_log2_entries(request.size.log2_entries());
        state.context.pages = request.pages;
        Ok(())
    }

    /// Sets event moderation, which the model keeps but doesn't apply: events may come sooner.
    pub(crate) fn set_moderation(&self, request: &CqContext) {
        let mut state = self.lock();
        state.context.period = request.period;
        state.context.max_count = request.max_count;
    }

    /// Gives the queue back to software: when this returns, nothing is written any more.
    pub(crate) fn stop(&self) {
        self.lock().live = false;
    }

    /// The context as QUERY_CQ and HW2SW_CQ give it.
    pub(crate) fn context(&self) -> CqContext {
        let state = self.lock();
        let mut context = state.context;
        context.consumer_index = Number24::wrapping(state.consumer);
        context.producer_index = Number24::wrapping(state.producer);
        context.solicited_producer_index = Number24::wrapping(state.solicited.unwrap_or(0));
        context.flags.set_state(match state.armed {
            Armed::No => CqState::FIRED,
            Armed::Solicited => CqState::ARMED_SOLICITED,
            Armed::Next => CqState::ARMED,
        });
        context
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, burst: &Burst, cqe: &Cqe) -> Result<(), super::ring::RingFault> {
        let entries = 1u32 << self.log2_entries;
        let mut cqe = *cqe;
        cqe.owner.set_owner(self.producer & entries != 0);
        let mut bytes = [0; CQE_BYTES as usize];
        bytes.copy_from_slice(cqe.as_bytes());
        if let Some(fault) = burst.fault() {
            fault.completion(&mut bytes);
        }
        let slot = u64::from(self.producer & (entries - 1)) * u64::from(CQE_BYTES);
        self.memory.write_entry(burst, slot, &bytes)?;
        self.producer = (self.producer + 1) & INDEX_MASK;
        Ok(())
    }
}

fn ring(burst: &Burst, rings: &RingBudget, context: &CqContext) -> Result<RingMemory, Status> {
    let log2_entries = context.size.log2_entries();
    let log2_page = context.pages.log2_page();
    if log2_entries > super::caps::LOG2_MAX_CQ_ENTRIES || log2_page > 31 || context.page_offset.bytes() != 0 {
        return Err(Status::BAD_PARAM);
    }
    let bytes = u64::from(CQE_BYTES) << log2_entries;
    RingMemory::resolve(burst, rings, context.pages.mtt_base(), log2_page, bytes)
}

/// Makes every entry of a ring the hardware's, whose first completion goes to index `producer`: a ring begins in
/// the middle of a pass when a queue is moved to it.
fn fill_ring(burst: &Burst, memory: &RingMemory, log2_entries: u8, producer: u32) {
    let entries = 1u32 << log2_entries;
    let byte = |pass: bool| if pass { CQE_FILL & !CQE_OWNER_BIT } else { CQE_FILL };
    let pass = producer & entries != 0;
    let bytes = |entries: u32| u64::from(entries) * u64::from(CQE_BYTES);
    let begin = bytes(producer & (entries - 1));
    memory.fill(burst, begin..bytes(entries), byte(pass));
    memory.fill(burst, 0..begin, byte(!pass));
}

fn fail(state: &mut State, status: CqStatus, syndrome: CqErrorSyndrome) -> CqFailed {
    state.failed = true;
    state.context.flags.set_status(status);
    CqFailed { first: Some(syndrome) }
}

/// The event of a CQ that has failed.
pub(crate) fn error_event(cqn: u32, syndrome: CqErrorSyndrome) -> Eqe {
    Eqe::new(EventType::CQ_ERROR, 0, CqErrorEvent::new(cqn, syndrome))
}

impl std::fmt::Debug for Cq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cq").field("cqn", &self.cqn).finish_non_exhaustive()
    }
}
