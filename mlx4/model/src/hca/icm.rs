//! ICM: the HCA's virtual memory for its own tables, which the driver backs with host pages.
//!
//! MAP_ICM gives a range of ICM addresses a bus address; nothing is copied. UNMAP_ICM may name more pages
//! than are mapped (the Linux driver unmaps whole chunks), and mappings may lie past the size that
//! SET_ICM_SIZE announced. Readers take a snapshot and no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::caps::MAX_ICM_BYTES;
use crate::mem::Hints;

/// An ICM page is 4 KiB, whatever the host's page size.
pub(crate) const PAGE_SHIFT: u32 = 12;

/// Most ranges that are mapped at once. Each change copies the list of them, which is to stay short.
const MAX_EXTENTS: usize = 1 << 17;

/// Why ranges can't be mapped. None of them is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapError {
    #[error("ICM range of 2^{log2_pages} pages at {virt:#x} ends beyond {MAX_ICM_BYTES:#x}")]
    Beyond { virt: u64, log2_pages: u32 },
    #[error("ICM would be in more than {MAX_EXTENTS} ranges")]
    TooMany,
}

/// A range of ICM pages that is contiguous on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// First ICM page number.
    page: u64,
    /// Length in pages.
    pages: u64,
    /// Bus address of the first page.
    bus: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.page + self.pages
    }
}

/// The mappings at one moment, sorted by page, without overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct IcmMap {
    extents: Vec<Extent>,
    hints: Hints,
    /// Writes by the HCA itself; all maps of an ICM count together.
    changes: Arc<AtomicU64>,
}

impl IcmMap {
    /// The bus address of an ICM address, and the number of bytes from there that are contiguous on the
    /// bus. `None` where nothing is mapped.
    pub(crate) fn translate(&self, addr: u64) -> Option<(u64, u64)> {
        let extent = self.find(addr >> PAGE_SHIFT)?;
        let offset = addr - (extent.page << PAGE_SHIFT);
        Some((extent.bus.wrapping_add(offset), (extent.pages << PAGE_SHIFT) - offset))
    }

    /// The extent that a page lies in.
    #[inline]
    fn find(&self, page: u64) -> Option<&Extent> {
        match self.extents.get(self.hints.get(page)) {
            Some(extent) if extent.page <= page && page < extent.end() => Some(extent),
            _ => self.search(page),
        }
    }

    fn search(&self, page: u64) -> Option<&Extent> {
        let place = self.extents.partition_point(|e| e.page <= page).checked_sub(1)?;
        let extent = self.extents.get(place).filter(|extent| page < extent.end())?;
        self.hints.set(page, place);
        Some(extent)
    }

    /// Count of changes that the HCA itself has made.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The HCA has changed something.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Number of pages mapped.
    pub(crate) fn pages(&self) -> u64 {
        self.extents.iter().map(|e| e.pages).sum()
    }

    fn remove(&mut self, page: u64, pages: u64) {
        let end = page.saturating_add(pages);
        let mut kept = Vec::with_capacity(self.extents.len() + 1);
        for e in &self.extents {
            if e.page < page {
                kept.push(Extent { pages: e.pages.min(page - e.page), ..*e });
            }
            if e.end() > end {
                let from = e.page.max(end);
                kept.push(Extent {
                    page: from,
                    pages: e.end() - from,
                    bus: e.bus.wrapping_add((from - e.page) << PAGE_SHIFT),
                });
            }
        }
        kept.retain(|e| e.pages != 0);
        self.extents = kept;
    }

    fn insert(&mut self, extent: Extent) {
        let at = |map: &Self| map.extents.partition_point(|e| e.end() <= extent.page);
        if self.extents.get(at(self)).is_some_and(|after| after.page < extent.end()) {
            self.remove(extent.page, extent.pages);
        }
        self.extents.insert(at(self), extent);
    }
}

/// The HCA's ICM.
#[derive(Debug, Default)]
pub(crate) struct Icm {
    map: ArcSwap<IcmMap>,
    writer: Mutex<()>,
}

impl Icm {
    /// The mappings now, for a burst of look-ups.
    pub(crate) fn snapshot(&self) -> Guard<Arc<IcmMap>> {
        self.map.load()
    }

    /// Maps ranges of `(icm address, bus address, log2 of 4 KiB pages)`; a later mapping replaces an
    /// earlier one.
    pub(crate) fn map(&self, ranges: &[(u64, u64, u32)]) -> Result<(), MapError> {
        self.update(|map| {
            for &(virt, bus, log2_pages) in ranges {
                let extent = Extent { page: virt >> PAGE_SHIFT, pages: 1 << log2_pages, bus };
                if extent.end() > MAX_ICM_BYTES >> PAGE_SHIFT {
                    return Err(MapError::Beyond { virt, log2_pages });
                }
                map.insert(extent);
            }
            if map.extents.len() > MAX_EXTENTS { Err(MapError::TooMany) } else { Ok(()) }
        })
    }

    /// Takes `pages` pages from `addr` on back. The caller waits for accesses in progress.
    pub(crate) fn unmap(&self, addr: u64, pages: u64) {
        self.change(|map| map.remove(addr >> PAGE_SHIFT, pages));
    }

    /// Takes every page back.
    pub(crate) fn clear(&self) {
        self.change(|map| map.extents.clear());
    }

    fn change(&self, change: impl FnOnce(&mut IcmMap)) {
        let Ok(()) = self.update(|map| {
            change(map);
            Ok::<_, std::convert::Infallible>(())
        });
    }

    /// Publishes a changed map, unless the change fails.
    fn update<E>(&self, change: impl FnOnce(&mut IcmMap) -> Result<(), E>) -> Result<(), E> {
        let _one = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut map = IcmMap::clone(&self.map.load());
        change(&mut map)?;
        self.map.store(Arc::new(map));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translates_inside_and_not_outside() {
        let icm = Icm::default();
        icm.map(&[(0x10_0000, 0x8000_0000, 2), (0x20_0000, 0x9000_0000, 0)]).unwrap();
        let map = icm.snapshot();
        assert_eq!(map.translate(0x10_1008), Some((0x8000_1008, 0x2ff8)));
        assert_eq!(map.translate(0x10_4000), None);
        assert_eq!(map.translate(0x0f_ffff), None);
        assert_eq!(map.pages(), 5);
    }

    #[test]
    fn unmap_larger_than_the_mapping_and_in_its_middle() {
        let icm = Icm::default();
        icm.map(&[(0x10_0000, 0x8000_0000, 4)]).unwrap();
        icm.unmap(0x10_4000, 4);
        assert_eq!(icm.snapshot().translate(0x10_4000), None);
        assert_eq!(icm.snapshot().translate(0x10_8000), Some((0x8000_8000, 0x8000)));
        assert_eq!(icm.snapshot().pages(), 12);
        icm.unmap(0, u64::MAX);
        assert_eq!(icm.snapshot().pages(), 0);
    }

    #[test]
    fn later_mapping_replaces_the_earlier() {
        let icm = Icm::default();
        icm.map(&[(0, 0x1000_0000, 2)]).unwrap();
        icm.map(&[(0x1000, 0x2000_0000, 0)]).unwrap();
        let map = icm.snapshot();
        assert_eq!(map.translate(0x1010), Some((0x2000_0010, 0xff0)));
        assert_eq!(map.translate(0x2010), Some((0x1000_2010, 0x1ff0)));
    }

    #[test]
    fn nothing_is_mapped_beyond_the_end_or_in_too_many_pieces() {
        let icm = Icm::default();
        let last = MAX_ICM_BYTES - 0x1000;
        icm.map(&[(last, 0, 0)]).unwrap();
        let beyond = |virt, log2_pages| Err(MapError::Beyond { virt, log2_pages });
        assert_eq!(icm.map(&[(0, 0, 0), (last, 0, 1)]), beyond(last, 1));
        assert_eq!(icm.map(&[(u64::MAX - 0xfff, 0, 0)]), beyond(u64::MAX - 0xfff, 0));
        assert_eq!(icm.snapshot().pages(), 1, "a command that fails maps nothing");
        let all: Vec<_> = (0..MAX_EXTENTS as u64).map(|i| (0x2000 * i, 0, 0)).collect();
        assert_eq!(icm.map(&all), Err(MapError::TooMany));
        icm.map(&all[1..]).unwrap();
    }
}
