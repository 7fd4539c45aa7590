//! A device's control queue without a connection, for fuzz targets.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use paraverbs_tenant::{GuestConfig, Notify};
use virtio_queue::{Queue as SplitQueue, QueueT};
use virtio_rdma::config::Config;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::device::{Device, Queue, Ring};
use crate::host::RdmaHost;
use crate::memory::MemoryTable;

/// Nobody waits for events.
#[derive(Debug)]
struct Deaf;

impl Notify for Deaf {
    fn events(&self) {}

    fn completions(&self, _: u16) {}
}

/// A control queue in memory.
struct Control<'a> {
    queue: Mutex<SplitQueue>,
    table: &'a MemoryTable,
}

impl Ring for Control<'_> {
    fn with<T>(&self, run: impl FnOnce(&mut Queue<'_>) -> T) -> T {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut Queue::new(&mut queue, self.table.memory(), true))
    }

    fn signal(&self) {}
}

/// The device of a guest with one region of memory.
#[derive(Debug)]
pub struct Guest {
    device: Device,
    table: MemoryTable,
    base: u64,
}

/// Where the parts of a virtqueue are in the guest.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Descriptors.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Entries.
    pub size: u16,
}

impl Guest {
    /// A guest whose memory is `bytes` bytes of a memfd, from guest address `base` on.
    ///
    /// # Errors
    /// The memory is refused, or there is no room for the guest.
    pub fn new(
        host: &RdmaHost,
        config: GuestConfig,
        file: &File,
        base: u64,
        bytes: usize,
    ) -> io::Result<Self> {
        let file = FileOffset::new(file.try_clone()?, 0);
        let ranges = [(GuestAddress(base), bytes, Some(file))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        let table = MemoryTable::new(memory, &MemoryTable::default(), false).map_err(io::Error::other)?;
        let tenant = host.admit(config, Arc::new(Deaf), None).map_err(io::Error::other)?;
        tenant.update_memory(table.regions().map_err(io::Error::other)?).map_err(io::Error::other)?;
        Ok(Self { device: Device::new(tenant, host.relay(), None), table, base })
    }

    /// The configuration space.
    pub fn config(&self) -> Config {
        self.device.tenant().config_space()
    }

    /// Copies to memory, as far as there is some.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let _beyond = self.table.memory().write(bytes, GuestAddress(self.base + offset));
    }

    /// Copies from memory, as far as there is some.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let _beyond = self.table.memory().read(bytes, GuestAddress(self.base + offset));
    }

    /// Carries out what is in a control queue that begins anew.
    pub fn control(&self, parts: Parts) {
        let Ok(mut queue) = SplitQueue::new(1024) else { return };
        queue.set_size(parts.size);
        let low_high = |address: u64| {
            let low = u32::try_from(address & u64::from(u32::MAX)).ok();
            (low, u32::try_from(address >> 32).ok())
        };
        let (low, high) = low_high(parts.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = low_high(parts.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = low_high(parts.used);
        queue.set_used_ring_address(low, high);
        queue.set_ready(true);
        self.device.control(&Control { queue: Mutex::new(queue), table: &self.table });
    }

    /// Everything of the guest is destroyed, as by a reset of the device.
    pub fn reset(&self) {
        self.device.control_queue_stopped();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.device.close();
    }
}
