//! The devices of one HCA: their generations, their relay, and what happens to all of them at once.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use paraverbs_tenant::{GuestConfig, Host, MemoryError, Notify, Surroundings, Tenant};

use crate::memory::Copies;
use crate::relay::{Direct, Engine, RelayConfig, RelayHandle, RelayThread};

/// How the HCA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Ready,
    /// Lost, and perhaps coming back.
    Down,
    Failed,
}

#[derive(Debug)]
struct Guests {
    phase: Phase,
    tenants: Vec<Weak<Tenant>>,
}

impl Guests {
    fn all(&self) -> impl Iterator<Item = Arc<Tenant>> {
        self.tenants.iter().filter_map(Weak::upgrade)
    }
}

/// Why a guest gets no device now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestRefused {
    /// The HCA is lost and has not come back yet.
    #[error("HCA is being reset")]
    Down,
    /// The HCA is lost for good.
    #[error("HCA has failed")]
    Failed,
    /// There is no room for the guest.
    #[error(transparent)]
    Tenant(#[from] MemoryError),
}

/// The virtio-rdma devices of one HCA, and the relay of their doorbells.
#[derive(Debug)]
pub struct RdmaHost {
    host: Arc<Host>,
    relay: RelayThread,
    generation: AtomicU32,
    guests: Mutex<Guests>,
    changed: Condvar,
}

impl RdmaHost {
    /// Starts the relay's thread of an HCA that works. With an `engine` whoever reads the doorbells drives that too.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(
        host: Arc<Host>,
        engine: Option<Arc<dyn Engine>>,
        config: RelayConfig,
    ) -> io::Result<Arc<Self>> {
        let relay = RelayThread::start(Arc::clone(host.hca()), engine, config)?;
        Ok(Arc::new(Self {
            host,
            relay,
            generation: AtomicU32::new(first_generation()),
            guests: Mutex::new(Guests { phase: Phase::Ready, tenants: Vec::new() }),
            changed: Condvar::new(),
        }))
    }

    /// What the guests share.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Number of guests that are connected now.
    pub fn connected(&self) -> usize {
        self.guests().all().count()
    }

    /// The HCA is lost, and about to be reset: from now on nothing is rung, and requests wait.
    pub fn stop_all(&self) {
        for tenant in self.enter(Phase::Down) {
            tenant.stop();
        }
    }

    /// The HCA was reset and uses no memory: what the guests had is forgotten, and they are told. Answers their
    /// new generation.
    pub fn device_lost(&self) -> u32 {
        let generation = self.next_generation();
        for tenant in self.enter(Phase::Down) {
            tenant.device_lost(generation);
        }
        self.host.after_reset();
        generation
    }

    /// The HCA works again; the guests are told. A guest that it doesn't take any more has a failed device.
    pub fn device_ready(&self) {
        for tenant in self.enter(Phase::Ready) {
            if let Err(error) = tenant.device_ready() {
                log::error!("{:?} has lost its device for good: {error}", tenant.guest());
            }
        }
    }

    /// The HCA could not be brought up again; the guests are told that they have lost everything.
    pub fn device_failed(&self) {
        let generation = self.next_generation();
        for tenant in self.enter(Phase::Failed) {
            tenant.device_failed(generation);
        }
    }

    /// From now on guests are admitted as the phase says. Answers those that were before; to do something with
    /// them may take long, so the list isn't locked meanwhile.
    fn enter(&self, phase: Phase) -> Vec<Arc<Tenant>> {
        let mut guests = self.guests();
        guests.phase = phase;
        self.changed.notify_all();
        guests.all().collect()
    }

    /// A generation that no guest has had.
    pub(crate) fn next_generation(&self) -> u32 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn relay(&self) -> RelayHandle {
        self.relay.handle()
    }

    /// Waits until the HCA works or has failed for good, or `given_up` says so after [`RdmaHost::look_again`].
    pub(crate) fn wait_until_up(&self, given_up: impl Fn() -> bool) {
        let down = |guests: &mut Guests| guests.phase == Phase::Down && !given_up();
        drop(self.changed.wait_while(self.guests(), down).unwrap_or_else(PoisonError::into_inner));
    }

    /// Somebody who waits may have a reason to give up.
    pub(crate) fn look_again(&self) {
        drop(self.guests());
        self.changed.notify_all();
    }

    /// A guest begins, in a generation of its own; with a region for doorbell areas, if it may have one.
    pub(crate) fn admit(
        &self,
        config: GuestConfig,
        notify: Arc<dyn Notify>,
        region: Option<Arc<Direct>>,
    ) -> Result<Arc<Tenant>, GuestRefused> {
        let generation = self.next_generation();
        let mut guests = self.guests();
        match guests.phase {
            Phase::Ready => {}
            Phase::Down => return Err(GuestRefused::Down),
            Phase::Failed => return Err(GuestRefused::Failed),
        }
        let relay = Arc::new(self.relay().with_region(region));
        let around = Surroundings { memory: Arc::new(Copies), relay, notify };
        let tenant = Arc::new(Tenant::new(&self.host, GuestConfig { generation, ..config }, around)?);
        guests.tenants.retain(|tenant| tenant.strong_count() != 0);
        guests.tenants.push(Arc::downgrade(&tenant));
        Ok(tenant)
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds of the clock, so that a daemon that starts again doesn't repeat what the last one used.
fn first_generation() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(1)
}
