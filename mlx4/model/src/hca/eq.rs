//! Event queues: entries into the driver's memory, and the interrupt that says so.
//!
//! An armed queue sends its MSI-X message with the next entry and is then silent until its doorbell arms it
//! again; arming a queue that holds unread entries sends the message at once.
//!
//! A queue that was never armed has a driver that polls it. It polls when the engine has run, so an event of such a
//! queue is the engine's business too.

use std::sync::{Arc, Mutex, PoisonError};

use mlx4_wire::Number24;
use mlx4_wire::cmd::Status;
use mlx4_wire::ctx::eq::{EqContext, EqState, EqStatus};
use mlx4_wire::doorbell::EqDoorbell;
use mlx4_wire::eqe::{EQE_BYTES, Eqe};
use zerocopy::IntoBytes;

use super::burst::Burst;
use super::ring::{EntryFormat, RingMemory};
use super::running::Running;
use crate::device::Interrupts;

/// Indexes of queues run free in 24 bits.
pub(super) const INDEX_MASK: u32 = Number24::MAX;

/// An event queue in hardware ownership.
pub(crate) struct Eq {
    pub(crate) eqn: u32,
    vector: u16,
    log2_entries: u8,
    format: EntryFormat,
    overrun_ignore: bool,
    memory: RingMemory,
    interrupts: Arc<dyn Interrupts>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    context: EqContext,
    producer: u32,
    consumer: u32,
    armed: Armed,
    /// It was never armed.
    polled: bool,
    /// Cleared by HW2SW_EQ: nothing is written any more.
    live: bool,
    dropped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    No,
    Once,
    Always,
}

impl Eq {
    /// Takes an EQ over from software (SW2HW_EQ): every entry of the ring becomes the hardware's.
    ///
    /// # Errors
    /// BAD_PARAM for a size above 2^22 entries or a page above 2^31 bytes, EXCEED_LIM for too much memory of queues.
    pub(crate) fn new(
        burst: &Burst,
        running: &Running,
        eqn: u32,
        context: &EqContext,
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<Self, Status> {
        let log2_entries = context.size.log2_entries();
        let log2_page = context.pages.log2_page();
        if log2_entries > super::caps::LOG2_MAX_EQ_ENTRIES
            || log2_page > 31
            || context.page_offset.bytes() != 0
        {
            return Err(Status::BAD_PARAM);
        }
        let format = running.eqe_format();
        let bytes = format.ring_bytes(log2_entries);
        let memory = RingMemory::resolve(burst, &running.rings, context.pages.mtt_base(), log2_page, bytes)?;
        memory.fill(burst, 0..bytes, 0x80);
        let armed = match context.flags.state() {
            EqState::ARMED => Armed::Once,
            EqState::ALWAYS_ARMED => Armed::Always,
            _ => Armed::No,
        };
        let consumer = context.consumer_index.number();
        Ok(Self {
            eqn,
            vector: context.interrupt.vector(),
            log2_entries,
            format,
            overrun_ignore: context.flags.overrun_ignore(),
            memory,
            interrupts,
            state: Mutex::new(State {
                context: *context,
                producer: consumer,
                consumer,
                armed,
                polled: armed == Armed::No,
                live: true,
                dropped: 0,
            }),
        })
    }

    /// Writes an event and interrupts if the queue is armed. A full or dead queue drops it. True if it is for a
    /// driver that polls, so that the engine is to run.
    pub(crate) fn push(&self, burst: &Burst, mut event: Eqe) -> bool {
        let mut state = self.lock();
        let entries = 1u32 << self.log2_entries;
        let used = state.producer.wrapping_sub(state.consumer) & INDEX_MASK;
        if !state.live || (used >= entries && !self.overrun_ignore) {
            state.dropped += 1;
            log::debug!("EQ {:#x} drops {:?}: {used} of {entries} in use", self.eqn, event.event_type());
            return false;
        }
        event.owner.set_owner(state.producer & entries != 0);
        let slot = state.producer & (entries - 1);
        let mut bytes = [0; EQE_BYTES as usize];
        bytes.copy_from_slice(event.as_bytes());
        if let Some(fault) = burst.fault() {
            fault.event(&mut bytes);
        }
        if let Err(fault) = self.memory.write_entry(burst, self.format, slot, &bytes) {
            log::debug!("EQ {:#x} can't be written: {fault}", self.eqn);
            state.context.flags.set_status(EqStatus::WRITE_FAILURE);
            state.dropped += 1;
            return false;
        }
        state.producer = (state.producer + 1) & INDEX_MASK;
        self.fire(&mut state);
        state.polled
    }

    /// Takes a doorbell: the new consumer index and perhaps a request for the next interrupt.
    pub(crate) fn doorbell(&self, doorbell: EqDoorbell) {
        let mut state = self.lock();
        state.consumer = doorbell.consumer_index();
        state.polled &= !doorbell.arm();
        if doorbell.arm() && state.armed == Armed::No {
            state.armed = Armed::Once;
        }
        if doorbell.arm() && state.producer != state.consumer {
            self.fire(&mut state);
        }
    }

    fn fire(&self, state: &mut State) {
        if state.armed == Armed::No || !state.live {
            return;
        }
        if state.armed == Armed::Once {
            state.armed = Armed::No;
        }
        self.interrupts.signal(self.vector);
    }

    /// Gives the queue back to software: when this returns, nothing is written any more.
    pub(crate) fn stop(&self) {
        self.lock().live = false;
    }

    /// The context as QUERY_EQ and HW2SW_EQ give it.
    pub(crate) fn context(&self) -> EqContext {
        let state = self.lock();
        let mut context = state.context;
        context.consumer_index = Number24::wrapping(state.consumer);
        context.producer_index = Number24::wrapping(state.producer);
        context.flags.set_state(match state.armed {
            Armed::No => EqState::FIRED,
            Armed::Once => EqState::ARMED,
            Armed::Always => EqState::ALWAYS_ARMED,
        });
        context
    }

    /// Events dropped because the queue was full, unreachable or stopped.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Eq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eq").field("eqn", &self.eqn).field("vector", &self.vector).finish_non_exhaustive()
    }
}
