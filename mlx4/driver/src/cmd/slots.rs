//! Places for commands in flight, each with two mailboxes.
//!
//! A place whose command didn't end in time is never used again: the device may still write to its mailbox,
//! or complete the command late. The token of a place changes with each use, so a late completion finds no
//! command to complete.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mlx4_wire::cmd::Status;

use crate::error::CommandFailure;

/// log2 of the places that there are at most.
pub(super) const LOG2_MAX_SLOTS: u8 = 4;
/// Places that there are at most.
pub(super) const MAX_SLOTS: usize = 1 << LOG2_MAX_SLOTS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Taken,
    Done(Status, u64),
    Retired,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    token: u16,
}

#[derive(Debug)]
struct Table {
    slots: [Slot; MAX_SLOTS],
    /// How many of them are used.
    count: usize,
    dead: bool,
}

/// The places for commands.
#[derive(Debug)]
pub(super) struct Slots {
    table: Mutex<Table>,
    freed: Condvar,
    done: [Condvar; MAX_SLOTS],
}

/// A place that is taken; it is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    slots: &'a Slots,
    pub(super) index: usize,
    pub(super) token: u16,
}

impl Slots {
    /// One place, until the device has told how many it takes.
    pub(super) fn new() -> Self {
        let slots = std::array::from_fn(|index| Slot {
            state: State::Free,
            // Less than MAX_SLOTS.
            token: u16::try_from(index).unwrap_or(0),
        });
        Self {
            table: Mutex::new(Table { slots, count: 1, dead: false }),
            freed: Condvar::new(),
            done: std::array::from_fn(|_| Condvar::new()),
        }
    }

    /// Uses as many places as the device takes commands.
    pub(super) fn set_count(&self, count: usize) {
        self.lock().count = count.clamp(1, MAX_SLOTS);
        self.freed.notify_all();
    }

    /// Takes a place, as soon as one is free.
    pub(super) fn take(&self, wait: Duration) -> Result<Taken<'_>, CommandFailure> {
        let deadline = Instant::now() + wait;
        let mut table = self.lock();
        loop {
            if table.dead {
                return Err(CommandFailure::Dead);
            }
            let count = table.count;
            if let Some(index) = table.slots[..count].iter().position(|slot| slot.state == State::Free) {
                let slot = &mut table.slots[index];
                slot.state = State::Taken;
                slot.token = slot.token.wrapping_add(1 << LOG2_MAX_SLOTS);
                return Ok(Taken { slots: self, index, token: slot.token });
            }
            if table.slots[..count].iter().all(|slot| slot.state == State::Retired) {
                return Err(CommandFailure::Dead);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(CommandFailure::Busy(wait));
            };
            table = self.freed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Completes the command with a token. Says whether there was one.
    pub(super) fn complete(&self, token: u16, status: Status, result: u64) -> bool {
        let index = usize::from(token) % MAX_SLOTS;
        let mut table = self.lock();
        let slot = &mut table.slots[index];
        if slot.token != token || slot.state != State::Taken {
            return false;
        }
        slot.state = State::Done(status, result);
        self.done[index].notify_one();
        true
    }

    /// Fails all commands in flight and those to come.
    pub(super) fn kill(&self) {
        self.lock().dead = true;
        self.freed.notify_all();
        self.done.iter().for_each(Condvar::notify_all);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Whether a place is lost, and with it its mailboxes.
    pub(super) fn any_retired(&self) -> bool {
        self.lock().slots.iter().any(|slot| slot.state == State::Retired)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken<'_> {
    /// Waits until the command is done: its status and immediate result.
    pub(super) fn wait(&self, wait: Duration) -> Result<(Status, u64), CommandFailure> {
        let deadline = Instant::now() + wait;
        let mut table = self.slots.lock();
        loop {
            if let State::Done(status, result) = table.slots[self.index].state {
                return Ok((status, result));
            }
            if table.dead {
                return Err(CommandFailure::Dead);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(CommandFailure::Timeout(wait));
            };
            let done = &self.slots.done[self.index];
            table = done.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Never gives the place back.
    pub(super) fn retire(self) {
        self.slots.lock().slots[self.index].state = State::Retired;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut table = self.slots.lock();
        let slot = &mut table.slots[self.index];
        if slot.state != State::Retired {
            slot.state = State::Free;
            self.slots.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn late_completion_of_an_earlier_use_completes_nothing() {
        let slots = Slots::new();
        let first = slots.take(SHORT).unwrap().token;
        let second = slots.take(SHORT).unwrap();
        assert_ne!(first, second.token);
        assert!(!slots.complete(first, Status::OK, 1));
        assert!(slots.complete(second.token, Status::BAD_OP, 2));
        assert!(!slots.complete(second.token, Status::OK, 3));
        assert_eq!(second.wait(SHORT).unwrap(), (Status::BAD_OP, 2));
    }

    #[test]
    fn retired_place_is_not_taken_again() {
        let slots = Slots::new();
        slots.set_count(2);
        let lost = slots.take(SHORT).unwrap();
        let token = lost.token;
        assert!(matches!(lost.wait(SHORT), Err(CommandFailure::Timeout(_))));
        lost.retire();
        assert!(slots.any_retired());
        assert!(!slots.complete(token, Status::OK, 0));
        let other = slots.take(SHORT).unwrap();
        assert!(matches!(slots.take(SHORT), Err(CommandFailure::Busy(_))));
        other.retire();
        assert!(matches!(slots.take(SHORT), Err(CommandFailure::Dead)));
    }

    #[test]
    fn waiting_command_takes_the_place_that_another_gives_back() {
        let slots = Slots::new();
        let taken = slots.take(SHORT).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| slots.take(Duration::from_secs(10)).map(|taken| taken.index));
            drop(taken);
            assert_eq!(waiter.join().unwrap().unwrap(), 0);
        });
    }

    #[test]
    fn kill_ends_who_waits_and_who_comes() {
        let slots = Slots::new();
        let taken = slots.take(SHORT).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| taken.wait(Duration::from_secs(10)));
            slots.kill();
            assert!(matches!(waiter.join().unwrap(), Err(CommandFailure::Dead)));
        });
        assert!(matches!(slots.take(SHORT), Err(CommandFailure::Dead)));
    }
}
