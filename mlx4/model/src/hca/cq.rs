//! Completion queues: entries into the consumer's memory, arming, moderation, and overrun.
//!
//! With moderation, an event that is due waits until enough entries have come since the last one, or until
//! its time is over; the engine has the timer.
//!
//! The consumer's index and its last arm request stand in a doorbell record in host memory; the record is
//! read when the index matters (the queue seems full) and when an arm doorbell comes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mlx4_wire::cmd::Status;
use mlx4_wire::cqe::{CQE_BYTES, CQE_FILL, Cqe, CqeOpcode};
use mlx4_wire::ctx::cq::{CqContext, CqState, CqStatus};
use mlx4_wire::doorbell::{CQ_RECORD_ARM, CqArmCommand, CqArmRecord, CqDoorbell};
use mlx4_wire::eqe::{CqErrorEvent, CqErrorSyndrome, CqEvent, Eqe, EventType};
use mlx4_wire::{Number24, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::burst::Burst;
use super::eq::{Eq, INDEX_MASK};
use super::ring::{EntryFormat, RingMemory};
use super::running::Running;

/// A completion queue in hardware ownership.
pub(crate) struct Cq {
    pub(crate) cqn: u32,
    pub(crate) uar_page: u32,
    eq: Option<Arc<Eq>>,
    record: u64,
    format: EntryFormat,
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
    /// When the event that moderation holds back must go out.
    due: Option<Instant>,
    failed: bool,
    live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    No,
    Solicited,
    Next,
}

/// Whether an index is another one, or at most so many before it; they count modulo 2^24.
fn is_before(index: u32, other: u32, most: u32) -> bool {
    other.wrapping_sub(index) & INDEX_MASK <= most
}

/// The queue can't take entries: it has overrun or could not be written. Says whether it happened just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CqFailed {
    /// What went wrong, if this entry was the one that broke the queue.
    pub(crate) first: Option<CqErrorSyndrome>,
}

#[cfg(test)]
impl Cq {
    /// As if so many more entries had come and been read.
    pub(crate) fn skip(&self, entries: u32) {
        let mut state = self.lock();
        state.producer = state.producer.wrapping_add(entries) & INDEX_MASK;
        state.consumer = state.producer;
    }
}

impl Cq {
    /// Takes a CQ over from software (SW2HW_CQ). Unless `initialised`, every entry becomes the hardware's.
    ///
    /// # Errors
    /// BAD_PARAM for a size or a page out of range, EXCEED_LIM for too much memory of queues.
    pub(crate) fn new(
        burst: &Burst,
        running: &Running,
        cqn: u32,
        context: &CqContext,
        eq: Option<Arc<Eq>>,
        initialised: bool,
    ) -> Result<Self, Status> {
        let memory = ring(burst, running, context)?;
        let format = running.cqe_format();
        let new = NewRing { memory, format, log2_entries: context.size.log2_entries() };
        if !initialised {
            new.disown(burst, context.consumer_index.number());
        }
        let mut shown = *context;
        shown.flags.set_status(CqStatus::OK);
        shown.last_notified_index = context.consumer_index;
        let consumer = context.consumer_index.number();
        Ok(Self {
            cqn,
            uar_page: context.size.uar_page(),
            eq,
            record: context.record_base(),
            format,
            overrun_ignore: context.flags.overrun_ignore(),
            state: Mutex::new(State {
                context: shown,
                memory: new.memory,
                log2_entries: new.log2_entries,
                producer: consumer,
                consumer,
                solicited: None,
                armed: match context.flags.state() {
                    CqState::ARMED => Armed::Next,
                    CqState::ARMED_SOLICITED => Armed::Solicited,
                    _ => Armed::No,
                },
                due: None,
                failed: false,
                live: true,
            }),
        })
    }

    /// Writes a completion, and an event if the queue is armed for it. `solicited` also for errors. True if
    /// the engine must run for the queue: to look after its timer ([`Cq::serve`]), or since its event is for a driver
    /// that polls.
    ///
    /// # Errors
    /// The queue has no room or can't be written; the QP that completes here must go to ERR.
    pub(crate) fn push(&self, burst: &Burst, cqe: &Cqe, solicited: bool) -> Result<bool, CqFailed> {
        let mut state = self.lock();
        if !state.live || state.failed {
            return Err(CqFailed { first: None });
        }
        if !self.has_room(burst, &mut state) {
            return Err(fail(&mut state, CqStatus::OVERFLOW, CqErrorSyndrome::OVERRUN));
        }
        if state.write(burst, self.format, cqe).is_err() {
            return Err(fail(&mut state, CqStatus::WRITE_FAILURE, CqErrorSyndrome::ACCESS_VIOLATION));
        }
        let producer = state.producer;
        if solicited {
            state.solicited = Some(producer);
        } else {
            // So far back no doorbell looks, and the index would come round.
            state.solicited = state.solicited.filter(|end| is_before(*end, producer, INDEX_MASK / 4));
        }
        let fires = match state.armed {
            Armed::Next => true,
            Armed::Solicited => solicited,
            Armed::No => false,
        };
        Ok(fires && self.request_event(burst, &mut state))
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
    /// number differs from the record's was overtaken by a later one, which follows. True as for
    /// [`Cq::push`].
    pub(crate) fn arm(&self, burst: &Burst, doorbell: &CqDoorbell) -> bool {
        let mut state = self.lock();
        let Ok(word) = burst.dma.load_u32(self.record + CQ_RECORD_ARM, Ordering::Acquire) else {
            return false;
        };
        let record = CqArmRecord::from_bits(U32::from_bytes(word.to_ne_bytes()));
        if !state.live || record.sequence() != doorbell.arm.sequence() {
            return false;
        }
        // More than the ring holds, if entries were read and others came before the doorbell was here.
        let consumer = record.consumer_index();
        let unread = |end: u32| end != consumer && is_before(consumer, end, INDEX_MASK / 2);
        let (armed, pending) = match record.command() {
            CqArmCommand::NEXT | CqArmCommand::MULTIPLE => (Armed::Next, unread(state.producer)),
            CqArmCommand::SOLICITED if state.armed == Armed::Next => (Armed::Next, false),
            CqArmCommand::SOLICITED => (Armed::Solicited, state.solicited.is_some_and(unread)),
            _ => return false,
        };
        state.armed = armed;
        pending && self.request_event(burst, &mut state)
    }

    /// An event is due: it goes out now, or when moderation lets it. True as for [`Cq::push`].
    fn request_event(&self, burst: &Burst, state: &mut State) -> bool {
        let (period, count) = (state.context.period.get(), state.context.max_count.get());
        let last = state.context.last_notified_index.number();
        let since = state.producer.wrapping_sub(last) & INDEX_MASK;
        if period == 0 || since >= u32::from(count) {
            return self.notify(burst, state);
        }
        if state.due.is_some() {
            return false;
        }
        state.due = Some(Instant::now() + Duration::from_micros(period.into()));
        true
    }

    /// Looks after the timer: sends the event if its time is over, else gives that time.
    pub(crate) fn serve(&self, burst: &Burst, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let due = state.due.filter(|_| state.live)?;
        if now < due {
            return Some(due);
        }
        self.notify(burst, &mut state);
        None
    }

    /// Sends the event. True as for [`Eq::push`].
    fn notify(&self, burst: &Burst, state: &mut State) -> bool {
        state.armed = Armed::No;
        state.due = None;
        state.context.last_notified_index = Number24::wrapping(state.producer);
        let event = || Eqe::new(EventType::COMPLETION, 0, CqEvent::new(self.cqn));
        self.eq.as_ref().is_some_and(|eq| eq.push(burst, event()))
    }

    /// Moves the queue to a new ring (MODIFY_CQ): the last entry of the old one is the marker that sends
    /// the consumer over.
    ///
    /// # Errors
    /// As for [`Cq::new`]; BAD_RES_STATE if the queue has failed, the marker finds no room, or entries come
    /// faster than the new ring is made ready.
    pub(crate) fn resize(&self, burst: &Burst, running: &Running, request: &CqContext) -> Result<(), Status> {
        let memory = ring(burst, running, request)?;
        let log2_entries = request.size.log2_entries();
        let new = NewRing { memory, format: self.format, log2_entries };
        // Mostly without the lock, which whoever completes something here waits for.
        let mut first = self.lock().producer + 1;
        new.disown(burst, first);
        for _ in 0..MOST_PASSES {
            let mut state = self.lock();
            let next = state.producer + 1;
            let come = next.wrapping_sub(first) & INDEX_MASK;
            if come <= MOST_UNDER_LOCK {
                new.disown_more(burst, first, come);
                return self.move_to(burst, &mut state, new, request);
            }
            drop(state);
            new.disown_more(burst, first, come);
            first = next;
        }
        Err(Status::BAD_RES_STATE)
    }

    fn move_to(
        &self,
        burst: &Burst,
        state: &mut State,
        new: NewRing,
        request: &CqContext,
    ) -> Result<(), Status> {
        let mut marker = Cqe::new_zeroed();
        marker.owner.set_opcode(CqeOpcode::RESIZE);
        if state.failed || !self.has_room(burst, state) {
            return Err(Status::BAD_RES_STATE);
        }
        if state.write(burst, self.format, &marker).is_err() {
            return Err(Status::BAD_RES_STATE);
        }
        state.memory = new.memory;
        state.log2_entries = new.log2_entries;
        state.context.size.set_log2_entries(new.log2_entries);
        state.context.pages = request.pages;
        Ok(())
    }

    /// Sets event moderation: a period in µs and a number of entries; without a period or a number there is
    /// none. An event that waits goes out now. True as for [`Cq::push`].
    pub(crate) fn set_moderation(&self, burst: &Burst, request: &CqContext) -> bool {
        let mut state = self.lock();
        state.context.period = request.period;
        state.context.max_count = request.max_count;
        state.due.is_some() && state.live && self.notify(burst, &mut state)
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
    fn write(&mut self, burst: &Burst, format: EntryFormat, cqe: &Cqe) -> Result<(), super::ring::RingFault> {
        let entries = 1u32 << self.log2_entries;
        let mut cqe = *cqe;
        cqe.owner.set_owner(self.producer & entries != 0);
        let mut bytes = [0; CQE_BYTES as usize];
        bytes.copy_from_slice(cqe.as_bytes());
        if let Some(fault) = burst.fault() {
            fault.completion(&mut bytes);
        }
        self.memory.write_entry(burst, format, self.producer & (entries - 1), &bytes)?;
        self.producer = (self.producer + 1) & INDEX_MASK;
        Ok(())
    }
}

fn ring(burst: &Burst, running: &Running, context: &CqContext) -> Result<RingMemory, Status> {
    let log2_entries = context.size.log2_entries();
    let log2_page = context.pages.log2_page();
    if log2_entries > super::caps::LOG2_MAX_CQ_ENTRIES || log2_page > 31 || context.page_offset.bytes() != 0 {
        return Err(Status::BAD_PARAM);
    }
    let bytes = running.cqe_format().ring_bytes(log2_entries);
    RingMemory::resolve(burst, &running.rings, context.pages.mtt_base(), log2_page, bytes)
}

/// How often a resize makes ready what has become due meanwhile, and entries that it makes ready under the lock.
const MOST_PASSES: u32 = 16;
const MOST_UNDER_LOCK: u32 = 1024;

/// A ring that becomes a queue's.
struct NewRing {
    memory: RingMemory,
    format: EntryFormat,
    log2_entries: u8,
}

impl NewRing {
    /// Makes every entry the hardware's. `first` is the index of the first that will be written.
    fn disown(&self, burst: &Burst, first: u32) {
        self.fill(burst, first, 1 << self.log2_entries);
    }

    /// The same after `disown` for `first`, if the first entry is `come` entries behind that one.
    fn disown_more(&self, burst: &Burst, first: u32, come: u32) {
        let entries = 1u32 << self.log2_entries;
        self.fill(burst, first + entries + come.saturating_sub(entries), come.min(entries));
    }

    /// Makes the slots of `count` indexes, at most all slots, look as before their writing: their owner bit is that
    /// of the pass before.
    fn fill(&self, burst: &Burst, first: u32, count: u32) {
        const ODD_PASS_FILL: u8 = CQE_FILL ^ 0x80;
        let entries = 1u32 << self.log2_entries;
        let slot = first & (entries - 1);
        let here = count.min(entries - slot);
        let (now, next) =
            if first & entries == 0 { (CQE_FILL, ODD_PASS_FILL) } else { (ODD_PASS_FILL, CQE_FILL) };
        let at = |slot| self.format.slot(slot);
        self.memory.fill(burst, at(slot)..at(slot + here), now);
        self.memory.fill(burst, 0..at(count - here), next);
    }
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
