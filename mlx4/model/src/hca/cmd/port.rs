//! Ports: QUERY_PORT, INIT_PORT, CLOSE_PORT, SET_PORT, and the firmware's agents behind MAD_IFC.

use mlx4_wire::U32;
use mlx4_wire::cmd::Status;
use mlx4_wire::cmd::diag::{DIAG_TRANSPORT_CI_ERRORS, DiagCounters};
use mlx4_wire::cmd::mad_ifc::{MadIfc, MadIfcModifier, MadIfcOp};
use mlx4_wire::cmd::misc::SetNode;
use mlx4_wire::cmd::port::{QueryPort, SetPortIb, SetPortOp};
use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::mad::header::{MadHeader, Method};
use mlx4_wire::mad::notice::LocalChanges;
use mlx4_wire::mad::portinfo::{Mtu, PhysState, VlCap};
use zerocopy::{FromBytes, FromZeros};

use super::{Command, Outcome, read_mailbox, write_mailbox};
use crate::fabric::Plug;
use crate::hca::running::Running;
use crate::hca::{Hca, caps};
use crate::node::MadInput;
use crate::node::port::PortState;

/// Base version of management datagrams.
const MAD_BASE_VERSION: u8 = 1;

fn port(hca: &Hca, number: u32) -> Result<(u8, &PortState), Status> {
    let number = u8::try_from(number).map_err(|_| Status::BAD_PARAM)?;
    hca.node.port(number).map(|port| (number, port)).ok_or(Status::BAD_PARAM)
}

fn cable(hca: &Hca, number: u32) -> Result<&Plug, Status> {
    let (number, _) = port(hca, number)?;
    hca.plug(number).ok_or(Status::BAD_PARAM)
}

pub(super) fn query_port(hca: &Hca, command: &Command) -> Outcome {
    let (_, port) = port(hca, command.modifier)?;
    let info = port.port_info();
    let mut query = QueryPort::new_zeroed();
    query.state.set_link_up(port.phys_state() == PhysState::LINK_UP);
    query.state.set_ib(true);
    query.mtu.set_ib_mtu(info.limits.mtu_cap().0);
    query.ib_link_speed = port.link_speed() | port.link_speed_ext() << 4;
    query.width.set_ib_port_width(info.link_width_supported & 0xf);
    query.tables.set_log2_max_gids(caps::LOG2_PORT_TABLE);
    query.tables.set_log2_max_pkeys(caps::LOG2_PORT_TABLE);
    // A port that can't be Ethernet has these tables too; Linux complains of smaller ones.
    query.eth_tables.set_log2_max_macs(caps::LOG2_PORT_TABLE);
    query.eth_tables.set_log2_max_vlans(caps::LOG2_PORT_TABLE);
    query.vls.set_max_vl_ib(caps::MAX_VLS);
    write_mailbox(&hca.enter_bare(), command.output, &query)
}

/// Starts the link: the port polls, and trains when the far end does.
pub(super) fn init_port(hca: &Hca, _running: &Running, command: &Command) -> Outcome {
    let plug = cable(hca, command.modifier)?;
    // A port that subnet management has disabled stays down until that enables it again.
    let (_, port) = port(hca, command.modifier)?;
    plug.set_link(port.can_train());
    Ok(0)
}

pub(super) fn close_port(hca: &Hca, _running: &Running, command: &Command) -> Outcome {
    cable(hca, command.modifier)?.set_link(false);
    Ok(0)
}

pub(super) fn set_port(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    if SetPortOp(command.opmod) != SetPortOp::IB {
        return Err(Status::BAD_OP);
    }
    let (number, port) = port(hca, command.modifier)?;
    let request: SetPortIb = read_mailbox(&hca.command_burst(running), command.input)?;
    let flags = request.flags;
    if flags.change_mtu() || flags.change_vl() {
        let info = port.port_info();
        let mtu = if flags.change_mtu() { Mtu(flags.mtu_cap()) } else { info.limits.mtu_cap() };
        let vls = if flags.change_vl() { vl_cap(flags.vl_cap())? } else { info.lanes.vl_cap() };
        if !port.set_caps(mtu, vls) {
            return Err(Status::BAD_SIZE);
        }
    }
    if flags.reset_qkey_violations() {
        port.q_key_violations.clear();
    }
    if port.set_capability_mask(request.cap_mask.get()) {
        announce(hca, number, LocalChanges::new());
    }
    Ok(0)
}

/// The code of a number of virtual lanes.
fn vl_cap(lanes: u8) -> Result<VlCap, Status> {
    match lanes {
        1 => Ok(VlCap::VL0),
        2 => Ok(VlCap::VL0_1),
        4 => Ok(VlCap::VL0_3),
        8 => Ok(VlCap::VL0_7),
        _ => Err(Status::BAD_SIZE),
    }
}

/// Tells the subnet manager of a changed capability mask (no flag) or node description.
fn announce(hca: &Hca, number: u8, changes: LocalChanges) {
    if let Some(port) = hca.node.port(number) {
        hca.send_trap(number, &hca.node.local_changes(port, changes));
    }
}

/// Hands a management datagram to the firmware's agents, as if it had come for this port.
pub(super) fn mad_ifc(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let op = MadIfcOp::from_bits(command.opmod);
    let modifier = MadIfcModifier::from_bits(U32::new(command.modifier));
    let number = modifier.port();
    port(hca, number.into())?;
    let mailbox: MadIfc = read_mailbox(&hca.command_burst(running), command.input)?;
    let (header, _) = MadHeader::read_from_prefix(&mailbox.mad).map_err(|_| Status::BAD_PKT)?;
    if header.base_version != MAD_BASE_VERSION {
        return Err(Status::BAD_PKT);
    }
    let slid = if op.ext_info() { modifier.rlid() } else { 0 };
    let input = MadInput { ignore_mkey: op.ignore_mkey(), slid };
    let answer = hca.node.process_mad(number, &mailbox.mad, &input);
    hca.port_changed(&answer.changes);
    // What gets no answer must not come back as if it were one. A TrapRepress is taken in and that is all.
    let reply = match answer.reply {
        Some(reply) => reply,
        None if header.method == Method::TRAP_REPRESS => [0; MAD_SIZE],
        None => return Err(Status::BAD_PKT),
    };
    write_mailbox(&hca.command_burst(running), command.output, &reply)
}

pub(super) fn set_node(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    let request: SetNode = read_mailbox(&hca.command_burst(running), command.input)?;
    if hca.node.set_description(&request.node_desc) {
        for number in 1..=hca.config.ports {
            announce(hca, number, LocalChanges::new().with_node_description(true));
        }
    }
    Ok(0)
}

pub(super) fn diag_rprt(hca: &Hca, running: &Running, command: &Command) -> Outcome {
    if command.opmod != DIAG_TRANSPORT_CI_ERRORS {
        return Err(Status::BAD_OP);
    }
    let c = &hca.counters;
    let low = |counter: &crate::hca::counters::Counter| {
        U32::new(u32::try_from(counter.get() & u64::from(u32::MAX)).unwrap_or(0))
    };
    let mut report = DiagCounters::new_zeroed();
    report.sq_num_lpe = low(&c.rejected_lkeys);
    report.rq_num_rae = low(&c.rejected_rkeys);
    report.sq_num_rnr = low(&c.rnr_naks_received);
    report.rq_num_rnr = low(&c.rnr_naks);
    report.rq_num_udsdprd = low(&c.dropped_datagrams);
    report.num_cqovf = low(&c.cq_overruns);
    report.num_baddb = low(&c.bad_doorbells);
    write_mailbox(&hca.command_burst(running), command.output, &report)
}
