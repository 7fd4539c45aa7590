//! Finds the queue that a completion is of, by number, in a time that doesn't grow with their count.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use mlx4_queue::{PostedReceive, PostedSend, WorkQueues};

use crate::mw::{Bound, Released};
use crate::qp::Work;
use crate::srq::SharedRing;

/// Spreads numbers that the HCA gives out one after the other: multiplication by 2^64 over the golden ratio.
#[derive(Clone, Copy, Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ByNumber<T> = HashMap<u32, Arc<T>, BuildHasherDefault<NumberHasher>>;

/// The queues whose requests complete in a CQ.
#[derive(Default)]
pub(super) struct Works {
    queue_pairs: ByNumber<Work>,
    xrc_srqs: ByNumber<SharedRing>,
    /// A window's binding that the last completion was of, until it is known how it ended.
    binding: Option<Bound>,
    /// What windows have let go of, to be dropped when the CQ isn't locked any more.
    pub(super) released: Released,
}

impl Works {
    pub(super) fn attach(&mut self, work: &Arc<Work>) {
        self.queue_pairs.insert(work.qpn(), Arc::clone(work));
    }

    pub(super) fn detach(&mut self, qpn: u32) {
        self.queue_pairs.remove(&qpn);
    }

    pub(super) fn attach_xrc(&mut self, srqn: u32, ring: &Arc<SharedRing>) {
        self.xrc_srqs.insert(srqn, Arc::clone(ring));
    }

    pub(super) fn detach_xrc(&mut self, srqn: u32) {
        self.xrc_srqs.remove(&srqn);
    }

    /// A completion of the queue pair was dropped with the queue pair's reset.
    pub(super) fn receive_dropped(&self, qpn: u32, wqe_index: u16) {
        if let Some(work) = self.queue_pairs.get(&qpn) {
            work.receive_dropped(wqe_index);
        }
    }

    /// How the request of the last completion ended.
    pub(super) fn ended(&mut self, well: bool) {
        if let Some(binding) = self.binding.take() {
            binding.ended(well, &mut self.released);
        }
    }
}

impl WorkQueues for Works {
    fn send_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedSend> {
        let work = self.queue_pairs.get(&qpn)?;
        let (posted, binding) = work.send_completed(wqe_index, &mut self.released)?;
        self.binding = binding;
        Some(posted)
    }

    fn receive_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedReceive> {
        self.queue_pairs.get(&qpn)?.receive_completed(wqe_index)
    }

    fn xrc_completed(&mut self, srqn: u32, wqe_index: u16) -> Option<PostedReceive> {
        self.xrc_srqs.get(&srqn)?.completed(wqe_index)
    }
}

impl fmt::Debug for Works {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queue_pairs, xrc_srqs) = (self.queue_pairs.len(), self.xrc_srqs.len());
        f.debug_struct("Works")
            .field("queue_pairs", &queue_pairs)
            .field("xrc_srqs", &xrc_srqs)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_numbers_are_spread_over_low_and_high_bits() {
        let hash = |number| {
            let mut hasher = NumberHasher::default();
            hasher.write_u32(number);
            hasher.finish()
        };
        let low: std::collections::BTreeSet<u64> = (0..128).map(|number| hash(number) & 0x7f).collect();
        let high: std::collections::BTreeSet<u64> = (0..128).map(|number| hash(number) >> 57).collect();
        assert_eq!(low.len(), 128);
        assert!(high.len() > 100, "{}", high.len());
    }
}
