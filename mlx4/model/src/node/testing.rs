//! Nodes and datagrams for the tests of this module.

use mlx4_wire::mad::header::{MadHeader, Method, MgmtClass, Status};
use mlx4_wire::mad::portinfo::{Mtu, PhysState, PortInfo, PortState as LogicalState, VlCap};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U32, U64};
use zerocopy::FromZeros;

use super::{MadInput, MadReply, NodeConfig, NodeState};

/// GUID of the channel adapter's node.
pub(super) const CA_GUID: u64 = 0x0002_c903_0000_1000;
/// GUID of the switch.
pub(super) const SWITCH_GUID: u64 = 0x0002_c902_0000_2000;

/// A ConnectX-3 with two ports, links down.
pub(super) fn ca() -> NodeState {
    NodeState::new(&NodeConfig::connectx3(CA_GUID, 2, "test ca")).expect("node")
}

/// A switch with 36 ports, links down.
pub(super) fn switch() -> NodeState {
    NodeState::new(&NodeConfig::switch(SWITCH_GUID, 36, "test switch")).expect("node")
}

/// A ConnectX-3 whose port 1 is active, with LID 7 and SM LID 1.
pub(super) fn active_ca() -> NodeState {
    let node = ca();
    node.link_up(1);
    for state in [LogicalState::NO_CHANGE, LogicalState::ARMED, LogicalState::ACTIVE] {
        set_ok(&node, 1, &port_info(state));
    }
    node
}

/// An SMP by LID, with the right versions and transaction id 0x55.
pub(super) fn smp(method: Method, attribute: SmpAttribute, modifier: u32) -> Smp {
    let mut smp = Smp::new_zeroed();
    smp.header = MadHeader {
        base_version: 1,
        mgmt_class: MgmtClass::SUBN_LID_ROUTED,
        class_version: 1,
        method,
        transaction_id: U64::new(0x55),
        attribute_id: U16::new(attribute.0),
        attribute_modifier: U32::new(modifier),
        ..MadHeader::new_zeroed()
    };
    smp
}

/// A PortInfo as a subnet manager sets it: LID 7, SM LID 1, nothing that an idle port refuses.
pub(super) fn port_info(state: LogicalState) -> PortInfo {
    let mut info = PortInfo::new_zeroed();
    info.gid_prefix = U64::new(0xfe80_0000_0000_0000);
    info.lid = U16::new(7);
    info.master_sm_lid = U16::new(1);
    info.link.set_port_state(state);
    info.link.set_link_down_default_state(PhysState::POLLING);
    info.lanes.set_neighbor_mtu(Mtu::B4096);
    info.limits.set_operational_vls(VlCap::VL0_7);
    info
}

/// Hands an SMP to a node as if it came from LID 3.
pub(super) fn send(node: &NodeState, port: u8, smp: &Smp) -> MadReply {
    node.process_mad(port, &smp.to_mad(), &MadInput { ignore_mkey: false, slid: 3 })
}

/// The response to an SMP.
pub(super) fn ask(node: &NodeState, port: u8, smp: &Smp) -> Smp {
    Smp::from_mad(&send(node, port, smp).reply.expect("reply"))
}

/// Sets PortInfo of a port through itself.
pub(super) fn set(node: &NodeState, port: u8, info: &PortInfo) -> (Smp, super::PortChanges) {
    let mut request = smp(Method::SET, SmpAttribute::PORT_INFO, port.into());
    request.set_attribute(info);
    let answer = send(node, port, &request);
    (Smp::from_mad(&answer.reply.expect("reply")), answer.changes)
}

/// Sets PortInfo, which has to be accepted.
pub(super) fn set_ok(node: &NodeState, port: u8, info: &PortInfo) -> super::PortChanges {
    let (reply, changes) = set(node, port, info);
    assert_eq!(reply.status(), Status::GOOD);
    changes
}
