//! Counters of a port. The data path adds to them without a lock; performance management reads them as
//! they stand since they were last set, cut to the width of the attribute that shows them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter of PortCounters or PortCountersExtended (IBTA vol. 1, 16.1.3.5 and 16.1.4.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Counter {
    SymbolError,
    LinkErrorRecovery,
    LinkDowned,
    RcvErrors,
    RcvRemotePhysical,
    RcvSwitchRelay,
    XmitDiscards,
    XmitConstraint,
    RcvConstraint,
    LocalLinkIntegrity,
    ExcessiveBufferOverrun,
    Vl15Dropped,
    XmitWait,
    Qp1Dropped,
    /// In 4-byte words.
    XmitData,
    /// In 4-byte words.
    RcvData,
    /// The sum of unicast and multicast.
    XmitPkts,
    /// The sum of unicast and multicast.
    RcvPkts,
    UnicastXmitPkts,
    UnicastRcvPkts,
    MulticastXmitPkts,
    MulticastRcvPkts,
}

const ERRORS: usize = Counter::Qp1Dropped as usize + 1;
const COUNTERS: usize = Counter::MulticastRcvPkts as usize + 1;

/// The attribute that a counter is shown in. Each is set on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// PortCounters.
    Classic,
    /// PortCountersExtended.
    Extended,
}

/// Traffic of one direction, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Traffic {
    words: AtomicU64,
    unicast: AtomicU64,
    multicast: AtomicU64,
}

impl Traffic {
    fn add(&self, words: u64, packets: u64, multicast: bool) {
        self.words.fetch_add(words, Relaxed);
        let counter = if multicast { &self.multicast } else { &self.unicast };
        counter.fetch_add(packets, Relaxed);
    }

    fn packets(&self) -> u64 {
        self.unicast.load(Relaxed).wrapping_add(self.multicast.load(Relaxed))
    }
}

/// The counters of a port.
#[derive(Debug)]
pub struct Counters {
    sent: Traffic,
    received: Traffic,
    errors: [AtomicU64; ERRORS],
    /// What each counter's total was when it was last zero.
    classic_base: [AtomicU64; COUNTERS],
    extended_base: [AtomicU64; COUNTERS],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            sent: Traffic::default(),
            received: Traffic::default(),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            classic_base: std::array::from_fn(|_| AtomicU64::new(0)),
            extended_base: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counters {
    /// Counts packets sent. `words` is their length from the local route header through the invariant CRC,
    /// in 4-byte words.
    pub fn sent(&self, words: u64, packets: u64, multicast: bool) {
        self.sent.add(words, packets, multicast);
    }

    /// Counts packets received; `words` as in [`sent`](Self::sent).
    pub fn received(&self, words: u64, packets: u64, multicast: bool) {
        self.received.add(words, packets, multicast);
    }

    /// Counts an error, or ticks waited. Counters of traffic aren't counted by this.
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(total) = self.errors.get(counter as usize) {
            total.fetch_add(n, Relaxed);
        }
    }

    /// The counter since it was last set in a view; more than a 64-bit counter holds starts over.
    pub fn get(&self, view: View, counter: Counter) -> u64 {
        self.total(counter).wrapping_sub(self.base(view, counter).load(Relaxed))
    }

    /// Sets the counter in a view.
    pub fn set(&self, view: View, counter: Counter, value: u64) {
        self.base(view, counter).store(self.total(counter).wrapping_sub(value), Relaxed);
    }

    /// Sets all counters to zero in both views.
    pub fn reset(&self) {
        for counter in ALL {
            self.set(View::Classic, counter, 0);
            self.set(View::Extended, counter, 0);
        }
    }

    fn base(&self, view: View, counter: Counter) -> &AtomicU64 {
        match view {
            View::Classic => &self.classic_base[counter as usize],
            View::Extended => &self.extended_base[counter as usize],
        }
    }

    fn total(&self, counter: Counter) -> u64 {
        match counter {
            Counter::XmitData => self.sent.words.load(Relaxed),
            Counter::RcvData => self.received.words.load(Relaxed),
            Counter::XmitPkts => self.sent.packets(),
            Counter::RcvPkts => self.received.packets(),
            Counter::UnicastXmitPkts => self.sent.unicast.load(Relaxed),
            Counter::UnicastRcvPkts => self.received.unicast.load(Relaxed),
            Counter::MulticastXmitPkts => self.sent.multicast.load(Relaxed),
            Counter::MulticastRcvPkts => self.received.multicast.load(Relaxed),
            _ => self.errors.get(counter as usize).map_or(0, |total| total.load(Relaxed)),
        }
    }
}

const ALL: [Counter; COUNTERS] = [
    Counter::SymbolError,
    Counter::LinkErrorRecovery,
    Counter::LinkDowned,
    Counter::RcvErrors,
    Counter::RcvRemotePhysical,
    Counter::RcvSwitchRelay,
    Counter::XmitDiscards,
    Counter::XmitConstraint,
    Counter::RcvConstraint,
    Counter::LocalLinkIntegrity,
    Counter::ExcessiveBufferOverrun,
    Counter::Vl15Dropped,
    Counter::XmitWait,
    Counter::Qp1Dropped,
    Counter::XmitData,
    Counter::RcvData,
    Counter::XmitPkts,
    Counter::RcvPkts,
    Counter::UnicastXmitPkts,
    Counter::UnicastRcvPkts,
    Counter::MulticastXmitPkts,
    Counter::MulticastRcvPkts,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_the_sum_of_unicast_and_multicast() {
        let counters = Counters::default();
        counters.sent(72, 1, false);
        counters.sent(144, 2, true);
        counters.received(10, 1, true);
        assert_eq!(counters.get(View::Classic, Counter::XmitPkts), 3);
        assert_eq!(counters.get(View::Extended, Counter::UnicastXmitPkts), 1);
        assert_eq!(counters.get(View::Extended, Counter::MulticastXmitPkts), 2);
        assert_eq!(counters.get(View::Extended, Counter::XmitData), 216);
        assert_eq!(counters.get(View::Extended, Counter::MulticastRcvPkts), 1);
    }

    #[test]
    fn views_are_set_on_their_own() {
        let counters = Counters::default();
        counters.add(Counter::RcvErrors, 5);
        counters.set(View::Classic, Counter::RcvErrors, 2);
        counters.add(Counter::RcvErrors, 1);
        assert_eq!(counters.get(View::Classic, Counter::RcvErrors), 3);
        assert_eq!(counters.get(View::Extended, Counter::RcvErrors), 6);
    }

    #[test]
    fn reset_clears_every_counter_once() {
        let counters = Counters::default();
        for (index, counter) in ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
            counters.add(counter, 1);
        }
        counters.sent(1, 1, false);
        counters.received(1, 1, true);
        counters.reset();
        for counter in ALL {
            assert_eq!(counters.get(View::Classic, counter), 0, "{counter:?}");
            assert_eq!(counters.get(View::Extended, counter), 0, "{counter:?}");
        }
    }
}
