//! The thread that reads the doorbell areas of all guests of an HCA, and drives its engine.
//!
//! While it is busy it takes no lock, allocates nothing and makes no system call: it has a list of its own, and
//! takes in changes when a flag says that there are some. Before it sleeps it asks each area for kicks and the
//! engine for its waker, and looks again (`docs/virtio-rdma.md`, 10.2).

use std::hint;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use paraverbs_tenant::hca::Hca;
use paraverbs_tenant::{DirectArea, Relay, RelayArea, SlotTable};

use super::area::{Area, GuestNumber};
use super::direct::Direct;
use super::turns::Turns;
use super::{Engine, Progress, RelayConfig};
use crate::memory::mapping_of;

/// Looks in vain between two looks at the clock.
const LOOKS: u32 = 32;
/// How long the thread keeps its core while it looks in vain. Then it lets others have it from time to time: whoever
/// has work for this thread may wait for the very same core.
const KEEP: Duration = Duration::from_micros(20);

/// How long the thread has looked in vain.
#[derive(Debug, Default)]
struct Idle {
    looks: u32,
    since: Option<Instant>,
}

impl Idle {
    /// Notes another look in vain. False if they have been going on for so long.
    fn goes_on(&mut self, spin: Duration) -> bool {
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS) {
            hint::spin_loop();
            return true;
        }
        let past = self.since.get_or_insert_with(Instant::now).elapsed();
        if past >= KEEP {
            thread::yield_now();
        }
        past < spin
    }
}

/// What the thread and the others share.
struct Shared {
    hca: Arc<dyn Hca>,
    engine: Option<Arc<dyn Engine>>,
    spin: Duration,
    areas: Mutex<Vec<Arc<Area>>>,
    guests: AtomicU64,
    changed: AtomicBool,
    stop: AtomicBool,
    thread: OnceLock<Thread>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("areas", &self.areas).finish_non_exhaustive()
    }
}

impl Shared {
    fn areas(&self) -> MutexGuard<'_, Vec<Arc<Area>>> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn tell_change(&self) {
        self.changed.store(true, Ordering::Release);
        self.wake();
    }

    fn run(&self) {
        let mut turns = Turns::default();
        let mut idle = Idle::default();
        while !self.stop.load(Ordering::Acquire) {
            if self.changed.load(Ordering::Relaxed) && self.changed.swap(false, Ordering::Acquire) {
                turns = Turns::of(&self.areas());
                turns.areas().for_each(|area| area.wake());
            }
            let (worked, next_timer) = self.round(&mut turns);
            if worked {
                idle = Idle::default();
                continue;
            }
            if !self.spin.is_zero() && idle.goes_on(self.spin) {
                continue;
            }
            self.sleep(&turns, next_timer);
            idle = Idle::default();
        }
    }

    /// Gives each guest a turn and runs the engine once: no guest makes another wait longer.
    fn round(&self, turns: &mut Turns) -> (bool, Option<Instant>) {
        let worked = turns.round(&*self.hca);
        let progress = self.engine.as_ref().map_or_else(Progress::default, |engine| engine.run());
        (worked | progress.worked, progress.next_timer)
    }

    /// Sleeps until a kick, the engine's waker or a change, or the timer; not at all if there is work already.
    fn sleep(&self, turns: &Turns, next_timer: Option<Instant>) {
        let awake = turns.areas().position(|area| !area.prepare_sleep());
        let quiet = awake.is_none() && self.engine.as_ref().is_none_or(|engine| engine.may_sleep());
        if quiet {
            match next_timer {
                Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
        turns.areas().take(awake.unwrap_or(usize::MAX)).for_each(|area| area.wake());
    }
}

/// The relay as a guest's tenant and kick queues see it.
#[derive(Clone, Debug)]
pub(crate) struct RelayHandle {
    shared: Arc<Shared>,
    guest: GuestNumber,
    direct: Option<Arc<Direct>>,
}

/// One thread reads all areas, so one kick queue serves them.
const KICK_QUEUE: u16 = 0;

impl RelayHandle {
    /// The same, for a guest with a region for areas.
    pub(crate) fn with_region(self, direct: Option<Arc<Direct>>) -> Self {
        Self { direct, ..self }
    }

    fn read(&self, area: Area) {
        self.shared.areas().push(Arc::new(area));
        self.shared.tell_change();
    }

    /// Somebody has rung while the thread was asleep.
    pub(crate) fn kick(&self) {
        self.shared.wake();
    }
}

impl Relay for RelayHandle {
    fn open(&self, area: RelayArea) -> u16 {
        let place = mapping_of(&area.region).map(|mapping| (mapping, area.offset));
        match place.and_then(|place| Area::new(self.guest, place, area.slots, &area.table)) {
            Some(area) => self.read(area),
            None => log::error!("a doorbell area is not in mapped guest memory: it is not read"),
        }
        KICK_QUEUE
    }

    fn has_region(&self) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.exposure().is_known())
    }

    fn open_direct(&self, slots: u32, table: &Arc<SlotTable>) -> Option<DirectArea> {
        let direct = self.direct.as_ref()?;
        let place = direct.take(slots)?;
        let offset = u64::from(place.offset);
        let Some(area) = Area::new(self.guest, (place.mapping, offset), slots, table) else {
            direct.give_back(place.offset);
            return None;
        };
        self.read(area.at(place.offset));
        Some(DirectArea { offset, kick_queue: KICK_QUEUE })
    }

    fn close(&self, table: &Arc<SlotTable>) {
        let closed: Vec<_> = self.shared.areas().extract_if(.., |area| area.is_of(table)).collect();
        for area in &closed {
            area.close();
            if let (Some(direct), Some(offset)) = (&self.direct, area.direct()) {
                direct.give_back(offset);
            }
        }
        // The thread lets go of the area's memory.
        self.shared.tell_change();
    }
}

/// The thread, until this is dropped.
#[derive(Debug)]
pub(crate) struct RelayThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl RelayThread {
    /// Starts it. It doesn't end before this is dropped.
    pub(crate) fn start(
        hca: Arc<dyn Hca>,
        engine: Option<Arc<dyn Engine>>,
        config: RelayConfig,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            hca,
            engine,
            spin: config.spin,
            areas: Mutex::default(),
            guests: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("rdma-relay".into()).spawn(move || for_thread.run())?;
        let handle = thread.thread().clone();
        // This is the only place that sets it.
        let _first = shared.thread.set(handle.clone());
        if let Some(engine) = &shared.engine {
            let waker = handle.clone();
            engine.set_waker(Box::new(move || waker.unpark()));
        }
        // For work that came before there was anybody to wake.
        handle.unpark();
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The relay, for a guest that wasn't there before.
    pub(crate) fn handle(&self) -> RelayHandle {
        let guest = GuestNumber(self.shared.guests.fetch_add(1, Ordering::Relaxed));
        RelayHandle { shared: Arc::clone(&self.shared), guest, direct: None }
    }
}

impl Drop for RelayThread {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("relay thread has panicked");
        }
    }
}
