//! Which bus addresses are free.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{DmaError, Geometry};

/// Addresses below this are never handed out, so that a zero or a small number is nobody's memory.
const LOWEST: u64 = 1 << 20;

/// The addresses of one space: those that the device can use, and those in use.
#[derive(Debug)]
pub(super) struct IovaAllocator {
    geometry: Geometry,
    /// Where ranges are chosen; others are taken only by their address.
    own: Vec<RangeInclusive<u64>>,
    /// First and last address of each range in use.
    used: BTreeMap<u64, u64>,
    /// Where the next search begins: addresses that were given back are used again as late as possible.
    next: u64,
}

impl IovaAllocator {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { own: geometry.ranges.clone(), geometry, used: BTreeMap::new(), next: 0 }
    }

    /// From now on, addresses are chosen in these ranges only, which are parts of the geometry's.
    pub(super) fn choose_within(&mut self, ranges: Vec<RangeInclusive<u64>>) {
        (self.own, self.next) = (ranges, 0);
    }

    /// Takes a range that begins at a multiple of `align` and doesn't touch another one: at least one granule
    /// stays unmapped on both sides. Both numbers are multiples of the granule, `align` a power of two.
    pub(super) fn take_any(&mut self, len: u64, align: u64) -> Result<u64, DmaError> {
        let found = self.search(self.next, len, align).or_else(|| self.search(0, len, align));
        let iova = found.ok_or(DmaError::NoAddress { len, align })?;
        self.used.insert(iova, iova + (len - 1));
        self.next = iova + (len - 1);
        Ok(iova)
    }

    /// Takes a certain range.
    pub(super) fn take(&mut self, iova: u64, len: u64) -> Result<(), DmaError> {
        let reserved = DmaError::Reserved { iova, len };
        let Some(last) = len.checked_sub(1).and_then(|more| iova.checked_add(more)) else {
            return Err(reserved);
        };
        if !self.geometry.ranges.iter().any(|range| range.contains(&iova) && range.contains(&last)) {
            return Err(reserved);
        }
        if let Some(other) = self.in_use(iova, last) {
            return Err(DmaError::Overlaps { iova, len, other: other.0 });
        }
        self.used.insert(iova, last);
        Ok(())
    }

    /// Gives a range back.
    pub(super) fn give_back(&mut self, iova: u64) {
        self.used.remove(&iova);
    }

    /// The last range in use that has an address from `first` to `last`.
    fn in_use(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let (start, end) = self.used.range(..=last).next_back()?;
        (*end >= first).then_some((*start, *end))
    }

    /// The lowest free place from an address on.
    fn search(&self, from: u64, len: u64, align: u64) -> Option<u64> {
        let guard = self.geometry.granule;
        self.own.iter().filter(|range| *range.end() >= from).find_map(|range| {
            let mut at = from.max(*range.start()).max(LOWEST);
            loop {
                at = at.checked_next_multiple_of(align)?;
                let last = at.checked_add(len - 1).filter(|last| last <= range.end())?;
                match self.in_use(at.saturating_sub(guard), last.saturating_add(guard)) {
                    None => return Some(at),
                    Some((_, end)) => at = end.checked_add(1)?.checked_add(guard)?,
                }
            }
        })
    }
}
