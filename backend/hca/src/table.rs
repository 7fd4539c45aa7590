//! Objects by id. Looking one up takes no lock and constant time; taking one out waits until nobody uses it.
//!
//! An id is the HCA's number of the object in the lower 24 bits, and the HCA's life above: ids of a life that a
//! reset has ended name nothing.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

/// log2 of the numbers of one page of the table.
const LOG2_PAGE: u32 = 12;
const IN_PAGE: u32 = (1 << LOG2_PAGE) - 1;
/// Bits of a number.
pub(crate) const NUMBER_BITS: u8 = 24;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;

/// A life of the HCA, from bring-up to reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LifeTag(pub(crate) u8);

impl LifeTag {
    /// The id of an object with a number.
    pub(crate) fn id(self, number: u32) -> u32 {
        u32::from(self.0) << NUMBER_BITS | number & NUMBER
    }
}

/// The number in an id.
pub(crate) fn number(id: u32) -> u32 {
    id & NUMBER
}

/// What a table holds.
pub(crate) trait Entry {
    /// Its id.
    fn id(&self) -> u32;
}

type Page<T> = Box<[ArcSwapOption<T>]>;

/// Objects of one kind.
pub(crate) struct Table<T> {
    pages: Box<[OnceLock<Page<T>>]>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { pages: (0..1u32 << (u32::from(NUMBER_BITS) - LOG2_PAGE)).map(|_| OnceLock::new()).collect() }
    }
}

impl<T: Entry> Table<T> {
    /// Does something with an object that must not take long: whoever takes the object out waits for it.
    pub(crate) fn with<R>(&self, id: u32, work: impl FnOnce(&T) -> R) -> Option<R> {
        let entry = self.slot(id)?.load();
        entry.as_ref().filter(|entry| entry.id() == id).map(|entry| work(entry))
    }

    /// As [`Table::with`], for the object that has this number now.
    pub(crate) fn with_number<R>(&self, number: u32, work: impl FnOnce(&T) -> R) -> Option<R> {
        let entry = self.slot(number)?.load();
        entry.as_ref().map(|entry| work(entry))
    }

    /// An object.
    pub(crate) fn get(&self, id: u32) -> Option<Arc<T>> {
        self.slot(id)?.load_full().filter(|entry| entry.id() == id)
    }

    /// Puts an object under its id.
    pub(crate) fn insert(&self, entry: T) {
        let id = entry.id();
        if let Some(page) = self.pages.get((number(id) >> LOG2_PAGE) as usize) {
            let page = page.get_or_init(|| (0..=IN_PAGE).map(|_| ArcSwapOption::empty()).collect());
            page[(id & IN_PAGE) as usize].store(Some(Arc::new(entry)));
        }
    }

    /// Takes an object out. When this returns nobody uses it any more.
    pub(crate) fn take(&self, id: u32) -> Option<T> {
        self.get(id)?;
        self.slot(id)?.swap(None).map(sole)
    }

    /// Takes all objects out, each when nobody uses it any more.
    pub(crate) fn clear(&self, mut each: impl FnMut(T)) {
        for slot in self.pages.iter().filter_map(OnceLock::get).flatten() {
            if let Some(entry) = slot.swap(None) {
                each(sole(entry));
            }
        }
    }

    fn slot(&self, id: u32) -> Option<&ArcSwapOption<T>> {
        let page = self.pages.get((number(id) >> LOG2_PAGE) as usize)?.get()?;
        page.get((id & IN_PAGE) as usize)
    }
}

impl<T> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.pages.iter().filter(|page| page.get().is_some()).count();
        write!(f, "Table({used} pages)")
    }
}

/// What nobody else can find any more, as soon as those who have found it are done with it.
pub(crate) fn sole<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(value) => return value,
            Err(used) => shared = used,
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Thing(u32, Arc<AtomicBool>);

    impl Entry for Thing {
        fn id(&self) -> u32 {
            self.0
        }
    }

    fn thing(id: u32) -> Thing {
        Thing(id, Arc::default())
    }

    #[test]
    fn object_is_found_by_its_id_only() {
        let table = Table::default();
        let id = LifeTag(3).id(0x12_3456);
        table.insert(thing(id));
        assert_eq!(table.with(id, |thing| thing.0), Some(id));
        assert_eq!(table.with_number(0x12_3456, |thing| thing.0), Some(id));
        for other in [id + 1, LifeTag(4).id(0x12_3456), 0, u32::MAX] {
            assert!(table.get(other).is_none() && table.take(other).is_none(), "{other:#x}");
        }
        assert_eq!(table.take(id).map(|thing| thing.0), Some(id));
        assert!(table.get(id).is_none());
    }

    #[test]
    fn object_is_taken_out_when_its_last_user_is_done() {
        let table = Table::default();
        table.insert(thing(7));
        let started = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                table.with(7, |thing| {
                    started.store(true, Ordering::SeqCst);
                    for _ in 0..1000 {
                        std::thread::yield_now();
                    }
                    thing.1.store(true, Ordering::SeqCst);
                });
            });
            while !started.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let taken = table.take(7).unwrap();
            assert!(taken.1.load(Ordering::SeqCst), "taken out under its user");
        });
    }

    #[test]
    fn cleared_table_is_empty() {
        let table = Table::default();
        table.insert(thing(1));
        table.insert(thing(0xff_ffff));
        let mut taken = Vec::new();
        table.clear(|thing| taken.push(thing.0));
        assert_eq!(taken, [1, 0xff_ffff]);
        assert!(table.get(1).is_none() && table.get(0xff_ffff).is_none());
    }
}
