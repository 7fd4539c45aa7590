//! Deadlines of queue pairs: one for each at most, the last that was set.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// Deadlines by queue pair number.
#[derive(Debug, Default)]
pub(super) struct Timers {
    in_order: BTreeSet<(Instant, u32)>,
    of_qp: HashMap<u32, Instant>,
}

impl Timers {
    /// Sets the deadline of a queue pair, in place of an earlier one.
    pub(super) fn set(&mut self, qpn: u32, at: Instant) {
        if let Some(before) = self.of_qp.insert(qpn, at) {
            self.in_order.remove(&(before, qpn));
        }
        self.in_order.insert((at, qpn));
    }

    /// Takes out every deadline that has passed at `now`.
    pub(super) fn take_due(&mut self, now: Instant, mut each: impl FnMut(u32)) {
        while let Some(&(at, qpn)) = self.in_order.first().filter(|(at, _)| *at <= now) {
            self.in_order.remove(&(at, qpn));
            self.of_qp.remove(&qpn);
            each(qpn);
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.in_order.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn later_deadline_replaces_the_earlier() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set(7, at(1));
        timers.set(8, at(2));
        timers.set(7, at(3));
        assert_eq!(timers.next(), Some(at(2)));
        let mut due = Vec::new();
        timers.take_due(at(2), |qpn| due.push(qpn));
        assert_eq!(due, [8]);
        timers.take_due(at(9), |qpn| due.push(qpn));
        assert_eq!((due, timers.next()), (vec![8, 7], None));
    }
}
