//! What the manager has learnt of the subnet: its switch, and the ports that are ACTIVE.
//!
//! The administrator answers from this; nobody but the manager writes it.

use mlx4_wire::mad::LID_MULTICAST_FIRST;
use mlx4_wire::mad::attr::{NodeDescription, NodeInfo, PKeyTable, SwitchInfo};
use mlx4_wire::mad::portinfo::PortInfo;
use zerocopy::FromZeros;

/// Port 0 of the switch, or the port of a channel adapter that is ACTIVE.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Base LID.
    pub(crate) lid: u16,
    /// NodeInfo as this port answers it.
    pub(crate) node_info: NodeInfo,
    /// NodeDescription; zeros until it is known.
    pub(crate) description: NodeDescription,
    /// PortInfo as last read or set.
    pub(crate) port_info: PortInfo,
    /// P_Key table; entries whose low 15 bits are 0 are empty.
    pub(crate) pkeys: Vec<u16>,
    /// GUID table; entry 0 is the port's own GUID.
    pub(crate) guids: Vec<u64>,
}

impl End {
    /// A port of which only NodeInfo is known.
    pub(crate) fn new(node_info: NodeInfo) -> Self {
        Self {
            lid: 0,
            node_info,
            description: [0; 64],
            port_info: PortInfo::new_zeroed(),
            pkeys: Vec::new(),
            guids: vec![node_info.port_guid.get()],
        }
    }

    /// The port's own GUID.
    pub(crate) fn guid(&self) -> u64 {
        self.node_info.port_guid.get()
    }

    /// Whether the port is a member of the partition of `pkey`, and at least one of both a full one.
    pub(crate) fn shares_pkey(&self, pkey: u16) -> bool {
        self.pkeys.iter().any(|own| pkeys_match(*own, pkey))
    }
}

/// Whether ports with these P_Keys may talk: same partition, and not both limited members.
pub(crate) fn pkeys_match(a: u16, b: u16) -> bool {
    let partition = a & !PKeyTable::FULL_MEMBER;
    partition != 0 && partition == b & !PKeyTable::FULL_MEMBER && (a | b) & PKeyTable::FULL_MEMBER != 0
}

/// The subnet as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Subnet {
    /// Subnet prefix.
    pub(crate) gid_prefix: u64,
    /// The manager's priority.
    pub(crate) priority: u8,
    /// SwitchInfo; `None` until the switch is set up.
    pub(crate) switch_info: Option<SwitchInfo>,
    /// PortInfo of the switch's external ports, by port number; index 0 isn't used.
    pub(crate) switch_ports: Vec<PortInfo>,
    /// Ends by the switch's port number; 0 is the switch's own port 0, where the manager is.
    pub(crate) ends: Vec<Option<End>>,
}

impl Subnet {
    /// The end at a port of the switch.
    pub(crate) fn end(&self, port: u8) -> Option<&End> {
        self.ends.get(usize::from(port))?.as_ref()
    }

    /// All ends, with the switch's port number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, &End)> {
        self.ends.iter().zip(0..=u8::MAX).filter_map(|(end, port)| Some((port, end.as_ref()?)))
    }

    /// The end with a LID.
    pub(crate) fn by_lid(&self, lid: u16) -> Option<(u8, &End)> {
        if lid == 0 || lid >= LID_MULTICAST_FIRST {
            return None;
        }
        self.iter().find(|(_, end)| end.lid == lid)
    }

    /// The end with a GUID, its own or an alias.
    pub(crate) fn by_guid(&self, guid: u64) -> Option<(u8, &End)> {
        if guid == 0 {
            return None;
        }
        let alias = || self.iter().find(|(_, end)| end.guids.contains(&guid));
        self.iter().find(|(_, end)| end.guid() == guid).or_else(alias)
    }

    /// The end with a GID: this subnet's prefix or the default one, and a GUID.
    pub(crate) fn by_gid(&self, gid: &[u8; 16]) -> Option<(u8, &End)> {
        let (prefix, guid) = split_gid(gid);
        if !self.is_own_prefix(prefix) {
            return None;
        }
        self.by_guid(guid)
    }

    /// Whether a GID prefix stands for this subnet.
    pub(crate) fn is_own_prefix(&self, prefix: u64) -> bool {
        prefix == self.gid_prefix || prefix == mlx4_wire::mad::DEFAULT_GID_PREFIX
    }

    /// The GID of a GUID on this subnet.
    pub(crate) fn gid(&self, guid: u64) -> [u8; 16] {
        make_gid(self.gid_prefix, guid)
    }

    /// LID of the manager, and so of the administrator.
    pub(crate) fn manager_lid(&self) -> u16 {
        self.end(0).map_or(0, |end| end.lid)
    }
}

/// Prefix and GUID of a GID.
pub(crate) fn split_gid(gid: &[u8; 16]) -> (u64, u64) {
    let whole = u128::from_be_bytes(*gid);
    let [prefix, guid] =
        [whole >> 64, whole & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
    (prefix, guid)
}

/// A GID from its prefix and GUID.
pub(crate) fn make_gid(prefix: u64, guid: u64) -> [u8; 16] {
    (u128::from(prefix) << 64 | u128::from(guid)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limited_members_talk_only_to_full_ones() {
        assert!(pkeys_match(0xffff, 0x7fff) && pkeys_match(0x8001, 0x8001));
        assert!(!pkeys_match(0x7fff, 0x7fff) && !pkeys_match(0x8001, 0x8002));
        assert!(!pkeys_match(0x8000, 0x8000));
    }

    #[test]
    fn gid_splits_into_what_it_was_made_of() {
        let gid = make_gid(0xfe80_0000_0000_0000, 0x0002_c903_0000_0001);
        assert_eq!((gid[0], gid[15]), (0xfe, 1));
        assert_eq!(split_gid(&gid), (0xfe80_0000_0000_0000, 0x0002_c903_0000_0001));
    }
}
