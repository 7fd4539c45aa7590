//! Transports for tests.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use virtio_rdma::config::Config;

use super::{QueueRings, Transport};
use crate::error::{Error, Result};
use crate::event_fd::Event;
use crate::memory::Chunk;

/// Takes memory, and has no queues.
#[derive(Debug)]
pub(crate) struct MemoryOnly {
    regions: Mutex<Vec<(u64, u64)>>,
    event: Event,
}

impl Default for MemoryOnly {
    fn default() -> Self {
        Self { regions: Mutex::default(), event: Event::new().unwrap() }
    }
}

impl MemoryOnly {
    /// Whether a range is in one region.
    pub(crate) fn contains(&self, address: u64, length: u64) -> bool {
        let inside = |(start, bytes): &(u64, u64)| *start <= address && address + length <= start + bytes;
        self.regions.lock().unwrap().iter().any(inside)
    }

    /// The lengths of all regions.
    pub(crate) fn regions(&self) -> Vec<u64> {
        self.regions.lock().unwrap().iter().map(|(_, bytes)| *bytes).collect()
    }
}

impl Transport for MemoryOnly {
    fn config(&self) -> Result<Config> {
        Err(Error::Lost("no queues"))
    }

    fn add_memory(&self, chunk: &Chunk, guest_address: u64) -> Result<()> {
        self.regions.lock().unwrap().push((guest_address, chunk.len() as u64));
        Ok(())
    }

    fn address_space(&self) -> u64 {
        1 << 40
    }

    fn start_queue(&self, _index: u16, _rings: &QueueRings) -> Result<()> {
        Err(Error::Lost("no queues"))
    }

    fn kick(&self, _index: u16) {}

    fn interrupt(&self, _index: u16) -> &Event {
        &self.event
    }

    fn hangup(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
