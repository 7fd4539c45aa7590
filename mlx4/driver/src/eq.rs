//! Event queues: the ring, and the thread that empties it. For those without a thread see `poller`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mlx4_pci::{DmaBuffer, Doorbell, DoorbellKind, EventFd, PciDevice};
use mlx4_wire::Number24;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::misc::{Hw2SwOp, MapEqModifier};
use mlx4_wire::ctx::eq::{EqContext, EqFlags, EqInterrupt, EqState};
use mlx4_wire::ctx::{RingPages, RingSize};
use mlx4_wire::doorbell::{EqDoorbell, eq_doorbell_uar};
use mlx4_wire::eqe::{EQE_BYTES, EQE_OWNER, Eqe, EqeOwner};
use vmm_sys_util::poll::PollContext;
use zerocopy::{FromZeros, IntoBytes};

use crate::arm::{Arms, events_taken};
use crate::cmd::{Command, Commands, Ends, Input};
use crate::error::{Error, Result};
use crate::icm::{Icm, MttRange, Pages};

/// Entries that the device may lag behind before it must be told how far this side is; a queue has as many
/// more than it needs.
pub(crate) const SPARE: u32 = 128;
/// Events that are taken between two of these words to the device.
const BATCH: u32 = SPARE / 4;

/// log2 of the page size of event queues.
const LOG2_PAGE: u8 = 12;

const EQE: usize = EQE_BYTES as usize;
/// Offset of the word with the owner byte, which the device writes last.
const LAST_WORD: usize = EQE - 4;
const _: () = assert!(EQE_OWNER == LAST_WORD as u64 + 3);

/// What an event queue is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EqConfig {
    pub(crate) eqn: u32,
    /// The interrupt with which the device tells of events; without one somebody must poll.
    pub(crate) vector: Option<u16>,
    /// Entries that are needed at once.
    pub(crate) entries: u32,
}

/// An event queue's memory.
pub(crate) struct EqRing {
    eqn: u32,
    entries: u32,
    memory: DmaBuffer,
    mtt: MttRange,
    /// Index of the next entry, as the device was told last.
    consumer: AtomicU32,
    arms: Arms,
}

impl EqRing {
    fn offset(&self, index: u32) -> usize {
        (index & (self.entries - 1)) as usize * EQE
    }

    /// The last word of the entry with an index, if the device has written it.
    fn written(&self, index: u32) -> Result<Option<[u8; 4]>> {
        let last = self.memory.load_be32(self.offset(index) + LAST_WORD)?.to_be_bytes();
        let is_written = EqeOwner::from_bits(last[3]).owner() == (index & self.entries != 0);
        Ok(is_written.then_some(last))
    }

    /// Whether the device has written the entry with an index.
    fn is_written(&self, index: u32) -> bool {
        self.written(index).is_ok_and(|last| last.is_some())
    }

    /// Whether all events were taken. While somebody takes some they are not.
    pub(crate) fn is_empty(&self) -> bool {
        let consumer = || self.consumer.load(Ordering::SeqCst);
        let next = consumer();
        // If it was taken meanwhile the device may have written the entry anew.
        !self.is_written(next) && consumer() == next
    }

    /// How queues are armed whose events it has.
    pub(crate) fn arms(&self) -> &Arms {
        &self.arms
    }
}

/// An event queue that the device works with.
pub(crate) struct EventQueue(Arc<EqRing>);

/// The end of an event queue that takes the events.
pub(crate) struct EventReader {
    ring: Arc<EqRing>,
    doorbell: Arc<dyn Doorbell>,
    consumer: u32,
    /// It is armed whenever it is empty.
    interrupts: bool,
    /// It may have been full.
    overran: bool,
}

impl EventQueue {
    /// Makes an event queue and hands it to the device; armed, if it has an interrupt.
    ///
    /// # Errors
    /// No memory, no doorbell, or the device refuses it. The device must be reset then.
    pub(crate) fn new(
        device: &Arc<dyn PciDevice>,
        commands: &Commands,
        icm: &Icm,
        config: EqConfig,
    ) -> Result<(Self, EventReader)> {
        let entries = (config.entries + SPARE).next_power_of_two();
        let memory = device.dma().allocate(entries as usize * EQE, 1 << LOG2_PAGE)?;
        // The device does so too when it takes the queue; older ones leave it to the driver.
        for at in (0..memory.len()).step_by(EQE) {
            memory.store_be32(at + LAST_WORD, u32::from(EqeOwner::new().with_owner(true).into_bits()))?;
        }
        // A queue has at most 2^15 pages.
        let count = u32::try_from(memory.len() >> LOG2_PAGE).unwrap_or(u32::MAX);
        let pages = Pages::Run { first: memory.iova(), count, log2_page: LOG2_PAGE };
        let mtt = icm.translate(commands, &pages, 1)?;
        let context = context(&config, entries, &mtt)?;
        let doorbell = device.doorbell(eq_doorbell_uar(config.eqn), DoorbellKind::Eq(config.eqn))?;
        commands.give(Opcode::SW2HW_EQ, config.eqn, &context)?;
        let ring = Arc::new(EqRing {
            eqn: config.eqn,
            entries,
            memory,
            mtt,
            consumer: AtomicU32::new(0),
            arms: Arms::default(),
        });
        let interrupts = config.vector.is_some();
        let reader =
            EventReader { ring: Arc::clone(&ring), doorbell, consumer: 0, interrupts, overran: false };
        reader.update();
        Ok((Self(ring), reader))
    }

    pub(crate) fn eqn(&self) -> u32 {
        self.0.eqn
    }

    /// Its ring, which must be dropped before [`EventQueue::close`].
    pub(crate) fn ring(&self) -> &Arc<EqRing> {
        &self.0
    }

    /// Directs event types to the queue, or away from it.
    pub(crate) fn map(&self, commands: &Commands, mask: u64, unmap: bool) -> Result<()> {
        let modifier = MapEqModifier::new().with_unmap(unmap).with_eqn(self.eqn() & Number24::MAX);
        let command = Command::new(Opcode::MAP_EQ, modifier.into_bits().get());
        commands.run(&Command { input: Input::Immediate(mask), ..command })?;
        Ok(())
    }

    /// Takes the queue back. Its reader must be gone.
    ///
    /// # Errors
    /// The device doesn't give it; its memory stays mapped until the next reset.
    pub(crate) fn close(self, commands: &Commands, icm: &Icm) -> Result<()> {
        let command = Command::new(Opcode::HW2SW_EQ, self.eqn());
        commands.run(&Command { opmod: Hw2SwOp::NO_OUTPUT.0, ..command })?;
        let Some(ring) = Arc::into_inner(self.0) else { return Err(Error::InUse(1)) };
        let mut ends = Ends::default();
        ends.note(icm.forget(commands, ring.mtt));
        ends.note(ring.memory.release());
        ends.result()
    }
}

fn context(config: &EqConfig, entries: u32, mtt: &MttRange) -> Result<EqContext> {
    let pages = RingPages::new(LOG2_PAGE, mtt.offset());
    let mut context = EqContext::new_zeroed();
    let state = if config.vector.is_some() { EqState::ARMED } else { EqState::FIRED };
    context.flags = EqFlags::new().with_state(state);
    // A power of two of 32 bits.
    let log2 = u8::try_from(entries.ilog2()).unwrap_or(0);
    let vector = config.vector.unwrap_or(0);
    context.size = RingSize::new().with_log2_entries(log2);
    context.interrupt = EqInterrupt::new()
        .with_vector_checked(vector)
        .map_err(|()| Error::argument("interrupt vector", vector))?;
    context.pages = pages.ok_or(Error::argument("MTT offset", mtt.offset()))?;
    Ok(context)
}

impl EventReader {
    /// Takes the next event, if there is one.
    fn next(&mut self) -> Result<Option<Eqe>> {
        let Some(last) = self.ring.written(self.consumer)? else { return Ok(None) };
        let mut eqe = Eqe::new_zeroed();
        let offset = self.ring.offset(self.consumer);
        self.ring.memory.read(offset, &mut eqe.as_mut_bytes()[..LAST_WORD])?;
        eqe.as_mut_bytes()[LAST_WORD..].copy_from_slice(&last);
        self.consumer = self.consumer.wrapping_add(1);
        Ok(Some(eqe))
    }

    /// Tells the device how far this side is, and asks for the next interrupt if there are to be any.
    fn update(&self) {
        self.tell(self.interrupts);
    }

    fn tell(&self, arm: bool) {
        self.ring.consumer.store(self.consumer, Ordering::SeqCst);
        let index = self.consumer & Number24::MAX;
        let doorbell = EqDoorbell::new().with_arm(arm).with_consumer_index(index);
        self.doorbell.ring(doorbell.into_bits().get().into());
    }

    /// Takes all events, and asks for an interrupt with the next, if there are to be any; or takes one round of the
    /// queue, if the device writes as fast as this side reads. Says whether it has taken all.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Eqe)) -> Result<bool> {
        for taken in 1..=self.ring.entries {
            let Some(eqe) = self.next()? else {
                self.update();
                events_taken(&self.ring);
                return Ok(true);
            };
            each(&eqe);
            if taken.is_multiple_of(BATCH) {
                self.overran |= self.is_nearly_full();
                self.tell(false);
            }
        }
        Ok(false)
    }

    /// Whether there is no more room than what the device may lag behind. For the device the queue may have been full
    /// then: of the two last batches that were taken it may know nothing yet.
    fn is_nearly_full(&self) -> bool {
        self.ring.is_written(self.consumer.wrapping_add(self.ring.entries - SPARE))
    }

    /// Whether the device may have dropped events since this was asked last, because the queue was full.
    pub(crate) fn take_overrun(&mut self) -> bool {
        std::mem::take(&mut self.overran)
    }

    /// The ring.
    pub(crate) fn ring(&self) -> &Arc<EqRing> {
        &self.ring
    }
}

/// What a thread does with the events of its queue.
pub(crate) trait EventHandler: Send {
    /// An event was taken.
    fn event(&mut self, eqe: &Eqe);

    /// The device may have dropped events.
    fn overran(&mut self) {}

    /// Events were taken, or the interval has passed without one.
    fn idle(&mut self) {}

    /// How often [`EventHandler::idle`] is to be called at least.
    fn interval(&self) -> Option<Duration> {
        None
    }
}

/// The thread of an event queue.
#[derive(Debug)]
pub(crate) struct EventThread {
    thread: Option<JoinHandle<()>>,
    stop: EventFd,
}

impl EventThread {
    /// Starts a thread of this name (at most 15 characters), which waits for `interrupt`.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub(crate) fn start(
        name: String,
        interrupt: EventFd,
        reader: EventReader,
        handler: impl EventHandler + 'static,
    ) -> Result<Self> {
        let host = |what| move |source| Error::Host { what, source };
        let stop = EventFd::new(0).map_err(host("an eventfd"))?;
        let stopped = stop.try_clone().map_err(host("an eventfd"))?;
        let work = move || serve(&interrupt, &stopped, reader, handler);
        let thread = std::thread::Builder::new().name(name).spawn(work).map_err(host("a thread"))?;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Stops the thread and waits for its end.
    fn end(&mut self) {
        if let Err(error) = self.stop.write(1) {
            log::error!("can't stop a thread: {error}");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a thread of an event queue has panicked");
        }
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a thread waits for.
const INTERRUPT: u32 = 0;
const STOP: u32 = 1;

fn serve(interrupt: &EventFd, stop: &EventFd, mut reader: EventReader, mut handler: impl EventHandler) {
    let result = poller(interrupt, stop).and_then(|poller| {
        let mut all = true;
        while !wait(&poller, if all { handler.interval() } else { Some(Duration::ZERO) })? {
            // The count tells nothing that the ring doesn't.
            let _interrupts = interrupt.read();
            all = reader.drain(|eqe| handler.event(eqe))?;
            if reader.take_overrun() {
                handler.overran();
            }
            handler.idle();
        }
        Ok(())
    });
    if let Err(error) = result {
        log::error!("event queue: {error}");
    }
}

fn poller(interrupt: &EventFd, stop: &EventFd) -> Result<PollContext<u32>> {
    let make = || {
        let poller = PollContext::new()?;
        poller.add(interrupt, INTERRUPT)?;
        poller.add(stop, STOP)?;
        Ok(poller)
    };
    make().map_err(host)
}

/// Waits for an interrupt or the end of the interval; true if the thread shall stop.
fn wait(poller: &PollContext<u32>, interval: Option<Duration>) -> Result<bool> {
    let events = match interval {
        Some(interval) => poller.wait_timeout(interval),
        None => poller.wait(),
    };
    Ok(events.map_err(host)?.iter().any(|event| event.token() == STOP))
}

fn host(error: vmm_sys_util::errno::Error) -> Error {
    Error::Host { what: "a wait for events", source: error.into() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Config;
    use crate::testing::Bench;

    /// A card with an event queue that has room for so many events and is written by the test.
    pub(crate) fn queue(entries: u32) -> (Bench, EventQueue, EventReader) {
        let bench = Bench::new(&Config { ports: false, completion_eqs: 1, ..Config::default() });
        let shared = &bench.hca.shared;
        let config = EqConfig { eqn: shared.caps.eqs.reserved + 3, vector: Some(0), entries };
        let (queue, reader) = EventQueue::new(&shared.device, &shared.commands, &shared.icm, config).unwrap();
        (bench, queue, reader)
    }

    /// Writes the entry with an index, as the device does.
    pub(crate) fn write(ring: &EqRing, index: u32) {
        let owner = EqeOwner::new().with_owner(index & ring.entries != 0);
        ring.memory.store_be32(ring.offset(index) + LAST_WORD, u32::from(owner.into_bits())).unwrap();
    }

    pub(crate) fn close(bench: Bench, queue: EventQueue, reader: EventReader) {
        drop(reader);
        queue.close(&bench.hca.shared.commands, &bench.hca.shared.icm).unwrap();
        bench.hca.close().unwrap();
    }

    /// Else the thread would never look whether it shall stop.
    #[test]
    fn device_that_writes_as_fast_as_events_are_taken_gets_one_round_at_a_time() {
        let (bench, queue, mut reader) = queue(1);
        let ring = Arc::clone(&reader.ring);
        let write = |index| write(&ring, index);
        write(0);
        let mut taken = 0;
        for round in 1..=3 {
            let all = reader.drain(|_| {
                taken += 1;
                write(taken);
            });
            assert!(!all.unwrap());
            assert_eq!(taken, round * ring.entries);
        }
        drop(ring);
        close(bench, queue, reader);
    }

    #[test]
    fn queue_that_was_full_for_the_device_has_overrun_and_one_with_as_many_as_it_has_room_for_has_not() {
        const ROOM: u32 = 1024 - SPARE;
        let (bench, queue, mut reader) = queue(ROOM);
        let ring = Arc::clone(&reader.ring);
        assert_eq!(ring.entries, ROOM + SPARE);
        let mut next = 0;
        let mut drain = |reader: &mut EventReader, count: u32| {
            (next..next + count).for_each(|index| write(&ring, index));
            next += count;
            let mut taken = 0;
            reader.drain(|_| taken += 1).unwrap();
            assert_eq!(taken, count);
            reader.take_overrun()
        };
        // Wherever in the ring that begins.
        for odd in [0, 1, 7, BATCH, 800] {
            assert!(!drain(&mut reader, odd));
            assert!(!drain(&mut reader, ROOM));
            assert!(drain(&mut reader, ring.entries));
        }
        // Full, as far as the device knows, when two batches less one were taken that it wasn't told of.
        assert!(drain(&mut reader, ring.entries - (2 * BATCH - 1)));
        drop(ring);
        close(bench, queue, reader);
    }
}
