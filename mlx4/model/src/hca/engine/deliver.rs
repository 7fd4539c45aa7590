//! The receiving side of datagrams: which queue pair a packet is for, whether it may have it, and the
//! receive WQE that it goes to.
//!
//! What may not or can't be received is dropped, and the sender never knows (IBTA vol. 1, 9.8.3). That holds
//! for a payload larger than the next receive WQE has room for, too: the WQE stays.

use mlx4_wire::cqe::{CqeOwner, CqeSl, CqeSource, ReceiveOpcode, Syndrome};
use mlx4_wire::ctx::mcg::McgMember;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::mad::notice::Trap;
use mlx4_wire::packet::{GRH_IP_VERSION, GRH_NEXT_HEADER, GrhHeader, GrhStart};
use mlx4_wire::{Number24, U16, U32};
use vm_memory::VolatileSlice;
use zerocopy::{FromZeros, IntoBytes};

use super::receive::ReceiveWork;
use super::sg::{CopyFault, Slices, Walk, copy, empty};
use super::side::Side;
use super::{traffic, violations};
use crate::fabric::packet::{Grh, Headers, Packet};
use crate::hca::Hca;
use crate::hca::burst::Burst;
use crate::hca::mcg;
use crate::hca::qp::{Half, Qp};
use crate::hca::running::Running;
use crate::hca::tpt::{KeyFault, Rights};
use crate::node::counters::Counter;
use crate::node::port::{PortState, p_keys_match};

/// Destination queue pair of multicast packets.
const MULTICAST_QP: u32 = Number24::MAX;
/// Room that each receive WQE of a datagram service has for a GRH, before the payload.
const GRH_BYTES: u64 = size_of::<GrhHeader>() as u64;

/// A packet arrives at a port from the fabric.
pub(crate) fn receive_datagram(hca: &Hca, port: u8, packet: &Packet<'_>) {
    if let Some(state) = hca.node.port(port) {
        traffic::received_datagram(state, packet);
    }
    deliver(hca, port, packet, None);
}

/// Hands a packet to the queue pairs that it is for. `own` is the queue pair that has sent it, if it belongs
/// to the same HCA. Says for how many it was.
pub(super) fn deliver(hca: &Hca, port: u8, packet: &Packet<'_>, own: Option<u32>) -> u64 {
    let Some((burst, running)) = hca.enter() else { return 0 };
    let target = |number: u32| Target { hca, burst: &burst, running: &running, port, number };
    if packet.headers.dest_qp != MULTICAST_QP || packet.headers.vl15 {
        target(packet.headers.dest_qp).receive(packet);
        return 1;
    }
    let Some(grh) = packet.headers.grh.filter(|grh| grh.dgid[0] == 0xff) else {
        hca.counters.dropped_datagrams.add(1);
        return 0;
    };
    let mut targets = 0;
    let member = |member: McgMember| {
        let is_own = member.block_loopback() && own == Some(member.qpn());
        // Numbers 0 and 1 would be the special queue pairs, which join no groups.
        if !is_own && member.qpn() > 1 {
            targets += 1;
            target(member.qpn()).receive(packet);
        }
    };
    if let Err(fault) = mcg::for_each_member(&burst, &grh.dgid, member) {
        log::debug!("multicast group {:02x?} can't be read: {fault}", grh.dgid);
    }
    targets
}

/// A queue pair number that a packet has arrived for.
#[derive(Clone, Copy)]
struct Target<'a> {
    hca: &'a Hca,
    burst: &'a Burst,
    running: &'a Running,
    port: u8,
    number: u32,
}

impl Target<'_> {
    fn receive(self, packet: &Packet<'_>) {
        let received =
            self.running.packet_qp(self.port, self.number).is_some_and(|qp| self.give(&qp, packet));
        let counters = &self.hca.counters;
        if received { &counters.datagrams } else { &counters.dropped_datagrams }.add(1);
    }

    fn violated(self, trap: Trap, key: u32, headers: &Headers) {
        violations::datagram(self.hca, self.port, trap, key, headers, self.number);
    }

    fn give(self, qp: &Qp, packet: &Packet<'_>) -> bool {
        let mut half = qp.receive();
        let Half { attrs, work } = &mut *half;
        let side = Side { hca: self.hca, burst: self.burst, running: self.running, qp, attrs };
        let Some(port) = self.hca.node.port(self.port) else { return false };
        if !listens(&side, self.port, &packet.headers) {
            return false;
        }
        let Some(pkey_index) = check_pkey(&side, port, packet.headers.pkey) else {
            self.violated(Trap::BAD_P_KEY, packet.headers.pkey.into(), &packet.headers);
            return false;
        };
        if attrs.special != Some(0) && packet.headers.qkey != attrs.qkey {
            self.violated(Trap::BAD_Q_KEY, packet.headers.qkey, &packet.headers);
            return false;
        }
        if work.take(&side, GRH_BYTES + packet.payload_len() as u64).is_err() {
            count_drop(&side, port);
            return false;
        }
        let path_bits = packet.headers.dlid & ((1 << port.lmc().min(7)) - 1);
        receive(&side, work, packet, Arrival { pkey_index, path_bits })
    }
}

/// Whether the queue pair takes datagrams of this kind now.
fn listens(side: &Side<'_>, port: u8, headers: &Headers) -> bool {
    use QpState as S;
    let state = side.qp.state();
    let receiving = [S::RTR, S::RTS, S::SQD, S::SQ_DRAINING, S::SQER].contains(&state);
    let datagrams = [ServiceType::UD, ServiceType::MLX].contains(&side.attrs.service);
    let smp = side.attrs.special == Some(0);
    receiving && datagrams && side.attrs.port == port && headers.vl15 == smp
}

/// The index of the P_Key that lets a packet in: QP1 takes any of the port's, QP0 doesn't look.
fn check_pkey(side: &Side<'_>, port: &PortState, pkey: u16) -> Option<usize> {
    let path = &side.attrs.path;
    match side.attrs.special {
        Some(0) => Some(0),
        Some(_) => port.find_pkey(pkey),
        None => {
            let index = usize::from(path.pkey_index & 0x7f);
            let good = path.pkey_check.disable() || p_keys_match(port.pkey(index)?, pkey);
            good.then_some(index)
        }
    }
}

/// There is no receive WQE for a packet that was let in.
fn count_drop(side: &Side<'_>, port: &PortState) {
    match side.attrs.special {
        Some(0) => port.counters.add(Counter::Vl15Dropped, 1),
        Some(_) => port.counters.add(Counter::Qp1Dropped, 1),
        None => {}
    }
}

struct Arrival {
    pkey_index: usize,
    path_bits: u16,
}

/// Scatters a packet to the WQE in hand and completes it. Says whether that went well.
fn receive(side: &Side<'_>, work: &mut ReceiveWork, packet: &Packet<'_>, arrival: Arrival) -> bool {
    match scatter(side, work, packet) {
        Ok(bytes) => {
            complete(side, work, &packet.headers, bytes, &arrival);
            true
        }
        Err(fault) => {
            side.refused_lkey(&fault);
            work.fail_in_hand(side, Syndrome::LOCAL_PROT_ERR);
            side.fail(QpState::ERR);
            false
        }
    }
}

fn scatter(side: &Side<'_>, work: &ReceiveWork, packet: &Packet<'_>) -> Result<u64, KeyFault> {
    let user = (work.user(side), Rights::LocalWrite);
    let payload = packet.payload_len() as u64;
    let walk = |from, len| Walk::start(side.burst, &work.list, empty(), user, from, len);
    // All keys are checked before the first byte is written.
    let mut body = walk(GRH_BYTES, payload)?;
    let mut head = walk(0, GRH_BYTES)?;
    if let Some(grh) = &packet.headers.grh {
        let mut header = grh_header(grh, packet);
        let slice = [VolatileSlice::from(header.as_mut_bytes())];
        copy(&mut Slices { slices: &slice }, &mut head, GRH_BYTES).map_err(CopyFault::key)?;
    }
    copy(&mut Slices { slices: packet.payload }, &mut body, payload).map_err(CopyFault::key)?;
    Ok(GRH_BYTES + payload)
}

/// The GRH as it lies in a receive buffer.
fn grh_header(grh: &Grh, packet: &Packet<'_>) -> GrhHeader {
    let mut header = GrhHeader::new_zeroed();
    header.start = GrhStart::new()
        .with_ip_version(GRH_IP_VERSION)
        .with_traffic_class(grh.traffic_class)
        .with_flow_label(grh.flow_label & 0xf_ffff);
    let bytes = 4 * packet.words() - 8 - GRH_BYTES;
    header.payload_bytes = U16::new(u16::try_from(bytes).unwrap_or(u16::MAX));
    header.next_header = GRH_NEXT_HEADER;
    header.hop_limit = grh.hop_limit;
    header.sgid = grh.sgid;
    header.dgid = grh.dgid;
    header
}

fn complete(side: &Side<'_>, work: &mut ReceiveWork, headers: &Headers, bytes: u64, arrival: &Arrival) {
    let Some(index) = work.in_hand.take() else { return };
    let opcode = if headers.immediate.is_some() { ReceiveOpcode::SEND_IMM } else { ReceiveOpcode::SEND };
    let mut cqe = side.cqe(index, CqeOwner::receive(opcode));
    cqe.immediate = match headers.immediate {
        Some(immediate) => U32::from_bytes(immediate),
        None if side.attrs.special == Some(1) => U32::new(u32::try_from(arrival.pkey_index).unwrap_or(0)),
        None => U32::ZERO,
    };
    cqe.source = CqeSource::new()
        .with_grh(headers.grh.is_some())
        .with_path_bits(u8::try_from(arrival.path_bits & 0x7f).unwrap_or(0))
        .with_remote_qpn(headers.src_qp & Number24::MAX);
    cqe.sl = CqeSl::new().with_sl(headers.sl & 0xf);
    cqe.slid = U16::new(headers.slid);
    cqe.byte_count = U32::new(u32::try_from(bytes).unwrap_or(u32::MAX));
    work.msn = work.msn.wrapping_add(1) & Number24::MAX;
    work.done(side, cqe, headers.solicited);
}
