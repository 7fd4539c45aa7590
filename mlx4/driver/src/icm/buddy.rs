//! Ranges of translation entries: powers of two, aligned to themselves.

use std::collections::BTreeSet;

/// Which ranges of `1 << log2` entries are free.
#[derive(Debug)]
pub(super) struct Buddy {
    /// By log2 of their size: where free ranges start.
    free: Vec<BTreeSet<u64>>,
}

impl Buddy {
    /// All entries are free but the first `reserved`.
    pub(super) fn new(log2: u8, reserved: u64) -> Self {
        let mut buddy = Self { free: vec![BTreeSet::new(); usize::from(log2) + 1] };
        let mut at = reserved;
        while at < 1 << log2 {
            let order = at.trailing_zeros().min(log2.into());
            buddy.free[order as usize].insert(at);
            at += 1 << order;
        }
        buddy
    }

    /// Takes `1 << order` entries; returns the first.
    pub(super) fn take(&mut self, order: u8) -> Option<u64> {
        let order = usize::from(order);
        let from = (order..self.free.len()).find(|from| !self.free[*from].is_empty())?;
        let first = self.free[from].pop_first()?;
        for rest in order..from {
            self.free[rest].insert(first + (1 << rest));
        }
        Some(first)
    }

    /// Gives `1 << order` entries back, which were taken as such.
    pub(super) fn give_back(&mut self, mut first: u64, order: u8) {
        let mut order = usize::from(order);
        while order + 1 < self.free.len() && self.free[order].remove(&(first ^ (1 << order))) {
            first &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_and_apart() {
        let mut buddy = Buddy::new(8, 16);
        let mut taken = Vec::new();
        for order in [0, 3, 1, 5, 0, 2, 4] {
            let first = buddy.take(order).unwrap();
            assert_eq!(first % (1 << order), 0);
            assert!(first >= 16);
            taken.push((first, order));
        }
        taken.sort_unstable();
        for pair in taken.windows(2) {
            assert!(pair[0].0 + (1 << pair[0].1) <= pair[1].0);
        }
        for (first, order) in taken {
            buddy.give_back(first, order);
        }
        assert_eq!(buddy.take(7), Some(128), "what was given back is whole again");
        assert_eq!(buddy.take(7), None);
    }

    #[test]
    fn all_can_be_taken_one_by_one() {
        let mut buddy = Buddy::new(4, 3);
        let mut all: Vec<u64> = std::iter::from_fn(|| buddy.take(0)).collect();
        all.sort_unstable();
        assert_eq!(all, (3..16).collect::<Vec<_>>());
    }
}
