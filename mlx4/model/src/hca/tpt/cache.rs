//! What a burst remembers of memory keys, so that the next work request finds its keys without a look into ICM.
//!
//! Nothing outlives the burst, so whoever takes a key back and waits for bursts is right; and nothing outlives a
//! change that the HCA itself makes in ICM, by a command or a work request.

use std::cell::Cell;

use super::{Entry, Run};

/// Keys that a burst remembers.
const KEYS: usize = 4;

/// Valid keys that a burst has looked up, with the pages looked up last.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    changes: Cell<u64>,
    entries: [KeyEntry; KEYS],
    /// Keys that were remembered so far.
    count: Cell<u64>,
}

/// A key that is remembered.
#[derive(Debug)]
pub(super) struct KeyEntry {
    key: Cell<Option<u32>>,
    pub(super) place: Cell<Place>,
    pub(super) entry: Cell<Entry>,
    /// The pages that were looked up last through it.
    pub(super) run: Cell<Run>,
}

impl Default for KeyEntry {
    fn default() -> Self {
        Self { key: Cell::new(None), place: Cell::default(), entry: Cell::default(), run: Cell::default() }
    }
}

/// A place in a [`KeyCache`], as long as it is the same key's: the number of the key among all that were
/// remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    fn index(self) -> usize {
        // Less than the number of entries.
        usize::try_from(self.0 % KEYS as u64).unwrap_or(0)
    }
}

impl KeyCache {
    #[inline]
    pub(super) fn find(&self, key: u32, changes: u64) -> Option<&KeyEntry> {
        let current = self.changes.get() == changes;
        self.entries.iter().find(|entry| entry.key.get() == Some(key)).filter(|_| current)
    }

    /// Remembers a key as it was at a count of changes.
    pub(super) fn insert(&self, key: u32, changes: u64, found: Entry) -> &KeyEntry {
        if self.changes.replace(changes) != changes {
            self.entries.iter().for_each(|entry| entry.key.set(None));
        }
        let place = Place(self.count.get());
        self.count.set(place.0 + 1);
        let entry = &self.entries[place.index()];
        entry.key.set(Some(key));
        entry.place.set(place);
        entry.entry.set(found);
        entry.run.set(Run::default());
        entry
    }

    /// Remembers pages for the key of a place, unless another key has taken it.
    pub(super) fn set_run(&self, place: Place, run: Run) {
        let entry = &self.entries[place.index()];
        if entry.place.get() == place {
            entry.run.set(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64) -> Entry {
        Entry { start, ..Entry::default() }
    }

    #[test]
    fn keys_are_remembered_until_others_take_their_places() {
        let cache = KeyCache::default();
        let run = Run { va: 7, bus: 8, len: 9 };
        let first = cache.insert(1, 5, at(100)).place.get();
        cache.set_run(first, run);
        let found = cache.find(1, 5).unwrap();
        assert_eq!((found.place.get(), found.entry.get().start, found.run.get().len), (first, 100, 9));
        let others = (2..).take(KEYS);
        let last = others.clone().last().unwrap();
        others.for_each(|key| _ = cache.insert(key, 5, at(0)));
        assert!(cache.find(1, 5).is_none());
        // Whoever still walks the region of key 1 doesn't give its pages to the key that is there now.
        cache.set_run(first, run);
        let now = cache.find(last, 5).unwrap();
        assert_eq!((now.place.get().index(), now.run.get().len), (first.index(), 0));
    }

    #[test]
    fn keys_are_forgotten_when_the_hca_has_changed_icm() {
        let cache = KeyCache::default();
        let old = cache.insert(1, 5, at(0)).place.get();
        cache.insert(2, 5, at(0));
        assert!(cache.find(1, 6).is_none());
        let new = cache.insert(2, 6, at(50)).place.get();
        assert!(cache.find(1, 6).is_none() && cache.find(1, 5).is_none());
        let found = cache.find(2, 6).unwrap();
        assert_eq!((found.place.get(), found.entry.get().start), (new, 50));
        assert_ne!(old, new);
    }
}
