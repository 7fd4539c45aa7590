//! One connection of a guest: what `vhost-user-backend` calls, on the threads that it makes.
//!
//! Three workers: the control queue (requests block in commands of the HCA), events and completion vectors, kicks. The
//! last reads the doorbells while the relay's thread sleeps, and delivers events that come of that.
//! Queues are worked on in memory that is watched, never in the crate's own table, which is replaced before we are
//! told. Nothing here answers an error for what a guest does to its queues: an error would end the worker.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use log::Level;
use paraverbs_tenant::{LogLimit, Notify};
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use virtio_rdma::config::Config;
use virtio_rdma::queue::{self, QUEUES, Queue as Role};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::shared::SharedRegion;
use super::vring::Vring;
use super::wake::{Due, EVENT_WORKER, WORKERS, Wake};
use crate::device::{Device, Queue, Ring};
use crate::host::RdmaHost;
use crate::memory::{Memory, MemoryRefused, MemoryTable};
use crate::relay::Exposure;

/// Longest queue: what VMMs allow.
const MAX_QUEUE_SIZE: usize = 1024;

/// How long a worker that is to end is left alone with what it is at.
const BUSY: Duration = Duration::from_millis(1);

/// What a worker waits for besides its queues; numbers up to that of the queues are the crate's own.
const WAKEN: u64 = QUEUES as u64 + 1;
const MEMORY_LOST: u64 = QUEUES as u64 + 2;

/// The queues of each worker, as masks: control, events and vectors and MADs, kicks.
const QUEUES_OF: [u64; WORKERS] = [
    mask(queue::CONTROL, queue::CONTROL + 1),
    mask(queue::EVENT, queue::FIRST_KICK) | mask(queue::FIRST_VECTOR, QUEUES),
    mask(queue::FIRST_KICK, queue::FIRST_VECTOR),
];

const fn mask(first: u16, behind: u16) -> u64 {
    (1 << behind) - (1 << first)
}

/// The queue that a worker calls number `nth`.
fn queue_of(worker: usize, nth: u16) -> Option<u16> {
    let mask = QUEUES_OF.get(worker).copied().unwrap_or(0);
    (0..QUEUES).filter(|queue| mask >> queue & 1 != 0).nth(usize::from(nth))
}

/// The number by which a queue's worker calls it.
fn place_of(queue: u16) -> Option<(usize, usize)> {
    let worker = QUEUES_OF.iter().position(|mask| queue < QUEUES && mask >> queue & 1 != 0)?;
    let before = QUEUES_OF.get(worker)? & mask(0, queue);
    Some((worker, usize::try_from(before.count_ones()).ok()?))
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    name: Arc<str>,
    log: Arc<LogLimit>,
    host: Arc<RdmaHost>,
    device: Device,
    wake: Arc<Wake>,
    require_seals: bool,
    /// The device's shared-memory region, if it has one.
    region: Option<Arc<SharedRegion>>,
    /// Whether a guest without a region is to be told of in the log: once.
    expects_region: AtomicBool,
    memory: Mutex<Arc<MemoryTable>>,
    /// Held by a worker while it works on a queue, so that stopping one can wait for it.
    working: [Mutex<()>; WORKERS],
    event_queue_started: AtomicBool,
    /// The rings of each worker, once it has had something to do.
    vrings: [OnceLock<Vec<Vring>>; WORKERS],
    doomed: AtomicBool,
    hang_up: OnceLock<ShutdownHandleBox>,
}

/// A handle that says nothing of itself.
struct ShutdownHandleBox(ShutdownHandle);

impl std::fmt::Debug for ShutdownHandleBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShutdownHandle")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock(mutex: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A ring, worked on in the memory that the guest has at each moment.
struct Served<'a> {
    vring: &'a Vring,
    memory: &'a Mutex<Arc<MemoryTable>>,
}

impl Ring for Served<'_> {
    fn with<T>(&self, run: impl FnOnce(&mut Queue<'_>) -> T) -> T {
        let table = Arc::clone(&lock(self.memory));
        let mut state = self.vring.get_mut();
        let running = state.is_enabled() && state.get_queue().ready();
        run(&mut Queue::new(state.get_queue_mut(), table.memory(), running))
    }

    fn signal(&self) {
        self.vring.signal();
    }
}

impl Connection {
    pub(crate) fn new(
        (name, log): (Arc<str>, Arc<LogLimit>),
        host: Arc<RdmaHost>,
        device: Device,
        wake: Arc<Wake>,
        require_seals: bool,
        (region, expects_region): (Option<Arc<SharedRegion>>, bool),
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            log,
            host,
            device,
            wake,
            require_seals,
            region,
            expects_region: AtomicBool::new(expects_region),
            memory: Mutex::default(),
            working: Default::default(),
            event_queue_started: AtomicBool::new(false),
            vrings: Default::default(),
            doomed: AtomicBool::new(false),
            hang_up: OnceLock::new(),
        })
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Lets the workers wait for what doesn't come from the guest. If that fails it can be tried again.
    pub(crate) fn register(&self, daemon: &VhostUserDaemon<Arc<Self>>) -> io::Result<()> {
        let once = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        };
        for (worker, handler) in daemon.get_epoll_handlers().iter().enumerate() {
            let waken = self.wake.consumer(worker).ok_or(io::ErrorKind::NotFound)?;
            once(handler.register_listener(waken.as_raw_fd(), EventSet::IN, WAKEN))?;
            if worker == EVENT_WORKER {
                let lost = paraverbs_guard::loss_event()?;
                let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
                once(handler.register_listener(lost.as_raw_fd(), edges, MEMORY_LOST))?;
            }
        }
        Ok(())
    }

    /// The connection was made; `handle` ends it.
    pub(crate) fn connected(&self, handle: ShutdownHandle) {
        // There is one connection.
        let _first = self.hang_up.set(ShutdownHandleBox(handle));
        if self.doomed.load(Ordering::SeqCst) {
            self.end();
        }
    }

    /// Ends the connection; whoever waits for it goes on. It may be necessary again: the guest can fill the counter
    /// of a call again that this has emptied for a worker.
    pub(crate) fn end(&self) {
        self.doomed.store(true, Ordering::SeqCst);
        // Or a worker whose queue the guest refills without end would hold up who waits for that queue.
        self.device.leave_queues();
        if let Some(region) = &self.region {
            region.end();
        }
        if let Some(handle) = self.hang_up.get() {
            handle.0.shutdown();
        }
        self.vrings.iter().filter_map(OnceLock::get).flatten().for_each(Vring::release);
    }

    /// Ends the workers. Only after [`Device::close`].
    ///
    /// A worker may wait for room in a call that somebody fills as fast as it is emptied: it is emptied until
    /// the worker was faster. From then on none writes to one.
    pub(crate) fn end_workers(&self) {
        self.wake.all();
        self.end();
        for working in &self.working {
            while matches!(working.try_lock(), Err(TryLockError::WouldBlock)) {
                self.end();
                std::thread::sleep(BUSY);
            }
        }
        // One that was at work has perhaps taken the first for something to deliver.
        self.wake.all();
    }

    fn table(&self) -> Arc<MemoryTable> {
        Arc::clone(&lock(&self.memory))
    }

    fn take_memory(&self, memory: Memory) -> Result<(), MemoryRefused> {
        let table = MemoryTable::new(memory, &self.table(), self.require_seals)?;
        // Events of what is torn down go into the new memory.
        let _quiet = self.working.get(EVENT_WORKER).map(lock);
        // Removed regions are torn down here, while they are still mapped.
        self.device.tenant().update_memory(table.regions()?)?;
        *lock(&self.memory) = Arc::new(table);
        Ok(())
    }

    /// Works on one queue; if there is more to do it comes again, behind others.
    fn serve(&self, queue: u16, vring: &Vring) {
        let ring = Served { vring, memory: &self.memory };
        match Role::at(queue) {
            Some(Role::Control) => {
                self.note_missing_region();
                self.device.control(&ring);
            }
            Some(Role::Event) => {
                // Events can come before there is a queue for them.
                let running = ring.with(|queue| queue.is_running());
                if running && !self.event_queue_started.swap(true, Ordering::AcqRel) {
                    self.device.event_queue_started(&ring, || self.host.next_generation());
                }
                if self.device.events(&ring) {
                    self.wake.events();
                }
            }
            Some(Role::MadSend) => {
                if self.device.mad_send(&ring) {
                    self.wake.mads();
                }
            }
            Some(Role::Kick(_)) if vring.was_kicked() => self.kick(),
            Some(Role::Vector(vector)) => {
                if self.device.completions(vector, &ring) {
                    self.wake.completions(vector);
                }
            }
            Some(Role::Kick(_) | Role::MadReceive) | None => {}
        }
    }

    /// Does what was rung for, and delivers the events that have come of it: no other thread is woken for them.
    ///
    /// When it writes to the guest's descriptors it isn't the relay's reader any more, so if the guest makes it wait
    /// there, nobody else waits.
    fn kick(&self) {
        self.wake.collect();
        self.device.kick();
        let due = self.wake.collected();
        if due.is_empty() {
            return;
        }
        let vrings = self.vrings.get(EVENT_WORKER).and_then(OnceLock::get);
        let working = self.working.get(EVENT_WORKER).and_then(try_lock);
        if let (Some(vrings), Some(_working)) = (vrings, working) {
            self.deliver(due, vrings);
        } else {
            // That worker is at it, or has yet to begin: it goes on.
            self.wake.give_back(due);
        }
    }

    /// Delivers what came for the guest, and goes on with queues whose turn ended.
    fn deliver(&self, due: Due, vrings: &[Vring]) {
        for queue in 0..QUEUES {
            let due = match Role::at(queue) {
                Some(Role::Event) => due.events(),
                Some(Role::Vector(vector)) => due.completions(vector),
                Some(Role::MadSend) => due.mads(),
                _ => false,
            };
            if let Some((EVENT_WORKER, place)) = place_of(queue).filter(|_| due)
                && let Some(vring) = vrings.get(place)
            {
                self.serve(queue, vring);
            }
        }
    }

    /// Tells once if a guest whose doorbells are to be direct can't have them so.
    fn note_missing_region(&self) {
        if !self.expects_region.load(Ordering::Relaxed) || !self.expects_region.swap(false, Ordering::Relaxed)
        {
            return;
        }
        if !self.region.as_ref().is_some_and(|region| region.is_known()) {
            let level = self.log.level(Level::Warn);
            let why = "its VMM takes no shared-memory regions (VHOST_USER_PROTOCOL_F_SHMEM)";
            log::log!(level, "guest {}: doorbells are relayed, {why}", self.name);
        }
    }

    /// The device is about to be reset.
    fn forget_region(&self) {
        if let Some(region) = &self.region {
            region.forget();
        }
    }

    /// Some guest has taken memory away: if it was this one, it is cut off.
    fn check_memory(&self) {
        if self.table().is_lost() {
            let level = self.log.level(Level::Warn);
            log::log!(level, "guest {}: took its memory away while it was in use; disconnected", self.name);
            self.end();
        }
    }
}

impl VhostUserBackend for Connection {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(QUEUES)
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let always = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let region = VhostUserProtocolFeatures::SHMEM | VhostUserProtocolFeatures::BACKEND_REQ;
        if self.region.is_some() { always | region } else { always }
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        let region = self.region.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(region.config())
    }

    fn set_backend_req_fd(&self, channel: Backend) {
        if let Some(region) = &self.region {
            region.take_channel(channel);
        }
    }

    fn reset_device(&self) {
        // First, or a worker that waits for the front end would have it wait.
        self.forget_region();
        let _idle = self.working.first().map(lock);
        self.event_queue_started.store(false, Ordering::Release);
        self.device.control_queue_stopped();
    }

    fn set_event_idx(&self, _: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
            return Vec::new();
        };
        // The caller has bounded both; nobody else's word is taken for an allocation.
        self.device.config_space(offset, size.min(Config::BYTES))
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        let taken = self.take_memory(Memory::clone(&memory.memory()));
        taken.map_err(|refused| {
            // Nobody watches the new mappings, so nobody may use them.
            match memory.lock() {
                Ok(guard) => guard.replace(Memory::new()),
                Err(poisoned) => poisoned.into_inner().replace(Memory::new()),
            }
            let level = self.log.level(Level::Warn);
            log::log!(level, "guest {}: {}; disconnected", self.name, chain_of(&refused));
            self.end();
            io::Error::other(refused)
        })
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        QUEUES_OF.to_vec()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let queue = u16::try_from(queue).unwrap_or(u16::MAX);
        let Some((worker, _)) = place_of(queue) else { return Ok(()) };
        if Role::at(queue) == Some(Role::Control) {
            self.forget_region();
        }
        let _idle = self.working.get(worker).map(lock);
        match Role::at(queue) {
            Some(Role::Control) => self.device.control_queue_stopped(),
            Some(Role::Event) => self.event_queue_started.store(false, Ordering::Release),
            _ => {}
        }
        Ok(())
    }

    fn handle_event(&self, event: u16, _: EventSet, vrings: &[Vring], worker: usize) -> io::Result<()> {
        if let Some(known) = self.vrings.get(worker) {
            known.get_or_init(|| vrings.to_vec());
        }
        let _working = self.working.get(worker).map(lock);
        // Under the lock: whoever ends the workers waits for it before he wakes them for the last time, and what wakes
        // one may be used up below.
        if self.device.is_closing() {
            // That ends the worker, without an exit event, which the crate would never close.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match u64::from(event) {
            WAKEN if worker == EVENT_WORKER => self.deliver(self.wake.take(), vrings),
            MEMORY_LOST => self.check_memory(),
            _ => {
                if let (Some(queue), Some(vring)) = (queue_of(worker, event), vrings.get(usize::from(event)))
                {
                    self.serve(queue, vring);
                }
            }
        }
        Ok(())
    }
}

/// An error and its causes in one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_one_worker_and_a_place_there() {
        assert_eq!(QUEUES_OF.iter().fold(0, |all, mask| all | mask), mask(0, QUEUES));
        for queue in 0..QUEUES {
            let (worker, place) = place_of(queue).unwrap();
            assert_eq!(queue_of(worker, u16::try_from(place).unwrap()), Some(queue));
        }
        assert_eq!(queue_of(0, 1), None);
        assert_eq!(place_of(QUEUES), None);
    }
}
