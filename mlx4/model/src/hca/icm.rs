//! ICM: the HCA's virtual memory for its own tables, which the driver backs with host pages.
//!
//! MAP_ICM gives a range of ICM addresses a bus address; nothing is copied. UNMAP_ICM may name more pages
//! than are mapped (the Linux driver unmaps whole chunks), and mappings may lie past the size that
//! SET_ICM_SIZE announced. Readers take a snapshot and no lock.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

/// An ICM page is 4 KiB, whatever the host's page size.
pub(crate) const PAGE_SHIFT: u32 = 12;

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
}

impl IcmMap {
    /// The bus address of an ICM address, and the number of bytes from there that are contiguous on the
    /// bus. `None` where nothing is mapped.
    pub(crate) fn translate(&self, addr: u64) -> Option<(u64, u64)> {
        let page = addr >> PAGE_SHIFT;
        let after = self.extents.partition_point(|e| e.page <= page);
        let extent = self.extents.get(after.checked_sub(1)?)?;
        (page < extent.end()).then(|| {
            let offset = addr - (extent.page << PAGE_SHIFT);
            (extent.bus.wrapping_add(offset), (extent.pages << PAGE_SHIFT) - offset)
        })
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
        self.remove(extent.page, extent.pages);
        let at = self.extents.partition_point(|e| e.page < extent.page);
        self.extents.insert(at, extent);
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
    pub(crate) fn map(&self, ranges: &[(u64, u64, u32)]) {
        self.update(|map| {
            for &(virt, bus, log2_pages) in ranges {
                map.insert(Extent { page: virt >> PAGE_SHIFT, pages: 1 << log2_pages, bus });
            }
        });
    }

    /// Takes `pages` pages from `addr` on back. The caller waits for accesses in progress.
    pub(crate) fn unmap(&self, addr: u64, pages: u64) {
        self.update(|map| map.remove(addr >> PAGE_SHIFT, pages));
    }

    /// Takes every page back.
    pub(crate) fn clear(&self) {
        self.update(|map| map.extents.clear());
    }

    fn update(&self, change: impl FnOnce(&mut IcmMap)) {
        let _one = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut map = IcmMap::clone(&self.map.load());
        change(&mut map);
        self.map.store(Arc::new(map));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translates_inside_and_not_outside() {
        let icm = Icm::default();
        icm.map(&[(0x10_0000, 0x8000_0000, 2), (0x20_0000, 0x9000_0000, 0)]);
        let map = icm.snapshot();
        assert_eq!(map.translate(0x10_1008), Some((0x8000_1008, 0x2ff8)));
        assert_eq!(map.translate(0x10_4000), None);
        assert_eq!(map.translate(0x0f_ffff), None);
        assert_eq!(map.pages(), 5);
    }

    #[test]
    fn unmap_larger_than_the_mapping_and_in_its_middle() {
        let icm = Icm::default();
        icm.map(&[(0x10_0000, 0x8000_0000, 4)]);
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
        icm.map(&[(0, 0x1000_0000, 2)]);
        icm.map(&[(0x1000, 0x2000_0000, 0)]);
        let map = icm.snapshot();
        assert_eq!(map.translate(0x1010), Some((0x2000_0010, 0xff0)));
        assert_eq!(map.translate(0x2010), Some((0x1000_2010, 0x1ff0)));
    }
}
