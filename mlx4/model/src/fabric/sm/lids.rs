//! LIDs by port GUID: who has which, kept for as long as there are LIDs enough.

use std::collections::{BTreeMap, HashMap};

use mlx4_wire::mad::LID_MULTICAST_FIRST;

/// Port GUIDs whose LIDs are remembered while the port is away.
const MAX_REMEMBERED: usize = 4096;

/// The LIDs of a subnet.
pub(super) struct Lids {
    by_guid: HashMap<u64, u16>,
    by_lid: BTreeMap<u16, u64>,
    last: u16,
}

impl Lids {
    /// LIDs up to what a linear forwarding table with `capacity` entries routes.
    pub(super) fn new(capacity: u16) -> Self {
        let last = capacity.min(LID_MULTICAST_FIRST).saturating_sub(1);
        Self { by_guid: HashMap::new(), by_lid: BTreeMap::new(), last }
    }

    /// The LID of a port: the one that it had, else the one it reports if that is free, else the lowest
    /// free one. `present` tells which ports are there, and so keep theirs. `None` if all are taken.
    pub(super) fn assign(&mut self, guid: u64, reported: u16, present: impl Fn(u64) -> bool) -> Option<u16> {
        if let Some(&lid) = self.by_guid.get(&guid) {
            return Some(lid);
        }
        if self.by_guid.len() >= MAX_REMEMBERED {
            self.forget_absent(&present);
        }
        let lid = self.free(reported).or_else(|| {
            self.forget_absent(&present);
            self.free(reported)
        })?;
        self.by_guid.insert(guid, lid);
        self.by_lid.insert(lid, guid);
        Some(lid)
    }

    fn free(&self, reported: u16) -> Option<u16> {
        if (1..=self.last).contains(&reported) && !self.by_lid.contains_key(&reported) {
            return Some(reported);
        }
        let mut lid = 1;
        for &taken in self.by_lid.keys() {
            if taken != lid {
                break;
            }
            lid += 1;
        }
        (lid <= self.last).then_some(lid)
    }

    fn forget_absent(&mut self, present: &impl Fn(u64) -> bool) {
        self.by_lid.retain(|_, guid| present(*guid));
        self.by_guid.retain(|guid, _| present(*guid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_keeps_its_lid_and_free_reported_lid_is_taken() {
        let mut lids = Lids::new(1024);
        assert_eq!(lids.assign(0xa, 0, |_| false), Some(1));
        assert_eq!(lids.assign(0xb, 9, |_| false), Some(9));
        assert_eq!(lids.assign(0xc, 9, |_| false), Some(2));
        assert_eq!(lids.assign(0xd, 0xc000, |_| false), Some(3));
        assert_eq!(lids.assign(0xa, 7, |_| false), Some(1));
    }

    #[test]
    fn full_table_forgets_only_absent_ports() {
        let mut lids = Lids::new(4);
        for guid in 1..=3 {
            assert!(lids.assign(guid, 0, |_| true).is_some());
        }
        assert_eq!(lids.assign(4, 0, |_| true), None);
        assert_eq!(lids.assign(4, 0, |guid| guid != 2), Some(2));
        assert_eq!(lids.assign(1, 0, |_| true), Some(1));
    }

    #[test]
    fn many_visitors_do_not_grow_the_table() {
        let mut lids = Lids::new(u16::MAX);
        for guid in 0..3 * MAX_REMEMBERED as u64 {
            assert!(lids.assign(guid, 0, |other| other == guid).is_some());
        }
        assert!(lids.by_guid.len() <= MAX_REMEMBERED);
        assert_eq!(lids.by_guid.len(), lids.by_lid.len());
    }
}
