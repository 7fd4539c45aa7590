//! Tables of live objects by number: constant-time look-up that takes no lock.
//!
//! A number's index is its low bits (`number & (entries - 1)`), as on the card; the full number is kept in
//! the object and compared by whoever cares about generation bits. Space for entries is allocated in
//! chunks when first used, so a table for 2^18 queue pairs costs nothing until it holds some.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

const CHUNK: usize = 512;

type Chunk<T> = Box<[ArcSwapOption<T>]>;

/// Objects by number.
pub(crate) struct Table<T> {
    chunks: Box<[OnceLock<Chunk<T>>]>,
    mask: u32,
}

impl<T> Table<T> {
    /// A table of `1 << log2_entries` entries, at most 2^24.
    pub(crate) fn new(log2_entries: u8) -> Self {
        let entries = 1usize << log2_entries.min(24);
        let chunks = (0..entries.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { chunks, mask: u32::try_from(entries - 1).unwrap_or(u32::MAX) }
    }

    fn slot(&self, number: u32) -> Option<&ArcSwapOption<T>> {
        let index = (number & self.mask) as usize;
        self.chunks.get(index / CHUNK)?.get()?.get(index % CHUNK)
    }

    /// The object at a number's index.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<T>> {
        self.slot(number)?.load_full()
    }

    /// Looks at the object at a number's index, for a moment.
    pub(crate) fn with<R>(&self, number: u32, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.slot(number)?.load().as_deref().map(look)
    }

    /// Puts an object at a number's index; gives back what was there.
    pub(crate) fn insert(&self, number: u32, object: Arc<T>) -> Option<Arc<T>> {
        let index = (number & self.mask) as usize;
        let chunk =
            self.chunks[index / CHUNK].get_or_init(|| (0..CHUNK).map(|_| ArcSwapOption::empty()).collect());
        chunk[index % CHUNK].swap(Some(object))
    }

    /// Takes the object at a number's index out.
    pub(crate) fn remove(&self, number: u32) -> Option<Arc<T>> {
        self.slot(number)?.swap(None)
    }

    /// Number of entries, a power of two.
    pub(crate) fn entries(&self) -> u32 {
        self.mask + 1
    }

    /// Every live object, in the order of indexes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<T>> + '_ {
        self.chunks
            .iter()
            .filter_map(OnceLock::get)
            .flat_map(|chunk| chunk.iter())
            .filter_map(ArcSwapOption::load_full)
    }
}

impl<T> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({} of {})", self.iter().count(), self.entries())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_beyond_the_table_finds_its_index() {
        let table = Table::new(10);
        assert!(table.insert(0x80_0003, Arc::new(7u32)).is_none());
        assert_eq!(table.get(3).as_deref(), Some(&7));
        assert_eq!(table.iter().count(), 1);
        assert_eq!(table.remove(0x403).as_deref(), Some(&7));
        assert!(table.get(3).is_none());
    }

    #[test]
    fn small_table_has_its_entries_only() {
        let table = Table::<u32>::new(2);
        assert_eq!(table.entries(), 4);
        assert!(table.get(0xffff_ffff).is_none());
    }
}
