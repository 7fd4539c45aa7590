//! One guest of an HCA: the door to all of this crate.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_rdma::config::Config;
use virtio_rdma::request::query::Stats;

use crate::config::{GuestConfig, capabilities};
use crate::events::{Events, Notify};
use crate::hca::{EventSink, GuestId};
use crate::host::Host;
use crate::memory::{GuestMemory, GuestRegion, MemoryError, Pins, RegionTable};
use crate::objects::Objects;
use crate::relay::Relay;
use crate::request;
use crate::state::{Phase, State};
use crate::stats::{Counters, Had};
use crate::teardown::TeardownReport;

/// What a tenant needs of the device around it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Copies to and from guest memory.
    pub memory: Arc<dyn GuestMemory>,
    /// Reads doorbell areas.
    pub relay: Arc<dyn Relay>,
    /// Is told of events.
    pub notify: Arc<dyn Notify>,
}

/// One guest of an HCA.
///
/// Requests, updates of the memory table, reset and close exclude each other; events, doorbells and statistics don't
/// wait for them. It is to be closed before it is dropped ([`Tenant::close`]).
#[derive(Debug)]
pub struct Tenant {
    state: Mutex<State>,
    events: Arc<Events>,
    counters: Arc<Counters>,
    /// The guest's id in the HCA's present life.
    guest: AtomicU32,
    /// What the guest had when the state was last let go of.
    had: Mutex<Had>,
}

/// The state while it is locked.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    had: &'a Mutex<Had>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        *self.had.lock().unwrap_or_else(PoisonError::into_inner) = self.state.had();
    }
}

impl Tenant {
    /// A guest begins, without memory.
    ///
    /// # Errors
    /// [`MemoryError::NoWindow`], [`MemoryError::Attach`].
    pub fn new(host: &Arc<Host>, config: GuestConfig, around: Surroundings) -> Result<Self, MemoryError> {
        let limits = config.limits;
        let bytes = limits.window_bytes;
        let window = host.windows().take(bytes, 1 << 30).ok_or(MemoryError::NoWindow { bytes })?;
        let counters = Arc::<Counters>::default();
        let events = Arc::new(Events::new(
            config.generation,
            u16::from(config.completion_vectors),
            limits.events,
            around.notify,
            Arc::clone(&counters),
        ));
        let sink: Arc<dyn EventSink> = Arc::clone(&events) as _;
        let guest = host.hca().attach(sink).map_err(MemoryError::Attach)?;
        let info = host.hca().device();
        let state = State {
            host: Arc::clone(host),
            guest,
            capabilities: capabilities(&info, &config),
            info,
            phase: Phase::Ready,
            generation: config.generation,
            events: Arc::clone(&events),
            counters: Arc::clone(&counters),
            memory: around.memory,
            relay: around.relay,
            table: RegionTable::default(),
            pins: Pins::new(Arc::new(window), limits.chunk, limits.chunks, limits.idle_bytes),
            registered_bytes: 0,
            objects: Objects::new(&limits),
            quarantined: 0,
            attachments: 0,
            closed: false,
            config,
        };
        let had = Mutex::new(state.had());
        Ok(Self { state: Mutex::new(state), events, counters, guest: AtomicU32::new(guest.0), had })
    }

    fn lock(&self) -> Locked<'_> {
        Locked { state: self.state.lock().unwrap_or_else(PoisonError::into_inner), had: &self.had }
    }

    fn had(&self) -> Had {
        *self.had.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest, as the HCA knows it; another one after each [`Tenant::device_ready`].
    pub fn guest(&self) -> GuestId {
        GuestId(self.guest.load(Ordering::Relaxed))
    }

    /// Its events.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Its counters; the transport adds to some of them.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The configuration space as it is now.
    pub fn config_space(&self) -> Config {
        self.lock().config_space()
    }

    /// Carries out a request, or refuses it, and writes the reply to the start of `reply`.
    ///
    /// `request` is a copy that doesn't change any more. Answers the length of the reply in bytes; `None` if
    /// there is not even room for the header of one.
    pub fn handle(&self, request: &[u8], reply: &mut [u8]) -> Option<usize> {
        request::handle(&mut self.lock(), request, reply)
    }

    /// Takes in another memory table. Regions that stay keep what is mapped of them; objects whose memory goes
    /// away are taken from the HCA first, and their owner is told by events.
    ///
    /// # Errors
    /// The table is none that a guest may have: then the old one stays.
    pub fn update_memory(&self, regions: Vec<GuestRegion>) -> Result<(), MemoryError> {
        self.lock().update_memory(regions)
    }

    /// The guest has reset its device: everything of it is destroyed, the memory table stays.
    pub fn reset(&self) -> TeardownReport {
        self.lock().reset()
    }

    /// The guest's driver doesn't know that its device began anew: everything is destroyed as by a reset, and the
    /// driver told by events, with a generation that it hasn't had.
    pub fn renew(&self, generation: u32) -> TeardownReport {
        self.lock().renew(generation)
    }

    /// The counters, and what the guest has, as the guest itself can ask for them. Doesn't wait: while a request is
    /// carried out, it is what the guest had before.
    pub fn stats(&self) -> Stats {
        self.counters.stats(&self.had())
    }

    /// The generation of its device. Doesn't wait, either.
    pub fn generation(&self) -> u32 {
        self.had().generation
    }

    /// The guest is gone: everything of it is destroyed.
    ///
    /// When this returns the HCA uses none of its memory but what was quarantined, and that is kept alive.
    pub fn close(&self) -> TeardownReport {
        self.lock().close()
    }

    /// The HCA is lost: from now on nothing is rung and requests wait. Before the HCA is reset.
    pub fn stop(&self) {
        self.lock().stop();
    }

    /// The HCA was reset and uses no memory: everything is forgotten, and the guest told.
    pub fn device_lost(&self, generation: u32) {
        self.lock().device_lost(generation);
    }

    /// The HCA works again, after [`Tenant::device_lost`]. For a guest that began since then nothing changes.
    ///
    /// # Errors
    /// [`MemoryError::Attach`]: then the device has failed for good.
    pub fn device_ready(&self) -> Result<(), MemoryError> {
        let sink: Arc<dyn EventSink> = Arc::clone(&self.events) as _;
        let mut state = self.lock();
        state.device_ready(sink)?;
        self.guest.store(state.guest.0, Ordering::Relaxed);
        Ok(())
    }

    /// The HCA could not be brought up again, and may not even have been reset: the guest is told that everything is
    /// lost, and what the HCA may use stays mapped.
    pub fn device_failed(&self, generation: u32) {
        self.lock().device_failed(generation);
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.lock().abandon();
    }
}
