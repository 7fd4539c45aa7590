//! What of a guest's memory is mapped for the HCA: chunks, counted by the objects that use them, and a bounded
//! cache of those that nobody uses now.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use virtio_rdma::Reason;

use super::{ChunkSize, Entry, GuestRegion, Range, RegionId, Window};
use crate::hca::{Hca, HcaError, Iova};

/// A chunk: its region, and its number counted in chunks of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkKey {
    region: RegionId,
    number: u64,
}

impl ChunkKey {
    pub(crate) fn region(self) -> RegionId {
        self.region
    }
}

#[derive(Debug)]
struct Chunk {
    region: Arc<GuestRegion>,
    iova: Iova,
    length: u64,
    /// Objects that use it.
    users: u32,
    /// Whether it stands in the list of idle chunks.
    listed: bool,
    /// Whether the HCA may use it in spite of all: it stays mapped until the HCA's reset.
    stuck: bool,
}

/// A mapping that stays until the HCA's next reset, and what keeps it valid.
#[derive(Debug)]
pub(crate) struct Stuck {
    pub(crate) iova: Iova,
    pub(crate) length: u64,
    _region: Arc<GuestRegion>,
    _window: Arc<Window>,
}

/// The mapped chunks of a guest.
#[derive(Debug)]
pub(crate) struct Pins {
    window: Arc<Window>,
    chunk: ChunkSize,
    /// Most chunks that may be mapped, idle ones included.
    max_chunks: usize,
    /// Most bytes of idle chunks.
    max_idle_bytes: u64,
    chunks: BTreeMap<ChunkKey, Chunk>,
    /// Chunks that became idle, oldest first; some may be in use again.
    idle: VecDeque<ChunkKey>,
    idle_bytes: u64,
    mapped_bytes: u64,
    /// Taken out of the table, still mapped.
    stuck: Vec<Stuck>,
}

impl Pins {
    pub(crate) fn new(window: Arc<Window>, chunk: ChunkSize, max_chunks: usize, max_idle_bytes: u64) -> Self {
        Self {
            window,
            chunk,
            max_chunks,
            max_idle_bytes,
            chunks: BTreeMap::new(),
            idle: VecDeque::new(),
            idle_bytes: 0,
            mapped_bytes: 0,
            stuck: Vec::new(),
        }
    }

    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Bytes that stay mapped until the HCA's reset.
    pub(crate) fn stuck_bytes(&self) -> u64 {
        let chunks = self.chunks.values().filter(|chunk| chunk.stuck).map(|chunk| chunk.length);
        chunks.chain(self.stuck.iter().map(|stuck| stuck.length)).sum()
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Maps what `ranges` need that isn't mapped, and counts a use of each chunk. On failure nothing is counted.
    pub(crate) fn pin(&mut self, hca: &dyn Hca, ranges: &[Range]) -> Result<BTreeSet<ChunkKey>, Reason> {
        let mut pinned = BTreeSet::new();
        for range in ranges {
            for number in self.numbers(range) {
                let key = ChunkKey { region: range.entry.id, number };
                if pinned.contains(&key) {
                    continue;
                }
                if let Err(reason) = self.pin_chunk(hca, key, &range.entry) {
                    self.unpin(hca, &pinned);
                    return Err(reason);
                }
                pinned.insert(key);
            }
        }
        Ok(pinned)
    }

    /// Counts a use less of each chunk; idle ones stay mapped as far as the cache goes.
    pub(crate) fn unpin(&mut self, hca: &dyn Hca, keys: &BTreeSet<ChunkKey>) {
        for key in keys {
            let Some(chunk) = self.chunks.get_mut(key) else { continue };
            chunk.users = chunk.users.saturating_sub(1);
            if chunk.users == 0 && !chunk.stuck {
                self.idle_bytes += chunk.length;
                if !chunk.listed {
                    chunk.listed = true;
                    self.idle.push_back(*key);
                }
            }
        }
        while self.idle_bytes > self.max_idle_bytes && self.evict(hca) {}
    }

    /// Marks chunks that the HCA may go on using: they stay mapped until its reset.
    pub(crate) fn quarantine(&mut self, keys: &BTreeSet<ChunkKey>) {
        for key in keys {
            if let Some(chunk) = self.chunks.get_mut(key) {
                chunk.stuck = true;
                chunk.users = chunk.users.saturating_sub(1);
            }
        }
    }

    /// Unmaps all chunks of a region that nobody uses any more; those that can't be are kept apart.
    pub(crate) fn remove_region(&mut self, hca: &dyn Hca, region: RegionId) {
        let keys: Vec<ChunkKey> = self.chunks.keys().filter(|key| key.region == region).copied().collect();
        for key in keys {
            self.remove(hca, key);
        }
        // Or a guest whose regions come and go would make the list grow for ever.
        self.idle.retain(|key| key.region != region);
    }

    /// Unmaps everything but what must stay mapped.
    fn remove_all(&mut self, hca: &dyn Hca) {
        let keys: Vec<ChunkKey> = self.chunks.keys().copied().collect();
        for key in keys {
            self.remove(hca, key);
        }
        self.idle.clear();
    }

    /// Unmaps everything and hands over what must stay mapped.
    pub(crate) fn clear(&mut self, hca: &dyn Hca) -> Vec<Stuck> {
        self.remove_all(hca);
        self.mapped_bytes = 0;
        std::mem::take(&mut self.stuck)
    }

    /// Unmaps everything, whatever used it: the HCA was reset. What can't be unmapped even now can be tried again.
    pub(crate) fn absolve(&mut self, hca: &dyn Hca) {
        for chunk in self.chunks.values_mut() {
            (chunk.stuck, chunk.users) = (false, 0);
        }
        for stuck in std::mem::take(&mut self.stuck) {
            if unmap(hca, stuck.iova, stuck.length) {
                self.mapped_bytes -= stuck.length;
            } else {
                self.stuck.push(stuck);
            }
        }
        self.remove_all(hca);
    }

    /// Marks everything as still in the HCA's use.
    pub(crate) fn abandon(&mut self) {
        for chunk in self.chunks.values_mut() {
            chunk.stuck = true;
        }
    }

    /// The numbers of the chunks that a range touches.
    fn numbers(&self, range: &Range) -> std::ops::RangeInclusive<u64> {
        match self.chunk {
            ChunkSize::WholeRegion => 0..=0,
            ChunkSize::Log2Bytes(log2) => {
                let first = range.guest_address();
                (first >> log2)..=((first + range.length - 1) >> log2)
            }
        }
    }

    /// Guest address and length of a chunk, which ends where its region ends.
    fn extent(&self, number: u64, region: &GuestRegion) -> (u64, u64) {
        match self.chunk {
            ChunkSize::WholeRegion => (region.guest_address, region.length),
            ChunkSize::Log2Bytes(log2) => {
                let start = (number << log2).max(region.guest_address);
                let end = (number + 1).saturating_mul(1 << log2).min(region.end());
                (start, end - start)
            }
        }
    }

    fn pin_chunk(&mut self, hca: &dyn Hca, key: ChunkKey, entry: &Entry) -> Result<(), Reason> {
        if let Some(chunk) = self.chunks.get_mut(&key) {
            if chunk.users == 0 && !chunk.stuck {
                self.idle_bytes = self.idle_bytes.saturating_sub(chunk.length);
            }
            chunk.users += 1;
            return Ok(());
        }
        while self.chunks.len() + self.stuck.len() >= self.max_chunks {
            if !self.evict(hca) {
                return Err(Reason::MAPPING_LIMIT);
            }
        }
        let chunk = self.map(hca, key, &entry.region)?;
        self.mapped_bytes += chunk.length;
        self.chunks.insert(key, chunk);
        Ok(())
    }

    fn map(&mut self, hca: &dyn Hca, key: ChunkKey, region: &Arc<GuestRegion>) -> Result<Chunk, Reason> {
        let (guest_address, length) = self.extent(key.number, region);
        let piece =
            region.piece(guest_address - region.guest_address, length).ok_or(Reason::NOT_IN_MEMORY)?;
        let iova = self.window.iova(guest_address);
        // Of a region that was here before, and that the HCA may still reach.
        let overlaps = |stuck: &Stuck| stuck.iova.0 < iova.0 + length && iova.0 < stuck.iova.0 + stuck.length;
        if self.stuck.iter().any(overlaps) {
            return Err(Reason::MAPPING_LIMIT);
        }
        loop {
            match hca.map(iova, &piece) {
                Ok(()) => break,
                Err(HcaError::NoMappings) if self.evict(hca) => {}
                Err(error) => {
                    if error.leaves_open() {
                        self.mapped_bytes += length;
                        self.keep_apart(iova, length, Arc::clone(region));
                    }
                    return Err(error.reason());
                }
            }
        }
        Ok(Chunk { region: Arc::clone(region), iova, length, users: 1, listed: false, stuck: false })
    }

    /// Unmaps the chunk that has been idle longest; `false` if there is none.
    fn evict(&mut self, hca: &dyn Hca) -> bool {
        while let Some(key) = self.idle.pop_front() {
            let Some(chunk) = self.chunks.get_mut(&key) else { continue };
            chunk.listed = false;
            if chunk.users == 0 && !chunk.stuck {
                self.remove(hca, key);
                return true;
            }
        }
        false
    }

    /// Unmaps a chunk, or keeps it apart if it is stuck, in use, or can't be unmapped.
    fn remove(&mut self, hca: &dyn Hca, key: ChunkKey) {
        let Some(chunk) = self.chunks.remove(&key) else { return };
        let idle = chunk.users == 0 && !chunk.stuck;
        if idle {
            self.idle_bytes = self.idle_bytes.saturating_sub(chunk.length);
        }
        if idle && unmap(hca, chunk.iova, chunk.length) {
            self.mapped_bytes -= chunk.length;
            return;
        }
        self.keep_apart(chunk.iova, chunk.length, chunk.region);
    }

    /// Keeps what may be mapped valid until the HCA's reset.
    fn keep_apart(&mut self, iova: Iova, length: u64, region: Arc<GuestRegion>) {
        self.stuck.push(Stuck { iova, length, _region: region, _window: Arc::clone(&self.window) });
    }
}

/// Unmaps, and says whether that succeeded.
pub(crate) fn unmap(hca: &dyn Hca, iova: Iova, length: u64) -> bool {
    match hca.unmap(iova, length) {
        Ok(()) => true,
        Err(error) => {
            log::debug!("memory at {iova:#x} of {length:#x} bytes stays mapped: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{RegionTable, Windows};
    use crate::tests::fake::FakeHca;
    use crate::tests::memory::region;

    #[test]
    fn regions_that_come_and_go_leave_nothing_in_the_list_of_idle_chunks() {
        let hca = FakeHca::new();
        let window = Windows::new(hca.dma().ranges).take(1 << 40, 1).unwrap();
        let mut pins = Pins::new(Arc::new(window), ChunkSize::Log2Bytes(12), 8, u64::MAX);
        let mut table = RegionTable::default();
        for offset in [0x1000, 0x2000, 0x3000] {
            let update = table.compare(vec![region(0, 0x2000, offset)], 1 << 40, 1).unwrap();
            for entry in &update.removed {
                pins.remove_region(&*hca, entry.id);
            }
            table.apply(update);
            let pinned = pins.pin(&*hca, &[table.find(0, 0x2000).unwrap()]).unwrap();
            pins.unpin(&*hca, &pinned);
            assert_eq!((pins.idle.len(), pins.idle_bytes, pins.mapped_bytes()), (2, 0x2000, 0x2000));
        }
        assert!(pins.clear(&*hca).is_empty());
        assert_eq!(hca.lock().wrong, Vec::<String>::new());
    }
}
