//! How often completion queues of others are armed: so that no event queue is overrun by one that is armed again and
//! again.
//!
//! A queue that has completions nobody took has its event as soon as it is armed, so whoever rings without pause would
//! fill the event queue, and others' events would be dropped. Hence a queue is armed again only after a *look* that
//! began after the last time has found the event queue empty; until then the last word waits. An event queue that is
//! empty has two events of each of its queues next time at most: one of what was armed before, and one of what is armed
//! now. So it never has more than [`EVENTS`] of each at once. Destroyed queues count: the queue that takes the place of
//! one is armed only after a look too.
//!
//! Who has found a word must wait makes it known and looks once more; who has taken events makes that known and looks
//! whether a word waits. So no word is left behind.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_pci::Doorbell;

use crate::eq::EqRing;

/// Events that a completion queue can have in its event queue at once.
pub(crate) const EVENTS: u32 = 2;

/// What an event queue knows of the completion queues that are armed through it.
#[derive(Default)]
pub(crate) struct Arms {
    /// Looks that have begun, and the last of those that have found the event queue empty.
    begun: AtomicU64,
    empty: AtomicU64,
    any_waits: AtomicBool,
    waiting: Mutex<Vec<Arc<Arm>>>,
}

/// How one completion queue is armed.
struct Arm {
    doorbell: Arc<dyn Doorbell>,
    /// Looks that had begun when it was armed last; [`RINGING`] while it is.
    armed: AtomicU64,
    waits: AtomicBool,
    /// The word that waits.
    value: AtomicU64,
}

/// More looks than there can be.
const RINGING: u64 = u64::MAX;

impl Arm {
    /// Arms the queue, unless it was since the last look that has found nothing. Says whether it did.
    fn pass(&self, arms: &Arms, value: u64) -> bool {
        let armed = self.armed.load(Ordering::SeqCst);
        let may = armed < arms.empty.load(Ordering::SeqCst);
        let mine =
            may && self.armed.compare_exchange(armed, RINGING, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if mine {
            self.doorbell.ring(value);
            self.armed.store(arms.begun.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        mine
    }
}

impl Arms {
    fn waiting(&self) -> MutexGuard<'_, Vec<Arc<Arm>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the event queue is empty.
    fn look(&self, ring: &EqRing) -> bool {
        let look = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let empty = ring.is_empty();
        if empty {
            self.empty.fetch_max(look, Ordering::SeqCst);
        }
        empty
    }

    /// Passes on what waits, if the event queue is empty.
    fn pass_all(&self, ring: &EqRing, waiting: &mut Vec<Arc<Arm>>) {
        if waiting.is_empty() || !self.look(ring) {
            return;
        }
        waiting.retain(|arm| {
            // Else somebody is at it, and only a later look counts.
            let passed = arm.pass(self, arm.value.load(Ordering::Relaxed));
            arm.waits.store(!passed, Ordering::SeqCst);
            !passed
        });
        self.any_waits.store(!waiting.is_empty(), Ordering::SeqCst);
    }
}

/// Events of `ring` were taken: what waits for that is passed on.
pub(crate) fn events_taken(ring: &EqRing) {
    fence(Ordering::SeqCst);
    let arms = ring.arms();
    if arms.any_waits.load(Ordering::SeqCst) {
        arms.pass_all(ring, &mut arms.waiting());
    }
}

/// The doorbell by which a completion queue in anybody's memory is armed. When it is dropped, what waits is forgotten.
pub struct ArmDoorbell {
    ring: Arc<EqRing>,
    arm: Arc<Arm>,
}

impl ArmDoorbell {
    pub(crate) fn new(ring: Arc<EqRing>, doorbell: Arc<dyn Doorbell>) -> Self {
        // As if it were armed now: events of a queue with its number may be there.
        let armed = AtomicU64::new(ring.arms().begun.load(Ordering::SeqCst));
        let (waits, value) = Default::default();
        Self { ring, arm: Arc::new(Arm { doorbell, armed, waits, value }) }
    }

    /// Arms the queue with the 64 bits of its doorbell; at once, or as soon as the events before were taken. Then the
    /// last word counts. It never waits.
    pub fn ring(&self, value: u64) {
        let (ring, arms, arm) = (&*self.ring, self.ring.arms(), &self.arm);
        let at_once = !arm.waits.load(Ordering::SeqCst)
            && (arm.pass(arms, value) || arms.look(ring) && arm.pass(arms, value));
        if at_once {
            // Another thread's word could not be passed on meanwhile.
            if arm.waits.load(Ordering::SeqCst) {
                events_taken(ring);
            }
            return;
        }
        let mut waiting = arms.waiting();
        arm.value.store(value, Ordering::Relaxed);
        if !arm.waits.swap(true, Ordering::SeqCst) {
            waiting.push(Arc::clone(arm));
        }
        arms.any_waits.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        arms.pass_all(ring, &mut waiting);
    }
}

impl Drop for ArmDoorbell {
    fn drop(&mut self) {
        self.ring.arms().waiting().retain(|arm| !Arc::ptr_eq(arm, &self.arm));
    }
}

impl fmt::Debug for ArmDoorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArmDoorbell").field("doorbell", &self.arm.doorbell).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;
    use crate::eq::tests::{close, queue, write};

    /// What was passed on.
    #[derive(Debug, Default)]
    struct Passed(Mutex<Vec<u64>>);

    impl Passed {
        fn take(&self) -> Vec<u64> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Doorbell for Passed {
        fn ring(&self, value: u64) {
            self.0.lock().unwrap().push(value);
        }
    }

    #[test]
    fn queue_is_armed_at_once_while_there_is_no_event_and_else_by_the_last_word_when_they_were_taken() {
        let (bench, queue, mut reader) = queue(1);
        let ring = Arc::clone(queue.ring());
        let passed = Arc::new(Passed::default());
        let doorbell = || ArmDoorbell::new(Arc::clone(&ring), Arc::<Passed>::clone(&passed));
        let bell = doorbell();
        (1..=3).for_each(|value| bell.ring(value));
        assert_eq!(passed.take(), [1, 2, 3]);
        write(&ring, 0);
        (4..=6).for_each(|value| bell.ring(value));
        assert!(passed.take().is_empty());
        reader.drain(|_| assert!(passed.take().is_empty())).unwrap();
        assert_eq!(passed.take(), [6]);
        reader.drain(|_| {}).unwrap();
        assert!(passed.take().is_empty());
        // A new queue may have the number of one whose event this is.
        write(&ring, 1);
        let new = doorbell();
        new.ring(7);
        assert!(passed.take().is_empty());
        // What waits for a queue that goes is forgotten.
        bell.ring(8);
        drop(bell);
        reader.drain(|_| {}).unwrap();
        assert_eq!(passed.take(), [7]);
        drop((new, ring));
        close(bench, queue, reader);
    }

    /// A queue that always has completions nobody took: each word is an event at once.
    struct Full {
        ring: Arc<EqRing>,
        written: Arc<Mutex<u32>>,
        taken: Arc<AtomicU32>,
        last: AtomicU64,
    }

    impl fmt::Debug for Full {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Full")
        }
    }

    const QUEUES: u32 = 4;

    impl Doorbell for Full {
        fn ring(&self, value: u64) {
            self.last.store(value, Ordering::SeqCst);
            let mut written = self.written.lock().unwrap();
            write(&self.ring, *written);
            *written += 1;
            let waiting = *written - self.taken.load(Ordering::SeqCst);
            assert!(waiting <= EVENTS * QUEUES, "{waiting} events");
        }
    }

    #[test]
    fn queues_that_are_armed_without_pause_have_two_events_each_at_most_and_no_last_word_is_lost() {
        const WORDS: u64 = 5000;
        let (bench, queue, mut reader) = queue(EVENTS * QUEUES);
        let ring = Arc::clone(queue.ring());
        let (written, taken) = (Arc::<Mutex<u32>>::default(), Arc::<AtomicU32>::default());
        let full = |_| {
            let (ring, written, taken) = (Arc::clone(&ring), Arc::clone(&written), Arc::clone(&taken));
            Arc::new(Full { ring, written, taken, last: AtomicU64::new(0) })
        };
        let cards: Vec<_> = (0..QUEUES).map(full).collect();
        let bell = |card: &Arc<Full>| ArmDoorbell::new(Arc::clone(&ring), Arc::<Full>::clone(card));
        let bells: Vec<_> = cards.iter().map(bell).collect();
        thread::scope(|scope| {
            let ringing: Vec<_> = bells
                .chunks(2)
                .map(|bells| {
                    let words =
                        move || (1..=WORDS).for_each(|word| bells.iter().for_each(|bell| bell.ring(word)));
                    scope.spawn(words)
                })
                .collect();
            let mut drain = || {
                let each = |_: &_| {
                    taken.fetch_add(1, Ordering::SeqCst);
                };
                reader.drain(each).unwrap()
            };
            while !ringing.iter().all(|thread| thread.is_finished()) {
                drain();
            }
            while !ring.is_empty() {
                drain();
            }
        });
        for card in &cards {
            assert_eq!(card.last.load(Ordering::SeqCst), WORDS);
        }
        drop((bells, cards, ring));
        close(bench, queue, reader);
    }
}
