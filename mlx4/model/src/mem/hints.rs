//! Where an address was found last: what a look-up tries before it searches.
//!
//! A hint may be stale, or another address's: whoever uses one checks it. Any thread may set one.

use std::sync::atomic::{AtomicU32, Ordering};

/// Number of hints, a power of two.
const HINTS: usize = 256;

/// Hints by key, a few bits of which select one.
#[derive(Debug)]
pub(crate) struct Hints([AtomicU32; HINTS]);

impl Default for Hints {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; HINTS])
    }
}

/// A copy of a table starts without.
impl Clone for Hints {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Hints {
    fn slot(&self, key: u64) -> &AtomicU32 {
        // Multiplied by the golden ratio, keys that are near to each other spread over the upper bits.
        let spread = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - HINTS.ilog2());
        &self.0[usize::try_from(spread).unwrap_or(0) % HINTS]
    }

    /// The hint for a key.
    #[inline]
    pub(crate) fn get(&self, key: u64) -> usize {
        self.slot(key).load(Ordering::Relaxed) as usize
    }

    /// Sets the hint for a key; one that doesn't fit is left out.
    pub(crate) fn set(&self, key: u64, hint: usize) {
        if let Ok(hint) = u32::try_from(hint) {
            self.slot(key).store(hint, Ordering::Relaxed);
        }
    }
}
