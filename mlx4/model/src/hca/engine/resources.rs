//! A responder's resources: as many RDMA reads and atomics as its context says are remembered, atomics with
//! their results, so that a request that comes again is answered as before (IBTA vol. 1, 9.7.5.1.4 and
//! 9.4.5).

use crate::hca::caps;

/// Most reads and atomics that a responder remembers.
const MOST: usize = 1 << caps::LOG2_MAX_RESPONDER_READS;

/// A request that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Executed {
    psn: u32,
    /// What an atomic returned.
    result: Option<u64>,
}

/// The last reads and atomics of a responder.
#[derive(Debug, Default)]
pub(super) struct Resources {
    executed: [Option<Executed>; MOST],
    next: usize,
}

impl Resources {
    /// Remembers a request in place of the oldest one, if there are `depth` already.
    pub(super) fn remember(&mut self, psn: u32, result: Option<u64>, depth: u32) {
        let depth = usize::try_from(depth).unwrap_or(MOST).clamp(1, MOST);
        let slot = self.next % depth;
        self.executed[slot] = Some(Executed { psn, result });
        self.next = slot + 1;
    }

    /// What the atomic with this PSN returned, if it is remembered.
    pub(super) fn result(&self, psn: u32) -> Option<u64> {
        self.executed.iter().flatten().find(|request| request.psn == psn)?.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_request_is_forgotten_first() {
        let mut resources = Resources::default();
        for psn in 0..4 {
            resources.remember(psn, Some(u64::from(psn) + 10), 2);
        }
        resources.remember(4, None, 2);
        let results = [1, 2, 3, 4].map(|psn| resources.result(psn));
        assert_eq!(results, [None, None, Some(13), None]);
        resources.remember(5, Some(15), u32::MAX);
        assert_eq!((resources.result(3), resources.result(5)), (None, Some(15)));
    }
}
