//! A device without a transport: whoever has it starts its queues and has them worked on, on his own thread. For
//! fuzz targets; what is done to a queue is what a transport's worker does.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use paraverbs_tenant::{GuestConfig, Notify, TeardownReport, Tenant};
use virtio_queue::{Queue as SplitQueue, QueueT};
use virtio_rdma::queue::{QUEUES, Queue as Role};
use vm_memory::GuestMemoryMmap;

use crate::device::{Device, Queue, Ring};
use crate::host::RdmaHost;
use crate::memory::MemoryTable;

/// Longest queue.
const MAX_QUEUE_SIZE: u16 = 1024;

/// Who has the device looks for events by himself.
#[derive(Debug)]
struct Unasked;

impl Notify for Unasked {
    fn events(&self) {}

    fn completions(&self, _: u16) {}
}

/// The device of one guest, without a transport. It is to be closed before it is dropped.
pub struct BareDevice {
    host: Arc<RdmaHost>,
    device: Device,
    memory: Mutex<Arc<MemoryTable>>,
    queues: Vec<Mutex<SplitQueue>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue in the memory that the guest has at each moment.
struct Served<'a> {
    queue: &'a Mutex<SplitQueue>,
    memory: &'a Mutex<Arc<MemoryTable>>,
}

impl Ring for Served<'_> {
    fn with<T>(&self, run: impl FnOnce(&mut Queue<'_>) -> T) -> T {
        let table = Arc::clone(&lock(self.memory));
        let mut queue = lock(self.queue);
        let running = queue.ready();
        run(&mut Queue::new(&mut queue, table.memory(), running))
    }

    fn signal(&self) {}
}

impl BareDevice {
    /// A guest begins, without memory and queues.
    ///
    /// # Errors
    /// The host has no room for him, or is down.
    pub fn new(host: &Arc<RdmaHost>, config: GuestConfig) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let tenant = host.admit(config, Arc::new(Unasked), None)?;
        let queues = (0..QUEUES).map(|_| SplitQueue::new(MAX_QUEUE_SIZE).map(Mutex::new));
        let queues = queues.collect::<Result<_, _>>()?;
        let device = Device::new(tenant, host.relay(), None);
        Ok(Self { host: Arc::clone(host), device, memory: Mutex::default(), queues })
    }

    /// The guest.
    pub fn tenant(&self) -> &Tenant {
        self.device.tenant()
    }

    /// Gives the guest another memory table; `require_seals` as for a socket.
    ///
    /// # Errors
    /// The table is none that a guest may have: then the old one stays.
    pub fn set_memory(
        &self,
        memory: GuestMemoryMmap<()>,
        require_seals: bool,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let before = Arc::clone(&lock(&self.memory));
        let table = MemoryTable::new(memory, &before, require_seals)?;
        self.tenant().update_memory(table.regions()?)?;
        *lock(&self.memory) = Arc::new(table);
        Ok(())
    }

    /// Starts a queue of `size` entries from its beginning, with its three parts at these guest addresses:
    /// descriptors, available ring, used ring. An index that no queue has does nothing.
    pub fn start_queue(&self, queue: u16, size: u16, [descriptors, available, used]: [u64; 3]) {
        let Some(mut state) = self.queues.get(usize::from(queue)).map(lock) else { return };
        let halves = |address: u64| {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            (Some(u32::from_le_bytes([a, b, c, d])), Some(u32::from_le_bytes([e, f, g, h])))
        };
        state.reset();
        state.set_size(size);
        let (low, high) = halves(descriptors);
        state.set_desc_table_address(low, high);
        let (low, high) = halves(available);
        state.set_avail_ring_address(low, high);
        let (low, high) = halves(used);
        state.set_used_ring_address(low, high);
        state.set_ready(true);
    }

    /// Works on a queue, as after its kick. An index that no queue has does nothing.
    pub fn serve(&self, queue: u16) {
        let Some(state) = self.queues.get(usize::from(queue)) else { return };
        let ring = Served { queue: state, memory: &self.memory };
        match Role::at(queue) {
            Some(Role::Control) => self.device.control(&ring),
            Some(Role::Event) => {
                self.device.event_queue_started(&ring, || self.host.next_generation());
                self.device.events(&ring);
            }
            Some(Role::MadSend) => {
                self.device.mad_send(&ring);
            }
            Some(Role::Kick(_)) => self.device.kick(),
            Some(Role::Vector(vector)) => {
                self.device.completions(vector, &ring);
            }
            Some(Role::MadReceive) | None => {}
        }
    }

    /// Resets the device, as a driver does by stopping its control queue. Queues stay as they are.
    pub fn reset(&self) {
        self.device.control_queue_stopped();
    }

    /// The guest is gone: everything of it is destroyed.
    pub fn close(&self) -> TeardownReport {
        self.device.close()
    }
}

impl fmt::Debug for BareDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BareDevice").field("device", &self.device).finish_non_exhaustive()
    }
}
