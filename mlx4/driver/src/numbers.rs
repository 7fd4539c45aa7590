//! Numbers of objects: which are taken. A number that was given back is not taken again soon.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

#[derive(Debug)]
struct State {
    /// Bit n is set while number `first + n` is taken.
    taken: Vec<u64>,
    /// Where the search for a free one starts.
    next: u32,
}

/// A range of numbers.
#[derive(Debug)]
pub(crate) struct Numbers {
    what: &'static str,
    first: u32,
    count: u32,
    state: Mutex<State>,
}

impl Numbers {
    /// Numbers from `first` to before `end`, of objects that are called `what` in the singular.
    pub(crate) fn new(what: &'static str, first: u32, end: u32) -> Self {
        let count = end.saturating_sub(first);
        let mut taken = vec![0u64; count.div_ceil(64) as usize];
        if let (Some(last), rest @ 1..) = (taken.last_mut(), count % 64) {
            *last = u64::MAX << rest;
        }
        Self { what, first, count, state: Mutex::new(State { taken, next: 0 }) }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// None is free.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Number> {
        let value = self.find()?;
        Ok(Number { of: Arc::clone(self), value, lost: false })
    }

    fn find(&self) -> Result<u32> {
        let mut state = self.lock();
        let start = state.next;
        let words = self.count.div_ceil(64);
        for step in 0..=words {
            let word = (start / 64 + step) % words.max(1);
            let Some(taken) = state.taken.get_mut(word as usize) else { break };
            // In the first word only what is not before the start, which comes last.
            let skipped = if step == 0 { (1u64 << (start % 64)) - 1 } else { 0 };
            let bit = (*taken | skipped).trailing_ones();
            if bit < 64 {
                *taken |= 1 << bit;
                let number = word * 64 + bit;
                state.next = if number + 1 < self.count { number + 1 } else { 0 };
                return Ok(self.first + number);
            }
        }
        Err(Error::Exhausted(self.what))
    }

    pub(crate) fn give_back(&self, number: u32) {
        let index = number.wrapping_sub(self.first);
        if let Some(word) = self.lock().taken.get_mut((index / 64) as usize) {
            *word &= !(1 << (index % 64));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Number {
    of: Arc<Numbers>,
    value: u32,
    lost: bool,
}

impl Number {
    pub(crate) fn get(&self) -> u32 {
        self.value
    }

    /// Leaves the number taken: the device may still use it.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        if !self.lost {
            self.of.give_back(self.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn numbers(first: u32, end: u32) -> Arc<Numbers> {
        Arc::new(Numbers::new("thing", first, end))
    }

    #[test]
    fn every_number_is_taken_once_and_can_be_taken_again() {
        let numbers = numbers(100, 300);
        let mut taken: Vec<Number> = (0..200).map(|_| numbers.take().unwrap()).collect();
        let all: BTreeSet<u32> = taken.iter().map(Number::get).collect();
        assert_eq!(all, (100..300).collect());
        assert_eq!(numbers.take().unwrap_err().to_string(), "no thing left");
        let gone = taken.remove(50).get();
        assert_eq!(numbers.take().unwrap().get(), gone);
    }

    #[test]
    fn number_given_back_is_not_the_next_one() {
        let numbers = numbers(0, 4);
        let first = numbers.take().unwrap().get();
        assert_ne!(numbers.take().unwrap().get(), first);
    }

    #[test]
    fn lost_number_is_never_taken_again() {
        let numbers = numbers(7, 8);
        numbers.take().unwrap().lose();
        assert!(numbers.take().is_err());
    }

    #[test]
    fn empty_range_has_none() {
        assert!(numbers(5, 5).take().is_err());
        assert!(numbers(6, 5).take().is_err());
    }
}
