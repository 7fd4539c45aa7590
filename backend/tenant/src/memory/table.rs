//! The table of a guest's regions: lookup, and comparison with the next table.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtio_rdma::Reason;

use super::{GuestRegion, MemoryError, check_region};

/// Names a region for as long as the tenant lives; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RegionId(u64);

/// A region of the table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: RegionId,
    pub(crate) region: Arc<GuestRegion>,
}

/// A range of guest memory that was found to lie in one region.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) entry: Entry,
    /// Where it starts in the region, in bytes.
    pub(crate) start: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
}

impl Range {
    /// The guest's address of its first byte.
    pub(crate) fn guest_address(&self) -> u64 {
        self.entry.region.guest_address + self.start
    }
}

/// What a new table would change.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) removed: Vec<Entry>,
    next: BTreeMap<u64, Entry>,
    next_id: u64,
}

/// The regions by guest address.
#[derive(Debug, Default)]
pub(crate) struct RegionTable {
    regions: BTreeMap<u64, Entry>,
    next_id: u64,
}

impl RegionTable {
    /// The range of `length` bytes at a guest address, which must lie in one region.
    pub(crate) fn find(&self, guest_address: u64, length: u64) -> Result<Range, Reason> {
        let end = guest_address.checked_add(length).ok_or(Reason::NOT_IN_MEMORY)?;
        let (_, entry) = self.regions.range(..=guest_address).next_back().ok_or(Reason::NOT_IN_MEMORY)?;
        if length == 0 || end > entry.region.end() {
            return Err(Reason::NOT_IN_MEMORY);
        }
        Ok(Range { entry: entry.clone(), start: guest_address - entry.region.guest_address, length })
    }

    /// As [`RegionTable::find`], for memory that the HCA or the device writes.
    pub(crate) fn find_writable(&self, guest_address: u64, length: u64) -> Result<Range, Reason> {
        let range = self.find(guest_address, length)?;
        if range.entry.region.writable { Ok(range) } else { Err(Reason::READ_ONLY_MEMORY) }
    }

    /// Compares with the next table; nothing changes yet. Regions that stay keep their identity and the mapping
    /// that they have.
    pub(crate) fn compare(
        &self,
        next: Vec<GuestRegion>,
        window: u64,
        max: usize,
    ) -> Result<Update, MemoryError> {
        if next.len() > max {
            return Err(MemoryError::TooMany { count: next.len(), max });
        }
        let mut update = Update { removed: Vec::new(), next: BTreeMap::new(), next_id: self.next_id };
        for region in next {
            check_region(&region)?;
            if region.end() > window {
                return Err(MemoryError::BeyondWindow { end: region.end(), window });
            }
            self.take_in(&mut update, region)?;
        }
        check_overlap(&update.next)?;
        let stays = |entry: &&Entry| update.next.values().any(|kept| kept.id == entry.id);
        update.removed = self.regions.values().filter(|entry| !stays(entry)).cloned().collect();
        Ok(update)
    }

    fn take_in(&self, update: &mut Update, region: GuestRegion) -> Result<(), MemoryError> {
        let address = region.guest_address;
        let entry = match self.regions.get(&address) {
            Some(old) if old.region.is_same_as(&region) => old.clone(),
            _ => {
                update.next_id += 1;
                Entry { id: RegionId(update.next_id), region: Arc::new(region) }
            }
        };
        match update.next.insert(address, entry) {
            None => Ok(()),
            Some(_) => Err(MemoryError::Overlap { first: address, second: address }),
        }
    }

    /// Puts the next table in place.
    pub(crate) fn apply(&mut self, update: Update) {
        self.regions = update.next;
        self.next_id = update.next_id;
    }
}

fn check_overlap(regions: &BTreeMap<u64, Entry>) -> Result<(), MemoryError> {
    let mut before: Option<&GuestRegion> = None;
    for entry in regions.values() {
        let region = &*entry.region;
        if let Some(before) = before.filter(|before| before.end() > region.guest_address) {
            return Err(MemoryError::Overlap { first: before.guest_address, second: region.guest_address });
        }
        before = Some(region);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::memory::region;

    const WINDOW: u64 = 1 << 40;

    fn table(regions: Vec<GuestRegion>) -> RegionTable {
        let mut table = RegionTable::default();
        let update = table.compare(regions, WINDOW, 8).unwrap();
        table.apply(update);
        table
    }

    #[test]
    fn range_must_lie_in_one_region_without_wrap() {
        let table = table(vec![region(0x1000, 0x2000, 0), region(0x3000, 0x1000, 0x2000)]);
        assert_eq!(table.find(0x1000, 0x2000).map(|range| range.start), Ok(0));
        assert_eq!(table.find(0x2ff8, 8).map(|range| range.start), Ok(0x1ff8));
        assert_eq!(table.find(0x3000, 0x1000).map(|range| range.guest_address()), Ok(0x3000));
        for (address, length) in
            [(0xfff, 1), (0x2fff, 2), (0x4000, 1), (0x1000, 0), (u64::MAX, 2), (0x1000, u64::MAX)]
        {
            assert_eq!(
                table.find(address, length).err(),
                Some(Reason::NOT_IN_MEMORY),
                "{address:#x} {length:#x}"
            );
        }
    }

    #[test]
    fn same_region_mapped_anew_stays() {
        let table = table(vec![region(0, 0x2000, 0), region(0x4000, 0x1000, 0x2000)]);
        let update =
            table.compare(vec![region(0, 0x2000, 0), region(0x4000, 0x1000, 0x3000)], WINDOW, 8).unwrap();
        assert_eq!(
            update.removed.iter().map(|entry| entry.region.guest_address).collect::<Vec<_>>(),
            [0x4000]
        );
    }

    #[test]
    fn bad_tables_are_refused() {
        let table = table(vec![]);
        let refused = |regions| table.compare(regions, WINDOW, 2).map(|_| ());
        assert_eq!(
            refused(vec![region(0, 0x2000, 0), region(0x1000, 0x1000, 0)]),
            Err(MemoryError::Overlap { first: 0, second: 0x1000 })
        );
        assert_eq!(
            refused(vec![region(8, 0x1000, 0)]),
            Err(MemoryError::Region { guest_address: 8, length: 0x1000 })
        );
        assert_eq!(refused(vec![region(0, 0, 0)]), Err(MemoryError::Region { guest_address: 0, length: 0 }));
        assert_eq!(
            refused(vec![region(WINDOW, 0x1000, 0)]),
            Err(MemoryError::BeyondWindow { end: WINDOW + 0x1000, window: WINDOW })
        );
        let many = (0..3).map(|index| region(index << 20, 0x1000, 0)).collect();
        assert_eq!(refused(many), Err(MemoryError::TooMany { count: 3, max: 2 }));
    }
}
