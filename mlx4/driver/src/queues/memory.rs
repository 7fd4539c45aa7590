//! The seam's memory and doorbells, as the rings want them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlx4_pci::{DmaBuffer, DmaSpace, Doorbell as SeamDoorbell, MemoryError};
use mlx4_queue::{Doorbell, RingMemory};

use crate::claim::RingMemoryPages;
use crate::error::Result;

/// log2 of the page size of rings.
const LOG2_PAGE: u8 = 12;

/// Memory of a ring and its doorbell record: the record is in the last page.
///
/// Once the device has let go of it, it is freed with the last clone; before that, it waits for a reset.
#[derive(Debug)]
pub(crate) struct Memory {
    /// `None` only while being dropped.
    buffer: Option<DmaBuffer>,
    iova: u64,
    ring_bytes: usize,
    free: AtomicBool,
}

impl Memory {
    /// Memory for a ring of `bytes` and a record.
    pub(super) fn new(dma: &DmaSpace, bytes: usize) -> Result<Arc<Self>> {
        let ring_bytes = bytes.next_multiple_of(1 << LOG2_PAGE);
        let buffer = dma.allocate(ring_bytes + (1 << LOG2_PAGE), 1 << LOG2_PAGE)?;
        let iova = buffer.iova();
        Ok(Arc::new(Self { buffer: Some(buffer), iova, ring_bytes, free: AtomicBool::new(false) }))
    }

    /// Bus addresses of the ring's pages.
    pub(super) fn pages(&self) -> Vec<u64> {
        (0..self.ring_bytes as u64 >> LOG2_PAGE).map(|page| self.iova + (page << LOG2_PAGE)).collect()
    }

    /// The ring's pages as a config wants them.
    pub(super) fn ring(pages: &[u64]) -> RingMemoryPages<'_> {
        RingMemoryPages { pages, log2_page: LOG2_PAGE }
    }

    /// Where the record is.
    pub(super) fn record_offset(&self) -> usize {
        self.ring_bytes
    }

    /// Bus address of the record.
    pub(super) fn record(&self) -> u64 {
        self.iova + self.ring_bytes as u64
    }

    /// Passes on the result of making an object with the memory. If it failed, the device has not kept the
    /// memory, unless the error leaves that open.
    pub(super) fn unless_kept<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| !error.leaves_open()) {
            self.free.store(true, Ordering::Release);
        }
        result
    }

    /// The device has let go of the memory.
    pub(super) fn release(this: Arc<Self>) {
        this.free.store(true, Ordering::Release);
    }

    /// Accesses the memory. The ring never asks for anything outside: that was checked when it was made.
    fn access<T>(&self, access: impl FnOnce(&DmaBuffer) -> Result<T, MemoryError>) -> T {
        match self.buffer.as_ref().map(access) {
            Some(Ok(value)) => value,
            Some(Err(error)) => panic!("ring outside its memory: {error}"),
            None => unreachable!("the memory is there until it is dropped"),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (true, Some(buffer)) = (self.free.load(Ordering::Acquire), self.buffer.take())
            && let Err(error) = buffer.release()
        {
            log::warn!("memory of a queue: {error}");
        }
    }
}

impl RingMemory for Memory {
    fn bytes(&self) -> usize {
        self.access(|buffer| Ok(buffer.len()))
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.access(|buffer| buffer.write(offset, from));
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        self.access(|buffer| buffer.read(offset, to));
    }

    fn publish(&self, offset: usize, word: [u8; 4]) {
        self.access(|buffer| buffer.store_be32(offset, u32::from_be_bytes(word)));
    }

    fn observe(&self, offset: usize) -> [u8; 4] {
        self.access(|buffer| buffer.load_be32(offset)).to_be_bytes()
    }
}

/// A doorbell of the seam.
#[derive(Debug)]
pub(super) struct Bell(pub(super) Arc<dyn SeamDoorbell>);

impl Doorbell for Bell {
    fn ring(&self, value: u64) {
        self.0.ring(value);
    }
}
