//! A guest's share of the card's translation table: every ring and region takes entries of it, and no guest may have
//! so many that others get none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use paraverbs_tenant::hca::HcaError;

/// A guest may have one part in so many of the table.
const PARTS: u64 = 4;

/// What a guest has of the table.
#[derive(Debug)]
pub(crate) struct Share {
    used: AtomicU64,
    most: u64,
}

/// Entries that an object has, until this is dropped.
#[derive(Debug)]
pub(crate) struct Entries {
    of: Arc<Share>,
    count: u64,
}

impl Share {
    /// Of a table of `1 << log2_entries` entries.
    pub(crate) fn of(log2_entries: u8) -> Arc<Self> {
        let most = 1u64.checked_shl(log2_entries.into()).unwrap_or(u64::MAX) / PARTS;
        Arc::new(Self { used: AtomicU64::new(0), most })
    }

    /// Entries for so many pages, and those behind them that are never present, as the driver takes them: a power
    /// of two.
    ///
    /// # Errors
    /// The guest has too many.
    pub(crate) fn take(self: &Arc<Self>, pages: usize, spare: u64) -> Result<Entries, HcaError> {
        let count = (pages as u64).saturating_add(spare).checked_next_power_of_two();
        let count = count.filter(|count| *count <= self.most).ok_or(HcaError::NoResources)?;
        let more = |used: u64| used.checked_add(count).filter(|used| *used <= self.most);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Entries { of: Arc::clone(self), count }),
            Err(_) => Err(HcaError::NoResources),
        }
    }

    /// Entries for a ring.
    pub(crate) fn ring(self: &Arc<Self>, pages: &[u64]) -> Result<Entries, HcaError> {
        self.take(pages.len(), 1)
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_counts_what_the_driver_takes_and_gets_it_back() {
        let share = Share::of(10);
        // 64 pages and the one behind take 128 entries.
        let first = share.take(64, 1).unwrap();
        let second = share.take(128, 0).unwrap();
        assert_eq!(share.take(1, 0).err(), Some(HcaError::NoResources));
        drop(first);
        assert_eq!(share.take(128, 1).err(), Some(HcaError::NoResources));
        let third = share.take(127, 1).unwrap();
        assert_eq!(share.take(usize::MAX, 1).err(), Some(HcaError::NoResources));
        drop((second, third));
        assert_eq!(share.used.load(Ordering::Relaxed), 0);
    }
}
