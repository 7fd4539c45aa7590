//! Multicast groups, and who is in them.
//!
//! Here are the groups themselves; [`super::membership`] is what members ask for.

use std::collections::{BTreeMap, BTreeSet};

use mlx4_wire::mad::portinfo::Mtu;
use mlx4_wire::mad::sa::path::{GroupFlow, McMemberRecord, ProxyJoin, Rate, ScopeJoin, join_state};
use mlx4_wire::mad::{LID_MULTICAST_FIRST, LID_MULTICAST_LAST};
use mlx4_wire::{U16, U32};

use super::measures::exactly;
use crate::fabric::sm::subnet::{End, Subnet};

/// Groups at most, besides what the switch's table holds.
const MAX_GROUPS: usize = 1024;
/// Groups that one port may be in.
const MAX_GROUPS_PER_PORT: usize = 256;
/// Q_Key of the IPoIB groups that are there from the start, as Linux and OpenSM use it.
const IPOIB_QKEY: u32 = 0x0b1b;

/// What all members of a group share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) qkey: u32,
    pub(super) pkey: u16,
    pub(super) mtu: Mtu,
    pub(super) rate: Rate,
    pub(super) life_time: u8,
    pub(super) tclass: u8,
    pub(super) flow: GroupFlow,
    pub(super) scope: u8,
}

/// A multicast group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) mgid: [u8; 16],
    pub(super) mlid: u16,
    pub(super) parameters: Parameters,
    /// There from the start, with or without members.
    configured: bool,
    /// Join state by the GUID that joined.
    members: BTreeMap<u64, u8>,
}

impl Group {
    /// The join state of a GUID; 0 if it isn't a member.
    pub(super) fn join_state(&self, guid: u64) -> u8 {
        self.members.get(&guid).copied().unwrap_or(0)
    }

    /// The group's record, as the member with this GID sees it; nobody's with zeros.
    pub(super) fn record(&self, port_gid: [u8; 16], join_state: u8) -> McMemberRecord {
        let parameters = &self.parameters;
        McMemberRecord {
            mgid: self.mgid,
            port_gid,
            q_key: U32::new(parameters.qkey),
            mlid: U16::new(self.mlid),
            mtu: exactly(parameters.mtu.0),
            tclass: parameters.tclass,
            p_key: U16::new(parameters.pkey),
            rate: exactly(parameters.rate.0),
            packet_life_time: exactly(parameters.life_time),
            flow: parameters.flow,
            scope_join: ScopeJoin::new().with_scope(parameters.scope & 0xf).with_join_state(join_state & 0xf),
            proxy: ProxyJoin::new(),
            _reserved: [0; 2],
        }
    }

    fn has_full_member(&self) -> bool {
        let full = join_state::FULL_MEMBER | join_state::SEND_ONLY_FULL_MEMBER;
        self.members.values().any(|state| state & full != 0)
    }
}

/// A group came or went, for those who subscribed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupEvent {
    pub(super) created: bool,
    pub(super) mgid: [u8; 16],
    pub(super) pkey: u16,
}

/// No room for another group or member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All groups of the subnet.
#[derive(Debug, Default)]
pub(super) struct Groups {
    by_mgid: BTreeMap<[u8; 16], Group>,
    mlids: BTreeSet<u16>,
    /// Multicast LIDs whose members changed since they were last asked for.
    changed: BTreeSet<u16>,
    events: Vec<GroupEvent>,
}

impl Groups {
    /// The group with an MGID.
    pub(super) fn get(&self, mgid: &[u8; 16]) -> Option<&Group> {
        self.by_mgid.get(mgid)
    }

    /// All groups.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.by_mgid.values()
    }

    /// Creates the IPv4 broadcast group of a partition, which IPoIB needs before anyone can join it.
    pub(super) fn configure_ipoib(&mut self, pkey: u16, life_time: u8, capacity: u16) {
        let parameters = Parameters {
            qkey: IPOIB_QKEY,
            pkey,
            mtu: Mtu::B2048,
            rate: Rate::G10,
            life_time,
            tclass: 0,
            flow: GroupFlow::new(),
            scope: 2,
        };
        if self.create(broadcast_mgid(pkey, 2), parameters, capacity).is_ok()
            && let Some(group) = self.by_mgid.get_mut(&broadcast_mgid(pkey, 2))
        {
            group.configured = true;
        }
        self.events.clear();
    }

    /// Creates a group without members. `capacity` is the number of multicast LIDs that the switch routes.
    pub(super) fn create(
        &mut self,
        mgid: [u8; 16],
        parameters: Parameters,
        capacity: u16,
    ) -> Result<(), Full> {
        if self.by_mgid.len() >= MAX_GROUPS {
            return Err(Full);
        }
        let end = LID_MULTICAST_FIRST.saturating_add(capacity).min(LID_MULTICAST_LAST);
        let mlid = (LID_MULTICAST_FIRST..end).find(|mlid| !self.mlids.contains(mlid)).ok_or(Full)?;
        self.mlids.insert(mlid);
        let group = Group { mgid, mlid, parameters, configured: false, members: BTreeMap::new() };
        self.by_mgid.insert(mgid, group);
        self.events.push(GroupEvent { created: true, mgid, pkey: parameters.pkey });
        Ok(())
    }

    /// Whether a port, by its GUIDs, may be in one more group.
    pub(super) fn has_room_for(&self, guids: &[u64]) -> bool {
        let is_in = |group: &&Group| guids.iter().any(|guid| group.members.contains_key(guid));
        self.by_mgid.values().filter(is_in).count() < MAX_GROUPS_PER_PORT
    }

    /// Adds bits to a member's join state; returns all that it has now.
    pub(super) fn join(&mut self, mgid: &[u8; 16], guid: u64, state: u8) -> u8 {
        let Some(group) = self.by_mgid.get_mut(mgid) else { return 0 };
        let joined = group.members.entry(guid).or_insert(0);
        *joined |= state;
        self.changed.insert(group.mlid);
        *joined
    }

    /// Takes bits from a member's join state, and the group away when nobody is left to keep it.
    pub(super) fn leave(&mut self, mgid: &[u8; 16], guid: u64, state: u8) {
        let Some(group) = self.by_mgid.get_mut(mgid) else { return };
        let Some(joined) = group.members.get_mut(&guid) else { return };
        *joined &= !state;
        if *joined == 0 {
            group.members.remove(&guid);
        }
        self.changed.insert(group.mlid);
        self.remove_if_unused(mgid);
    }

    /// Takes GUIDs out of all groups.
    pub(super) fn leave_all(&mut self, guids: &[u64]) {
        let mgids: Vec<_> = self.by_mgid.keys().copied().collect();
        for mgid in mgids {
            for guid in guids {
                self.leave(&mgid, *guid, 0xf);
            }
        }
    }

    /// Whether a GUID is in any group.
    pub(super) fn is_member(&self, guid: u64) -> bool {
        self.by_mgid.values().any(|group| group.members.contains_key(&guid))
    }

    /// The multicast LIDs whose members changed.
    pub(super) fn take_changed(&mut self) -> BTreeSet<u16> {
        std::mem::take(&mut self.changed)
    }

    /// The groups that came and went.
    pub(super) fn take_events(&mut self) -> Vec<GroupEvent> {
        std::mem::take(&mut self.events)
    }

    /// The switch's ports that receive what is sent to a multicast LID.
    pub(super) fn ports_of(&self, mlid: u16, subnet: &Subnet) -> Vec<u8> {
        let receives = join_state::FULL_MEMBER | join_state::NON_MEMBER;
        let members =
            self.by_mgid.values().filter(|group| group.mlid == mlid).flat_map(|group| &group.members);
        members
            .filter(|(_, state)| **state & receives != 0)
            .filter_map(|(guid, _)| subnet.by_guid(*guid))
            .map(|(port, _)| port)
            .collect()
    }

    fn remove_if_unused(&mut self, mgid: &[u8; 16]) {
        let Some(group) = self.by_mgid.get(mgid) else { return };
        if group.configured || group.has_full_member() {
            return;
        }
        let pkey = group.parameters.pkey;
        self.changed.insert(group.mlid);
        self.mlids.remove(&group.mlid);
        self.by_mgid.remove(mgid);
        self.events.push(GroupEvent { created: false, mgid: *mgid, pkey });
    }
}

/// Whether the port can send and receive in a group: partition, MTU and rate.
pub(super) fn can_take_part(end: &End, parameters: &Parameters) -> bool {
    use super::measures::{mtu_of, rate_of};
    end.shares_pkey(parameters.pkey)
        && mtu_of(&end.port_info) >= parameters.mtu
        && rate_of(&end.port_info).mbps() >= parameters.rate.mbps()
}

/// The MGID of IPoIB's IPv4 broadcast group (RFC 4391, section 4).
pub(super) fn broadcast_mgid(pkey: u16, scope: u8) -> [u8; 16] {
    let mut mgid = [0; 16];
    mgid[..4].copy_from_slice(&[0xff, 0x10 | scope & 0xf, 0x40, 0x1b]);
    mgid[4..6].copy_from_slice(&(pkey | 0x8000).to_be_bytes());
    mgid[12..].fill(0xff);
    mgid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_group_has_the_address_that_linux_joins() {
        let mgid = broadcast_mgid(0x7fff, 2);
        assert_eq!(mgid, [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn group_lives_as_long_as_a_full_member() {
        let mut groups = Groups::default();
        groups.configure_ipoib(0xffff, 18, 64);
        let parameters = groups.iter().next().unwrap().parameters;
        let mgid = [0xff; 16];
        groups.create(mgid, parameters, 64).unwrap();
        assert_eq!(groups.get(&mgid).unwrap().mlid, 0xc001);
        assert_eq!(groups.join(&mgid, 1, join_state::FULL_MEMBER), 1);
        assert_eq!(groups.join(&mgid, 1, join_state::SEND_ONLY_FULL_MEMBER), 9);
        groups.join(&mgid, 2, join_state::NON_MEMBER);
        groups.leave(&mgid, 1, join_state::FULL_MEMBER);
        assert_eq!(groups.get(&mgid).unwrap().join_state(1), 8);
        groups.leave(&mgid, 1, join_state::SEND_ONLY_FULL_MEMBER);
        assert!(groups.get(&mgid).is_none());
        let event = |created| GroupEvent { created, mgid, pkey: 0xffff };
        assert_eq!(groups.take_events(), [event(true), event(false)]);
        assert_eq!(groups.take_changed(), BTreeSet::from([0xc001]));
    }

    #[test]
    fn configured_group_outlives_its_members() {
        let mut groups = Groups::default();
        groups.configure_ipoib(0xffff, 18, 64);
        let mgid = broadcast_mgid(0xffff, 2);
        groups.join(&mgid, 1, join_state::FULL_MEMBER);
        groups.leave_all(&[1]);
        assert!(groups.get(&mgid).is_some() && !groups.is_member(1));
    }

    #[test]
    fn multicast_lids_run_out() {
        let mut groups = Groups::default();
        groups.configure_ipoib(0xffff, 18, 2);
        let parameters = groups.iter().next().unwrap().parameters;
        assert_eq!(groups.create([1; 16], parameters, 2), Ok(()));
        assert_eq!(groups.create([2; 16], parameters, 2), Err(Full));
    }
}
