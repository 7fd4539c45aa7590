//! The set of numbers that wait for service: rung from any thread, drained by the engine, without a lock
//! and without allocation.
//!
//! Three levels of 64-bit words. A ringer sets its bit from the lowest level up; the drainer takes words
//! from the top down. So a ring that comes while its bit is being drained is seen by this pass or leaves a
//! bit on every level for the next.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers below 2^18.
const LEVEL0: usize = 1 << 12;
const LEVEL1: usize = 1 << 6;

/// A set of numbers below [`RunSet::CAPACITY`].
pub(crate) struct RunSet {
    bits: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    top: AtomicU64,
}

impl RunSet {
    /// One more than the largest number that the set can hold.
    pub(crate) const CAPACITY: u32 = 1 << 18;

    pub(crate) fn new() -> Self {
        let words = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { bits: words(LEVEL0), summary: words(LEVEL1), top: AtomicU64::new(0) }
    }

    /// Puts a number in. Numbers beyond the capacity are taken modulo it.
    pub(crate) fn ring(&self, number: u32) {
        let n = (number % Self::CAPACITY) as usize;
        self.bits[n >> 6].fetch_or(1 << (n & 63), Ordering::AcqRel);
        self.summary[n >> 12].fetch_or(1 << ((n >> 6) & 63), Ordering::AcqRel);
        self.top.fetch_or(1 << (n >> 12), Ordering::AcqRel);
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.top.load(Ordering::Acquire) == 0
    }

    /// Takes every number out that is in the set now and hands it to `each`.
    pub(crate) fn drain(&self, mut each: impl FnMut(u32)) {
        for i in ones(self.top.swap(0, Ordering::AcqRel)) {
            for j in ones(self.summary[i].swap(0, Ordering::AcqRel)) {
                let word = i << 6 | j;
                for k in ones(self.bits[word].swap(0, Ordering::AcqRel)) {
                    each(u32::try_from(word << 6 | k).unwrap_or(0));
                }
            }
        }
    }
}

fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            bit
        })
    })
}

impl std::fmt::Debug for RunSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunSet(empty: {})", self.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn drains_what_was_rung_once() {
        let set = RunSet::new();
        for n in [5, 64, 4095, 4096, 262_143, 5] {
            set.ring(n);
        }
        let mut seen = Vec::new();
        set.drain(|n| seen.push(n));
        assert_eq!(seen, [5, 64, 4095, 4096, 262_143]);
        assert!(set.is_empty());
    }

    #[test]
    fn no_ring_is_lost_between_threads() {
        let set = Arc::new(RunSet::new());
        let counts: Arc<Vec<AtomicU32>> = Arc::new((0..128).map(|_| AtomicU32::new(0)).collect());
        let ringer = {
            let (set, counts) = (set.clone(), counts.clone());
            std::thread::spawn(move || {
                for round in 0..2000u32 {
                    let n = round * 2049 % 128;
                    counts[n as usize].fetch_add(1, Ordering::SeqCst);
                    set.ring(n * 2000);
                }
            })
        };
        let mut total = 0;
        let serve =
            |total: &mut u32| set.drain(|n| *total += counts[(n / 2000) as usize].swap(0, Ordering::SeqCst));
        while !ringer.is_finished() {
            serve(&mut total);
        }
        ringer.join().expect("ringer");
        serve(&mut total);
        assert_eq!(total, 2000);
    }
}
