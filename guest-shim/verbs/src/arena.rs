//! The memory that the device knows, and its pieces: rings, records, doorbell areas, memory regions.
//!
//! It grows by chunks, each told to the device as a region of its own; every piece lies in one chunk. It never
//! shrinks: what was freed is used again, zeroed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_rdma::memory::PAGE_BYTES;

use crate::error::{Error, Result};
use crate::memory::{Chunk, Span};
use crate::transport::Transport;

/// Size of a chunk in bytes, and what larger ones and guest addresses are multiples of.
const CHUNK_BYTES: usize = 64 << 20;

/// Unit of allocation in bytes: a cache line.
const UNIT_BYTES: usize = 64;

/// The page size of rings and regions in bytes.
pub(crate) const PAGE: usize = 4096;

const _: () = assert!(PAGE as u64 == PAGE_BYTES);

/// A chunk, and which of its bytes are free.
#[derive(Debug)]
struct Part {
    chunk: Arc<Chunk>,
    guest_address: u64,
    /// Free ranges: their lengths by their offsets.
    free: BTreeMap<usize, usize>,
    /// Bytes from here on were never given out.
    fresh: usize,
}

impl Part {
    /// Takes `bytes` aligned to `align`; answers where.
    fn take(&mut self, bytes: usize, align: usize) -> Option<usize> {
        let (start, length, at) = self.free.iter().find_map(|(&start, &length)| {
            let at = start.next_multiple_of(align);
            (at + bytes <= start + length).then_some((start, length, at))
        })?;
        self.free.remove(&start);
        if at != start {
            self.free.insert(start, at - start);
        }
        let (end, rest) = (at + bytes, start + length - at - bytes);
        if rest != 0 {
            self.free.insert(end, rest);
        }
        Some(at)
    }

    fn give_back(&mut self, mut at: usize, mut bytes: usize) {
        if let Some(length) = self.free.remove(&(at + bytes)) {
            bytes += length;
        }
        if let Some((&before, &length)) = self.free.range(..at).next_back()
            && before + length == at
        {
            (at, bytes) = (before, bytes + length);
        }
        self.free.insert(at, bytes);
    }
}

#[derive(Debug, Default)]
struct State {
    parts: Vec<Part>,
    /// Where in the device's view the next chunk goes, less one chunk: address 0 is left out, since requests use
    /// it for "none".
    bytes: u64,
}

/// The memory that the device knows.
#[derive(Debug)]
pub(crate) struct Arena {
    transport: Arc<dyn Transport>,
    state: Mutex<State>,
}

impl Arena {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Arc<Self> {
        Arc::new(Self { transport, state: Mutex::default() })
    }

    /// `bytes` zeroed bytes, aligned to `align` bytes, a power of two from 64 to 4096.
    ///
    /// # Errors
    /// There is no more memory, or the device takes no more.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize, align: usize) -> Result<Block> {
        let size = bytes.max(1).checked_next_multiple_of(UNIT_BYTES.max(align));
        let size = size.ok_or_else(|| Error::NoMemory(format!("{bytes} bytes are too many")))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (index, part) in state.parts.iter_mut().enumerate() {
            if let Some(at) = part.take(size, align) {
                found = Some((index, at));
                break;
            }
        }
        let (index, at) = match found {
            Some(found) => found,
            None => self.grow(&mut state, size)?,
        };
        let part = &mut state.parts[index];
        let span = Span::new(&part.chunk, at, bytes).ok_or_else(|| Error::NoMemory("the arena".into()))?;
        let used_before = part.fresh.saturating_sub(at).min(bytes);
        part.fresh = part.fresh.max(at + size);
        let guest_address = part.guest_address + at as u64;
        drop(state);
        span.fill(0, used_before, 0);
        let arena = Arc::clone(self);
        Ok(Block { arena, index, at, size, span, guest_address, kept: AtomicBool::new(false) })
    }

    /// Adds a chunk, and takes its first `size` bytes; answers its index, and where they are.
    fn grow(&self, state: &mut State, size: usize) -> Result<(usize, usize)> {
        let chunk_bytes = size
            .checked_next_multiple_of(CHUNK_BYTES)
            .ok_or_else(|| Error::NoMemory(format!("{size} bytes are too many")))?;
        let guest_address = CHUNK_BYTES as u64 + state.bytes;
        let end = guest_address.checked_add(chunk_bytes as u64);
        if end.is_none_or(|end| end > self.transport.address_space()) {
            return Err(Error::NoMemory(format!("no room for {size} bytes in the device's view of memory")));
        }
        let chunk = Arc::new(Chunk::new(chunk_bytes).map_err(Error::system("more memory to share"))?);
        self.transport.add_memory(&chunk, guest_address)?;
        state.bytes += chunk_bytes as u64;
        let mut part = Part { chunk, guest_address, free: BTreeMap::from([(0, chunk_bytes)]), fresh: 0 };
        let at = part.take(size, PAGE).ok_or_else(|| Error::NoMemory("the arena".into()))?;
        state.parts.push(part);
        Ok((state.parts.len() - 1, at))
    }
}

/// A piece of the arena, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Block {
    arena: Arc<Arena>,
    index: usize,
    at: usize,
    size: usize,
    span: Span,
    guest_address: u64,
    kept: AtomicBool,
}

impl Block {
    /// Its memory. Spans of it must not be used when the block is gone.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Where the device finds its first byte.
    pub(crate) fn guest_address(&self) -> u64 {
        self.guest_address
    }

    /// Its length in whole pages, in bytes.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.size as u64
    }

    /// It is never given back: the HCA may still use it.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.arena.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = state.parts.get_mut(self.index) {
            part.give_back(self.at, self.size);
        }
    }
}

#[cfg(test)]
mod tests;
