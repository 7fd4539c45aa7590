//! Something that one thread at a time works with, and that nobody waits for: whoever comes in vain has it looked at
//! once more by the thread that is at it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

const FREE: u8 = 0;
const TAKEN: u8 = 1;
/// Taken, and somebody has come in vain since its holder looked last.
const WANTED: u8 = 2;

/// How a thread lets go of a [`Baton`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// If nobody has come in vain meanwhile; else it is called again.
    UnlessWanted,
    /// Now: another thread comes for it.
    Anyway,
}

/// Who holds it, in one word, so that nobody can come in vain after the holder's last look.
#[derive(Debug, Default)]
pub(super) struct Baton<T> {
    state: AtomicU8,
    /// Locked by the holder only, so it is always free.
    inside: Mutex<T>,
}

impl<T> Baton<T> {
    /// Works with what is inside, if nobody else does; false if somebody does. He has `work` called again then, and
    /// sees there all that this thread has seen.
    pub(super) fn hold(&self, mut work: impl FnMut(&mut T) -> Leave) -> bool {
        let next = |state| Some(if state == FREE { TAKEN } else { WANTED });
        // A release for the holder, an acquire from the one before.
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
        if before != Ok(FREE) {
            return false;
        }
        let mut held = Held { state: &self.state, done: false };
        while !held.done {
            let leave = work(&mut *self.inside.lock().unwrap_or_else(PoisonError::into_inner));
            held.leave(leave);
        }
        true
    }
}

/// It is held, until this is dropped: also if the work has panicked.
struct Held<'a> {
    state: &'a AtomicU8,
    done: bool,
}

impl Held<'_> {
    fn leave(&mut self, leave: Leave) {
        let (release, relaxed) = (Ordering::Release, Ordering::Relaxed);
        self.done = match leave {
            // What those who came in vain have seen goes to whoever comes next.
            Leave::Anyway => self.state.swap(FREE, Ordering::AcqRel) != FREE,
            Leave::UnlessWanted => self.state.compare_exchange(TAKEN, FREE, release, relaxed).is_ok(),
        };
        if !self.done {
            self.state.swap(TAKEN, Ordering::Acquire);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.state.store(FREE, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn who_comes_in_vain_has_the_holder_look_again() {
        let baton = Baton::<u32>::default();
        assert!(baton.hold(|looks| {
            *looks += 1;
            if *looks < 3 {
                assert!(!baton.hold(|_| panic!("two have it")));
            }
            Leave::UnlessWanted
        }));
        assert!(baton.hold(|looks| {
            assert_eq!(*looks, 3);
            assert!(!baton.hold(|_| panic!("two have it")));
            Leave::Anyway
        }));
        assert!(baton.hold(|_| Leave::UnlessWanted));
    }

    #[test]
    fn holder_that_panics_lets_go() {
        let baton = Baton::<()>::default();
        let panics = || baton.hold(|()| panic!("on purpose"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(baton.hold(|()| Leave::UnlessWanted));
    }

    /// What somebody has put down before he comes, in vain or not, is found.
    #[test]
    fn nothing_that_is_there_when_somebody_comes_is_overlooked() {
        const THREADS: u32 = 4;
        const EACH: u32 = 5000;
        let (baton, given) = (Baton::<u32>::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        given.fetch_add(1, Ordering::Relaxed);
                        baton.hold(|found| {
                            *found += given.swap(0, Ordering::Relaxed);
                            Leave::UnlessWanted
                        });
                    }
                });
            }
        });
        assert!(baton.hold(|found| {
            assert_eq!((*found, given.load(Ordering::Relaxed)), (THREADS * EACH, 0));
            Leave::UnlessWanted
        }));
    }
}
