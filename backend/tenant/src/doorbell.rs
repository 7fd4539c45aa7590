//! Which slot of a doorbell area rings what: a table that the relay reads without a lock.
//!
//! What is rung comes from here by the slot's index, never from the slot. Does not: read an area.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::hca::{CqId, Doorbell, Hca, QpId, Target, UarId};
use crate::stats::Counters;

/// A slot that rings nothing.
const EMPTY: u64 = 0;
/// A slot that is a send queue's; the low half is the id.
const SEND: u64 = 1 << 32;
/// A slot that is a CQ's; the low half is the id.
const ARM: u64 = 2 << 32;
/// A slot that is taken, and rings nothing yet.
const TAKEN: u64 = 3 << 32;
/// The low half.
const ID: u64 = SEND - 1;

/// The slots of one UAR.
#[derive(Debug)]
pub struct SlotTable {
    uar: UarId,
    slots: Box<[AtomicU64]>,
    counters: Arc<Counters>,
}

impl SlotTable {
    pub(crate) fn new(uar: UarId, slots: u32, counters: Arc<Counters>) -> Arc<Self> {
        let slots = (0..slots).map(|_| AtomicU64::new(EMPTY)).collect();
        Arc::new(Self { uar, slots, counters })
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What a slot rings, at this moment.
    pub fn get(&self, slot: u32) -> Option<Doorbell> {
        let word = self.word(slot)?.load(Ordering::Acquire);
        let id = u32::try_from(word & ID).ok()?;
        let target = match word & !ID {
            SEND => Target::Send(QpId(id)),
            ARM => Target::Arm(CqId(id)),
            _ => return None,
        };
        Some(Doorbell { uar: self.uar, target })
    }

    /// Rings what a slot rings, and counts it.
    pub fn ring(&self, hca: &dyn Hca, slot: u32, value: u64) {
        let Some(doorbell) = self.get(slot) else {
            Counters::add(&self.counters.bad_doorbells, 1);
            return;
        };
        Counters::add(
            match doorbell.target {
                Target::Send(_) => &self.counters.send_doorbells,
                Target::Arm(_) => &self.counters.arm_doorbells,
            },
            1,
        );
        hca.ring(doorbell, value);
    }

    fn word(&self, slot: u32) -> Option<&AtomicU64> {
        self.slots.get(usize::try_from(slot).ok()?)
    }

    /// Takes a slot that is free; it rings nothing yet.
    pub(crate) fn take(&self) -> Option<u32> {
        let free = |word: &AtomicU64| {
            word.compare_exchange(EMPTY, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        u32::try_from(self.slots.iter().position(free)?).ok()
    }

    /// Lets a slot that is taken ring `target`.
    pub(crate) fn set(&self, slot: u32, target: Target) {
        let word = match target {
            Target::Send(QpId(id)) => SEND | u64::from(id),
            Target::Arm(CqId(id)) => ARM | u64::from(id),
        };
        self.store(slot, word);
    }

    /// A slot rings nothing any more, and stays taken.
    pub(crate) fn silence(&self, slot: u32) {
        self.store(slot, TAKEN);
    }

    /// A slot is free again.
    pub(crate) fn free(&self, slot: u32) {
        self.store(slot, EMPTY);
    }

    fn store(&self, slot: u32, word: u64) {
        if let Some(place) = self.word(slot) {
            place.store(word, Ordering::Release);
        }
    }

    /// No slot rings anything any more.
    pub(crate) fn silence_all(&self) {
        for word in &self.slots {
            if word.load(Ordering::Relaxed) != EMPTY {
                word.store(TAKEN, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_rings_only_what_it_was_set_to() {
        let table = SlotTable::new(UarId(130), 2, Arc::default());
        let slots = [table.take(), table.take(), table.take()];
        assert_eq!(slots, [Some(0), Some(1), None]);
        assert_eq!(table.get(0), None);
        table.set(0, Target::Send(QpId(u32::MAX)));
        table.set(1, Target::Arm(CqId(7)));
        assert_eq!(table.get(0), Some(Doorbell { uar: UarId(130), target: Target::Send(QpId(u32::MAX)) }));
        assert_eq!(table.get(1).map(|doorbell| doorbell.target), Some(Target::Arm(CqId(7))));
        table.silence(0);
        assert_eq!((table.get(0), table.take()), (None, None));
        table.free(0);
        assert_eq!(table.take(), Some(0));
        table.silence_all();
        assert_eq!((table.get(1), table.get(2), table.get(u32::MAX)), (None, None, None));
    }
}
