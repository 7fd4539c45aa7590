//! The persistent map from bus addresses to host memory.
//!
//! A table is never changed: [`Table::insert`] and [`Table::remove`] make a new one that shares what stays
//! the same. Mappings lie sorted in leaves of at most [`LEAF_MAX`], so a change copies one leaf and the list
//! of leaves (a few hundred pointers for 65,000 mappings), and a lookup is two short binary searches.

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::{Hints, HostRegion};

/// Mappings in a leaf before it is split.
const LEAF_MAX: usize = 256;
/// log2 of the bytes that share a hint.
const LOG2_HINT_BYTES: u32 = 13;

/// One range of bus addresses and the memory behind it.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    /// First address.
    pub(super) start: u64,
    /// The memory, which has the mapping's length; not empty.
    pub(super) region: HostRegion,
    /// Whether the device may write.
    pub(super) writable: bool,
}

impl Mapping {
    /// Bytes mapped.
    pub(super) fn len(&self) -> u64 {
        self.region.len() as u64
    }

    /// Last address.
    pub(super) fn last(&self) -> u64 {
        self.start + (self.len() - 1)
    }

    /// Access to what is mapped of `len` bytes at a bus address inside the mapping.
    #[inline]
    pub(super) fn slice(&self, iova: u64, len: u64) -> VolatileSlice<'_> {
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        self.region.slice(size(iova.wrapping_sub(self.start)), size(len))
    }

    fn contains(&self, iova: u64) -> bool {
        iova.wrapping_sub(self.start) < self.len()
    }

    fn intersects(&self, start: u64, last: u64) -> bool {
        self.start <= last && start <= self.last()
    }
}

/// Up to [`LEAF_MAX`] mappings in order; never empty.
#[derive(Clone, Debug)]
struct Leaf {
    start: u64,
    maps: Arc<[Mapping]>,
}

impl Leaf {
    /// A leaf of these mappings, in order; None if there are none.
    fn new(maps: Vec<Mapping>) -> Option<Self> {
        let start = maps.first()?.start;
        Some(Self { start, maps: maps.into() })
    }
}

/// All mappings at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    leaves: Vec<Leaf>,
    count: usize,
    hints: Hints,
}

impl Table {
    /// Number of mappings.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The mapping that an address lies in.
    pub(super) fn find(&self, iova: u64) -> Option<&Mapping> {
        self.hinted(iova).or_else(|| self.search(iova))
    }

    /// The mapping that an address lies in, if it is where addresses near it were found last.
    #[inline]
    pub(super) fn hinted(&self, iova: u64) -> Option<&Mapping> {
        let hint = self.hints.get(iova >> LOG2_HINT_BYTES);
        let map = self.leaves.get(hint / LEAF_MAX)?.maps.get(hint % LEAF_MAX)?;
        map.contains(iova).then_some(map)
    }

    #[cold]
    fn search(&self, iova: u64) -> Option<&Mapping> {
        let leaf = self.leaves.partition_point(|leaf| leaf.start <= iova).checked_sub(1)?;
        let maps = &self.leaves.get(leaf)?.maps;
        let place = maps.partition_point(|map| map.start <= iova).checked_sub(1)?;
        let map = maps.get(place).filter(|map| map.contains(iova))?;
        self.hints.set(iova >> LOG2_HINT_BYTES, leaf * LEAF_MAX + place);
        Some(map)
    }

    /// The first mapping that has an address in the range.
    pub(super) fn first_in(&self, start: u64, last: u64) -> Option<&Mapping> {
        if let Some(map) = self.find(start) {
            return Some(map);
        }
        let from = self.leaves.partition_point(|leaf| leaf.start <= start).saturating_sub(1);
        self.leaves.iter().skip(from).take(2).find_map(|leaf| {
            leaf.maps.get(leaf.maps.partition_point(|map| map.start < start)).filter(|map| map.start <= last)
        })
    }

    /// How many bytes of a range are mapped, if it splits no mapping.
    pub(super) fn bytes_in(&self, start: u64, last: u64) -> u64 {
        let (from, to) = self.leaves_of(start, last);
        let leaves = self.leaves.get(from..to).unwrap_or_default();
        let maps = leaves.iter().flat_map(|leaf| leaf.maps.iter()).filter(|map| map.intersects(start, last));
        maps.fold(0, |sum, map| sum.saturating_add(map.len()))
    }

    /// The leaves, from the first to before the second index, that hold every mapping of a range.
    fn leaves_of(&self, start: u64, last: u64) -> (usize, usize) {
        let from = self.leaves.partition_point(|leaf| leaf.start <= start).saturating_sub(1);
        (from, self.leaves.partition_point(|leaf| leaf.start <= last))
    }

    /// The table with one mapping more; the caller has checked that it overlaps none.
    pub(super) fn insert(&self, map: Mapping) -> Self {
        let at = self.leaves.partition_point(|leaf| leaf.start <= map.start).saturating_sub(1);
        let mut maps = self.leaves.get(at).map_or_else(Vec::new, |leaf| leaf.maps.to_vec());
        let place = maps.partition_point(|other| other.start < map.start);
        maps.insert(place, map);
        // Mappings that come in order of address leave full leaves behind.
        let split = if place == LEAF_MAX { LEAF_MAX } else { maps.len() / 2 };
        let upper = if maps.len() > LEAF_MAX { maps.split_off(split) } else { Vec::new() };
        self.replace(at, usize::from(!self.leaves.is_empty()), [maps, upper], self.count + 1)
    }

    /// The table without the mappings that lie in a range; the caller has checked that it splits none.
    pub(super) fn remove(&self, start: u64, last: u64) -> Self {
        let (from, to) = self.leaves_of(start, last);
        let old = self.leaves.get(from..to).unwrap_or_default();
        let before = old.iter().map(|leaf| leaf.maps.len()).sum::<usize>();
        let kept = old.iter().flat_map(|leaf| leaf.maps.iter()).filter(|map| !map.intersects(start, last));
        let mut kept = kept.cloned().collect::<Vec<_>>();
        let removed = before - kept.len();
        // A leaf that has become small joins its neighbours, so that leaves stay few.
        let joins = |leaf: &&Leaf, kept: &[Mapping]| kept.len() + leaf.maps.len() <= LEAF_MAX / 2;
        let (mut at, mut taken) = (from, old.len());
        if let Some(next) = self.leaves.get(to).filter(|leaf| joins(leaf, &kept)) {
            kept.extend_from_slice(&next.maps);
            taken += 1;
        }
        if let Some(previous) = from.checked_sub(1).and_then(|at| self.leaves.get(at))
            && joins(&previous, &kept)
        {
            kept.splice(0..0, previous.maps.iter().cloned());
            (at, taken) = (from - 1, taken + 1);
        }
        // What is kept lies in the first and the last leaf only, so two leaves have room for it.
        let upper = if kept.len() > LEAF_MAX { kept.split_off(kept.len() / 2) } else { Vec::new() };
        self.replace(at, taken, [kept, upper], self.count - removed)
    }

    /// The table with `taken` leaves from `at` on replaced by up to two others.
    fn replace(&self, at: usize, taken: usize, by: [Vec<Mapping>; 2], count: usize) -> Self {
        let mut leaves = Vec::with_capacity(self.leaves.len() + 2);
        leaves.extend(self.leaves.iter().take(at).cloned());
        leaves.extend(by.into_iter().filter_map(Leaf::new));
        leaves.extend(self.leaves.iter().skip(at + taken).cloned());
        Self { leaves, count, hints: Hints::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PAGE: u64 = 4096;

    /// Memory of 64 pages.
    fn region() -> HostRegion {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        HostRegion::map_file(std::os::fd::AsFd::as_fd(&file), 64 * 4096, true).unwrap()
    }

    /// Pages from one to another, which is mapped too.
    fn pages(region: &HostRegion, first: u64, last: u64) -> Mapping {
        let len = usize::try_from((last - first + 1) * PAGE).unwrap();
        Mapping { start: first * PAGE, region: region.part(0, len).unwrap(), writable: true }
    }

    /// The same questions, answered by a standard map from first to last page.
    fn check(table: &Table, expected: &BTreeMap<u64, u64>, pages: u64) {
        assert_eq!(table.len(), expected.len());
        for page in 0..pages {
            let want = expected.range(..=page).next_back().filter(|(_, last)| page <= **last);
            let got = table.find(page * PAGE).map(|map| map.start / PAGE);
            assert_eq!(got, want.map(|(first, _)| *first), "page {page}");
        }
        assert!(table.leaves.iter().all(|leaf| (1..=LEAF_MAX).contains(&leaf.maps.len())));
    }

    #[test]
    fn random_changes_agree_with_a_standard_map() {
        const PAGES: u64 = 1024;
        let region = region();
        let mut table = Table::default();
        let mut expected = BTreeMap::<u64, u64>::new();
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..6000 {
            let first = random(PAGES);
            if random(8) > 0 {
                let last = (first + random(3)).min(PAGES - 1);
                let overlapped = expected.iter().find(|(other, end)| **other <= last && first <= **end);
                let found = table.first_in(first * PAGE, last * PAGE + PAGE - 1);
                assert_eq!(found.map(|map| map.start / PAGE), overlapped.map(|(other, _)| *other));
                if found.is_none() {
                    table = table.insert(pages(&region, first, last));
                    expected.insert(first, last);
                }
            } else {
                let last = (first + random(60)).min(PAGES - 1);
                if expected.iter().any(|(a, b)| (*a < first && *b >= first) || (*a <= last && *b > last)) {
                    continue;
                }
                let (start, last_byte) = (first * PAGE, last * PAGE + PAGE - 1);
                let gone: u64 = expected.range(first..=last).map(|(a, b)| b - a + 1).sum();
                assert_eq!(table.bytes_in(start, last_byte), gone * PAGE);
                table = table.remove(start, last_byte);
                expected.retain(|a, _| *a < first || *a > last);
            }
            if round % 100 == 0 {
                check(&table, &expected, PAGES);
            }
        }
        check(&table, &expected, PAGES);
        assert!(table.len() > 200, "the test filled {} mappings only", table.len());
    }

    #[test]
    fn leaves_stay_few_when_mappings_go() {
        let region = region();
        let mut table = Table::default();
        for page in 0..4096 {
            table = table.insert(pages(&region, page, page));
        }
        for page in (0..4096).filter(|page| page % 64 != 0) {
            table = table.remove(page * PAGE, page * PAGE + PAGE - 1);
        }
        assert_eq!(table.len(), 64);
        assert!(table.leaves.len() <= 8, "{} leaves for 64 mappings", table.leaves.len());
    }
}
