//! Objects by number. Looking one up takes no lock and constant time.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

/// log2 of the numbers that share a page of the table.
const LOG2_PAGE: u32 = 8;
const IN_PAGE: u32 = (1 << LOG2_PAGE) - 1;

type Page<T> = Box<[ArcSwapOption<T>]>;

/// Objects of one kind by their number.
pub(crate) struct Registry<T> {
    pages: Box<[OnceLock<Page<T>>]>,
}

impl<T> Registry<T> {
    /// For numbers of `log2` bits.
    pub(crate) fn new(log2: u8) -> Self {
        let entries = 1u32 << log2.clamp(8, 24);
        Self { pages: (0..entries >> LOG2_PAGE).map(|_| OnceLock::new()).collect() }
    }

    /// The object with a number.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<T>> {
        self.slot(number)?.load_full()
    }

    /// Puts an object under its number.
    pub(crate) fn insert(&self, number: u32, object: Arc<T>) {
        if let Some(page) = self.pages.get((number >> LOG2_PAGE) as usize) {
            let page = page.get_or_init(|| (0..1 << LOG2_PAGE).map(|_| ArcSwapOption::empty()).collect());
            page[(number & IN_PAGE) as usize].store(Some(object));
        }
    }

    /// Takes an object out.
    pub(crate) fn remove(&self, number: u32) -> Option<Arc<T>> {
        self.slot(number)?.swap(None)
    }

    fn slot(&self, number: u32) -> Option<&ArcSwapOption<T>> {
        let page = self.pages.get((number >> LOG2_PAGE) as usize)?.get()?;
        page.get((number & IN_PAGE) as usize)
    }
}

impl<T> std::fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({} numbers)", self.pages.len() << LOG2_PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_is_found_by_its_number_until_it_is_removed() {
        let registry = Registry::new(16);
        assert!(registry.get(0x1234).is_none());
        registry.insert(0x1234, Arc::new(7));
        assert_eq!(registry.get(0x1234).as_deref(), Some(&7));
        assert!(registry.get(0x1235).is_none());
        assert!(registry.get(0x0f_1234).is_none() && registry.get(u32::MAX).is_none());
        assert_eq!(registry.remove(0x1234).as_deref(), Some(&7));
        assert!(registry.get(0x1234).is_none());
    }
}
