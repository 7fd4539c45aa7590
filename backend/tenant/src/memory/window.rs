//! Windows: which bus addresses are which guest's.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The bus addresses of an HCA, and the windows that guests have in them.
#[derive(Debug)]
pub(crate) struct Windows {
    usable: Vec<Range<u64>>,
    taken: Mutex<Vec<Range<u64>>>,
}

/// A guest's window: the bus address of guest address 0, and how far it goes. Free again when dropped.
#[derive(Debug)]
pub(crate) struct Window {
    range: Range<u64>,
    windows: Arc<Windows>,
}

impl Windows {
    pub(crate) fn new(mut usable: Vec<Range<u64>>) -> Arc<Self> {
        usable.sort_by_key(|range| range.start);
        Arc::new(Self { usable, taken: Mutex::default() })
    }

    /// A window of `bytes` bytes (a power of two), aligned to `align`; `None` if there is no room.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64, align: u64) -> Option<Window> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let range = self.usable.iter().find_map(|usable| first_fit(usable, &taken, bytes, align))?;
        taken.push(range.clone());
        taken.sort_by_key(|range| range.start);
        Some(Window { range, windows: Arc::clone(self) })
    }
}

/// The first place in `usable` that is clear of `taken`, which is sorted.
fn first_fit(usable: &Range<u64>, taken: &[Range<u64>], bytes: u64, align: u64) -> Option<Range<u64>> {
    let mut start = usable.start.checked_next_multiple_of(align)?;
    for other in taken {
        let end = start.checked_add(bytes)?;
        if other.start < end && start < other.end {
            start = other.end.checked_next_multiple_of(align)?;
        }
    }
    let end = start.checked_add(bytes)?;
    (end <= usable.end).then_some(start..end)
}

impl Window {
    pub(crate) fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The bus address of a guest address in the window.
    pub(crate) fn iova(&self, guest_address: u64) -> crate::hca::Iova {
        crate::hca::Iova(self.range.start + guest_address)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut taken = self.windows.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|range| *range != self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_clear_of_each_other_and_of_what_is_reserved() {
        let windows = Windows::new(vec![0x1000..0x1_0000, 0x2_0000..0x5_0000]);
        let first = windows.take(0x1_0000, 0x1_0000).unwrap();
        let second = windows.take(0x1_0000, 0x1_0000).unwrap();
        let third = windows.take(0x1_0000, 0x1_0000).unwrap();
        assert_eq!([&first, &second, &third].map(|window| window.iova(0).0), [0x2_0000, 0x3_0000, 0x4_0000]);
        assert!(windows.take(0x1_0000, 0x1_0000).is_none());
        drop(second);
        assert_eq!(windows.take(0x1_0000, 0x1_0000).map(|window| window.iova(8).0), Some(0x3_0008));
    }
}
