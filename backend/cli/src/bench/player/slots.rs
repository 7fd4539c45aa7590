//! A card of the model whose doorbells are slots of a doorbell area, as those of guests are: whoever rings stores
//! to memory, and the engine's thread looks there. Besides doorbells it is the model's card.

use std::fmt;
use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mlx4_model::hca::Hca;
use mlx4_model::seam::ModelDevice;
use mlx4_pci::{
    DmaSpace, Doorbell, DoorbellKind, EventFd, Identity, InterruptError, PciDevice, RegisterError,
    ResetError, ResetKind,
};
use virtio_rdma::doorbell::{self, Reader, area_bytes};

/// Slots of the area. A driver with a few queues has fewer doorbells.
const SLOTS: u32 = 256;
/// How long the engine's thread looks for work before it sleeps, as the daemon's does here.
const SPIN: Duration = crate::bench::host::SPIN;
/// Looks in vain between two looks at the clock.
const LOOKS: u32 = 64;

/// The area, and what its slots ring.
struct Slots {
    words: Box<[AtomicU64]>,
    bells: Box<[OnceLock<Arc<dyn Doorbell>>]>,
    taken: AtomicU32,
    thread: OnceLock<Thread>,
}

impl Slots {
    fn new() -> Self {
        let words = area_bytes(SLOTS).map_or(0, |bytes| bytes as usize / 8);
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            bells: (0..SLOTS).map(|_| OnceLock::new()).collect(),
            taken: AtomicU32::new(0),
            thread: OnceLock::new(),
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// A doorbell that is a slot.
struct SlotBell {
    slots: Arc<Slots>,
    slot: u32,
}

impl Doorbell for SlotBell {
    fn ring(&self, value: u64) {
        if doorbell::ring(&*self.slots.words, self.slot, value) {
            self.slots.wake();
        }
    }
}

impl fmt::Debug for SlotBell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotBell({})", self.slot)
    }
}

/// The card.
pub(super) struct SlotCard {
    model: Arc<ModelDevice>,
    slots: Arc<Slots>,
}

impl SlotCard {
    pub(super) fn new(model: Arc<ModelDevice>) -> Self {
        Self { model, slots: Arc::new(Slots::new()) }
    }
}

impl PciDevice for SlotCard {
    fn identity(&self) -> &Identity {
        self.model.identity()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), RegisterError> {
        PciDevice::config_read(&*self.model, offset, data)
    }

    fn register(&self, offset: u64) -> Result<u32, RegisterError> {
        self.model.register(offset)
    }

    fn set_register(&self, offset: u64, value: u32) -> Result<(), RegisterError> {
        self.model.set_register(offset, value)
    }

    fn dma(&self) -> &DmaSpace {
        PciDevice::dma(&*self.model)
    }

    fn interrupt(&self, vector: u16) -> Result<EventFd, InterruptError> {
        self.model.interrupt(vector)
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<(), InterruptError> {
        self.model.enable_interrupts(vectors)
    }

    fn disable_interrupts(&self) -> Result<(), InterruptError> {
        self.model.disable_interrupts()
    }

    fn doorbell(&self, uar: u32, kind: DoorbellKind) -> Result<Arc<dyn Doorbell>, RegisterError> {
        let bell = self.model.doorbell(uar, kind)?;
        let slot = self.slots.taken.fetch_add(1, Ordering::Relaxed);
        match self.slots.bells.get(slot as usize) {
            Some(place) => {
                place.get_or_init(|| bell);
                Ok(Arc::new(SlotBell { slots: Arc::clone(&self.slots), slot }))
            }
            // No slot is left for it, and it is rung by a call.
            None => Ok(bell),
        }
    }

    fn reset(&self) -> Result<ResetKind, ResetError> {
        PciDevice::reset(&*self.model)
    }
}

impl fmt::Debug for SlotCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotCard").field("model", &self.model).finish_non_exhaustive()
    }
}

/// The engine, which reads the slots: in a thread of its own, unless the caller has it.
pub(super) struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    slots: Arc<Slots>,
    hca: Arc<Hca>,
    /// Whoever runs the engine holds this.
    reader: Mutex<Reader<Area>>,
    pause: AtomicBool,
    stop: AtomicBool,
}

/// The area as its reader has it.
struct Area(Arc<Slots>);

impl doorbell::Words for Area {
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words[index]
    }
}

/// The engine in the caller's hand; its thread waits.
pub(super) struct InHand<'a> {
    shared: &'a Shared,
    reader: MutexGuard<'a, Reader<Area>>,
}

impl InHand<'_> {
    /// Rings what was rung, and runs the engine once. Says whether it worked.
    pub(super) fn turn(&self) -> bool {
        self.shared.turn(&self.reader)
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.shared.pause.store(false, Ordering::Release);
        self.shared.slots.wake();
    }
}

impl Engine {
    /// Starts the thread.
    pub(super) fn start(card: &SlotCard) -> Result<Self> {
        let slots = Arc::clone(&card.slots);
        let reader = Reader::new(Area(Arc::clone(&slots)), SLOTS).context("a doorbell area")?;
        let hca = Arc::clone(card.model.hca());
        let shared = Arc::new(Shared {
            slots,
            hca,
            reader: Mutex::new(reader),
            pause: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("bench-engine".into()).spawn(move || of_thread.run())?;
        let handle = thread.thread().clone();
        // This is the only place that sets it.
        let _first = shared.slots.thread.set(handle.clone());
        shared.hca.set_waker(Box::new(move || handle.unpark()));
        shared.slots.wake();
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes the engine from its thread.
    pub(super) fn take(&self) -> InHand<'_> {
        self.shared.pause.store(true, Ordering::Release);
        self.shared.slots.wake();
        let reader = self.shared.lock();
        reader.wake();
        InHand { shared: &self.shared, reader }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.slots.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("engine thread has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Reader<Area>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, reader: &Reader<Area>) -> bool {
        let rung = reader.drain(|slot, value| {
            if let Some(bell) = self.slots.bells[slot as usize].get() {
                bell.ring(value);
            }
        });
        self.hca.run().worked | (rung != 0)
    }

    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            if self.pause.load(Ordering::Acquire) {
                thread::park();
                continue;
            }
            let reader = self.lock();
            reader.wake();
            self.work(&reader);
        }
    }

    /// Runs the engine until it is taken or ended.
    fn work(&self, reader: &Reader<Area>) {
        let mut idle = 0u32;
        let mut since = None;
        while !self.pause.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            if self.turn(reader) {
                (idle, since) = (0, None);
                continue;
            }
            idle += 1;
            if !idle.is_multiple_of(LOOKS) || since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                hint::spin_loop();
                continue;
            }
            if reader.prepare_sleep() && self.hca.may_sleep() {
                // Model timers are those of retries, which nothing here leads to but bring-up.
                thread::park_timeout(Duration::from_millis(10));
            }
            reader.wake();
        }
    }
}
