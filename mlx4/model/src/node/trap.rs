//! Notices of a node's agents, and the SMP that brings one to the subnet manager (IBTA vol. 1, 13.4.8.2,
//! 13.4.9 and 14.2.5.1). Pure functions: the owner sends, and repeats until the trap is repressed.

use mlx4_wire::mad::LID_MULTICAST_FIRST;
use mlx4_wire::mad::attr::NodeType;
use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass};
use mlx4_wire::mad::notice::{
    BadKeyDetails, BadMKeyDetails, LinkStateDetails, LocalChanges, LocalChangesDetails, Notice, NoticeKind,
    NoticeType, OffendingRoute, Producer, Trap,
};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::NodeState;
use super::port::PortState;

/// Trap 128: the state of a link of the switch changed.
pub fn link_state_changed(switch_lid: u16) -> Notice {
    let details = LinkStateDetails { lid: U16::new(switch_lid), ..LinkStateDetails::new_zeroed() };
    notice(NoticeType::URGENT, Producer::SWITCH, Trap::LINK_STATE_CHANGED, switch_lid, details.as_bytes())
}

/// Trap 144: the port's capability mask, or something else of the node, changed.
fn local_changes(producer: Producer, lid: u16, capability_mask: u32, changes: LocalChanges) -> Notice {
    let details = LocalChangesDetails {
        lid: U16::new(lid),
        other_local_changes: u8::from(changes != LocalChanges::new()),
        capability_mask: U32::new(capability_mask),
        changes,
        ..LocalChangesDetails::new_zeroed()
    };
    notice(NoticeType::INFORMATIONAL, producer, Trap::LOCAL_CHANGES, lid, details.as_bytes())
}

/// Trap 256: an SMP came with a wrong M_Key.
fn bad_m_key(producer: Producer, lid: u16, slid: u16, smp: &Smp) -> Notice {
    let mut details = BadMKeyDetails {
        lid: U16::new(slid),
        method: smp.header.method.0,
        attribute_id: smp.header.attribute_id,
        attribute_modifier: smp.header.attribute_modifier,
        m_key: smp.m_key,
        ..BadMKeyDetails::new_zeroed()
    };
    if smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE {
        let room = details.return_path.len();
        let hops = usize::from(smp.hop_count());
        let kept = hops.min(room);
        details.dr_slid = smp.dr_slid;
        details.route = OffendingRoute::new()
            .with_dr_notice(true)
            .with_path_truncated(hops > room)
            .with_hop_count(smp.hop_count().min(30));
        details.return_path[..kept].copy_from_slice(&smp.return_path[..kept]);
    }
    notice(NoticeType::SECURITY, producer, Trap::BAD_M_KEY, lid, details.as_bytes())
}

fn notice(kind: NoticeType, producer: Producer, trap: Trap, lid: u16, details: &[u8]) -> Notice {
    let mut notice = Notice {
        kind: NoticeKind::new().with_is_generic(true).with_notice_type(kind).with_producer(producer),
        trap_number: U16::new(trap.0),
        issuer_lid: U16::new(lid),
        ..Notice::new_zeroed()
    };
    for (to, from) in notice.details.iter_mut().zip(details) {
        *to = *from;
    }
    notice
}

impl NodeState {
    fn producer(&self) -> Producer {
        if self.node_type() == NodeType::SWITCH { Producer::SWITCH } else { Producer::CHANNEL_ADAPTER }
    }

    /// Trap 144 of a port: its capability mask changed, if nothing else is named.
    pub fn local_changes(&self, port: &PortState, changes: LocalChanges) -> Notice {
        local_changes(self.producer(), port.lid(), port.capability_mask(), changes)
    }

    /// Trap 257 or 258 of a port: a packet came with a P_Key or Q_Key that its queue pair doesn't take.
    pub fn bad_key(&self, port: &PortState, trap: Trap, details: &BadKeyDetails) -> Notice {
        notice(NoticeType::SECURITY, self.producer(), trap, port.lid(), details.as_bytes())
    }

    pub(super) fn bad_m_key(&self, port: &PortState, slid: u16, smp: &Smp) -> Notice {
        bad_m_key(self.producer(), port.lid(), slid, smp)
    }
}

/// The SMP that brings a notice to the subnet manager, to be sent to the port's SM LID with its SM SL from
/// QP0 to QP0. None if the port isn't active or has no subnet manager yet. On a switch the port is port 0.
pub fn trap(port: &PortState, notice: &Notice, transaction_id: u64) -> Option<Smp> {
    if !port.is_active() || !(1..LID_MULTICAST_FIRST).contains(&port.sm_lid()) {
        return None;
    }
    let mut smp = Smp::new_zeroed();
    smp.header = MadHeader {
        base_version: MadHeader::BASE_VERSION,
        mgmt_class: MgmtClass::SUBN_LID_ROUTED,
        class_version: Smp::CLASS_VERSION,
        method: Method::TRAP,
        transaction_id: U64::new(transaction_id),
        attribute_id: U16::new(SmpAttribute::NOTICE.0),
        ..MadHeader::new_zeroed()
    };
    smp.set_attribute(notice);
    Some(smp)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{active_ca, ca};
    use super::*;

    #[test]
    fn trap_128_names_the_switch() {
        let notice = link_state_changed(0x0102);
        assert_eq!(notice.as_bytes()[..12], [0x81, 0, 0, 2, 0, 128, 1, 2, 0, 0, 1, 2]);
    }

    #[test]
    fn trap_144_shows_mask_and_changes() {
        let node = active_ca();
        let port = node.port(1).expect("port");
        let described = node.local_changes(port, LocalChanges::new().with_node_description(true));
        let bytes = described.as_bytes();
        assert_eq!(bytes[..8], [0x84, 0, 0, 1, 0, 144, 0, 7]);
        assert_eq!(bytes[0x0c..0x16], [0, 7, 0, 1, 2, 0x51, 0x48, 0x68, 0, 1]);
        assert_eq!(node.local_changes(port, LocalChanges::new()).as_bytes()[0x0f], 0);
    }

    #[test]
    fn trap_goes_out_only_from_an_active_port_that_knows_its_manager() {
        let down = ca();
        assert_eq!(trap(down.port(1).expect("port"), &link_state_changed(1), 9), None);
        let node = active_ca();
        let smp = trap(node.port(1).expect("port"), &link_state_changed(1), 9).expect("trap");
        assert_eq!(
            smp.to_mad()[..24],
            [1, 1, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(smp.attribute::<Notice>(), link_state_changed(1));
    }

    #[test]
    fn trap_256_keeps_thirty_hops_of_a_long_route() {
        let mut smp = Smp::new_zeroed();
        smp.header.mgmt_class = MgmtClass::SUBN_DIRECTED_ROUTE;
        smp.set_hop_count(255);
        smp.return_path = [5; 64];
        let bytes = bad_m_key(Producer::SWITCH, 2, 3, &smp);
        let bytes = bytes.as_bytes();
        assert_eq!(bytes[0x21], 0xc0 | 30);
        assert_eq!(bytes[0x22..], [5; 30]);
    }
}
