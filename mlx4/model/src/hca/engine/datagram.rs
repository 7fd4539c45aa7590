//! Sending datagrams: UD work requests, and the way of a packet out of the HCA.

use mlx4_wire::Number24;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::path::FORCE_SGID;
use mlx4_wire::mad::LID_PERMISSIVE;
use mlx4_wire::wqe::{DatagramSeg, WQE_MAX_BYTES};
use vm_memory::VolatileSlice;

use super::deliver::deliver;
use super::lso::{self, Place, Segments};
use super::send::{Budget, Current, SendWork};
use super::sg::{Pieces, SgList, Walk, empty};
use super::side::Side;
use super::traffic;
use super::wqe::{Header, Request};
use super::{Next, special};
use crate::fabric::packet::{Grh, Headers, Packet};
use crate::hca::tpt::Rights;
use crate::node::counters::Counter;
use crate::node::port::PortState;

/// A Q_Key with this bit set in a work request stands for the queue pair's own.
const PRIVILEGED_QKEY: u32 = 1 << 31;

/// Executes the send queue of a UD queue pair, or of QP0 or QP1.
pub(super) fn run(side: &Side<'_>, work: &mut SendWork, mut budget: Budget) -> Next {
    loop {
        if let Err(next) = work.advance(side, &mut budget) {
            return next;
        }
        let Some(current) = work.current else { return Next::Idle };
        let sent = match &current.header.request {
            Request::Nop => Ok(()),
            Request::Datagram(segment) => send(side, work, &current.header, segment, &mut budget),
            Request::Segmented(datagram, segments) => {
                match send_segments(side, work, &current, (datagram, segments), &mut budget) {
                    Ok(true) => Ok(()),
                    Ok(false) => continue,
                    Err(syndrome) => Err(syndrome),
                }
            }
            Request::Special(ctrl) => special::send(side, work, ctrl),
            _ => Err(Syndrome::LOCAL_QP_OP_ERR),
        };
        match sent {
            Ok(()) => work.finish(side, 0),
            Err(syndrome) => {
                work.fail(side, syndrome);
                return Next::Idle;
            }
        }
    }
}

fn send(
    side: &Side<'_>,
    work: &mut SendWork,
    header: &Header,
    segment: &DatagramSeg,
    budget: &mut Budget,
) -> Result<(), Syndrome> {
    let number = check_av(side, segment)?;
    let port = side.hca.node.port(number).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
    let mtu = port.mtu().bytes().unwrap_or(0).min(side.attrs.mtu);
    let len = work.wqe.len();
    if len > u64::from(mtu) {
        return Err(Syndrome::LOCAL_LENGTH_ERR);
    }
    let headers = headers(side, port, header, segment, work.psn)?;
    work.psn = (work.psn + 1) & Number24::MAX;
    let (list, inline) = work.wqe.parts();
    let payload = Payload::gather(side, list, inline, 0, len)?;
    let packet = Packet { headers, payload: payload.pieces() };
    let loopback = header.force_loopback || segment.av.port.force_loopback();
    budget.spend(cost(len, transmit(side, number, &packet, loopback)));
    Ok(())
}

/// What a packet costs of the budget at least, in bytes of payload.
const LEAST_COST: u64 = 2048;

/// What a packet costs of the budget that this HCA has handed to so many queue pairs.
fn cost(len: u64, targets: u64) -> u64 {
    len.max(LEAST_COST) * targets.max(1)
}

/// Sends packets of a large send, as many as the budget allows. Says whether that was the last.
fn send_segments(
    side: &Side<'_>,
    work: &mut SendWork,
    current: &Current,
    (segment, lso): (&DatagramSeg, &Segments),
    budget: &mut Budget,
) -> Result<bool, Syndrome> {
    let number = check_av(side, segment)?;
    let port = side.hca.node.port(number).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
    let mtu = port.mtu().bytes().unwrap_or(0).min(side.attrs.mtu);
    let total = work.wqe.len();
    if lso.header_bytes as u64 + lso.size.min(total) > u64::from(mtu) || total > side.attrs.max_message {
        return Err(Syndrome::LOCAL_LENGTH_ERR);
    }
    let loopback = current.header.force_loopback || segment.av.port.force_loopback();
    let mut done = current.done;
    loop {
        let len = (total - done).min(lso.size);
        let last = done + len == total;
        let headers = headers(side, port, &current.header, segment, work.psn)?;
        work.psn = (work.psn + 1) & Number24::MAX;
        let mut bytes = [0; WQE_MAX_BYTES as usize];
        let header = work.wqe.copy_header(lso, &mut bytes).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
        let (list, inline) = work.wqe.parts();
        let mut payload = Payload::gather(side, list, inline, done, len)?;
        lso::adapt(header, lso, Place { from: done, last }, payload.pieces());
        payload.lead(VolatileSlice::from(header))?;
        let targets = transmit(side, number, &Packet { headers, payload: payload.pieces() }, loopback);
        done += len;
        budget.spend(cost(len, targets));
        if last {
            return Ok(true);
        }
        if budget.bytes == 0 {
            break;
        }
    }
    if let Some(current) = &mut work.current {
        current.done = done;
    }
    Ok(false)
}

/// Checks the address vector's protection domain and port. Returns the port to send from.
fn check_av(side: &Side<'_>, segment: &DatagramSeg) -> Result<u8, Syndrome> {
    let av = segment.av.port;
    let checked = side.running.init.params.flags.ud_av_port_check();
    if av.pd() != side.attrs.pd || (checked && av.port() != side.attrs.port) {
        log::debug!("QP {:#x}: address vector {av:?} isn't for it", side.attrs.qpn);
        return Err(Syndrome::LOCAL_QP_OP_ERR);
    }
    Ok(av.port())
}

fn headers(
    side: &Side<'_>,
    port: &PortState,
    header: &Header,
    segment: &DatagramSeg,
    psn: u32,
) -> Result<Headers, Syndrome> {
    let av = &segment.av;
    let path_bits = u16::from(av.source.path_bits());
    let (lid, lmc) = port.lid_and_lmc();
    let pkey = port.pkey(usize::from(side.attrs.path.pkey_index & 0x7f)).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
    let qkey = segment.qkey.get();
    let grh = av.source.grh().then(|| Grh {
        traffic_class: av.traffic_class.traffic_class(),
        flow_label: av.traffic_class.flow_label(),
        hop_limit: av.hop_limit,
        sgid: port.gid(source_gid(side.attrs.path.sgid_index, av.sgid_index)).unwrap_or_default(),
        dgid: av.remote_gid,
    });
    Ok(Headers {
        vl15: false,
        sl: av.traffic_class.sl(),
        dlid: av.remote_lid.get(),
        slid: own_lid(lid, lmc, path_bits),
        grh,
        solicited: header.solicited,
        pkey,
        dest_qp: segment.remote_qpn.number(),
        psn,
        qkey: if qkey & PRIVILEGED_QKEY != 0 { side.attrs.qkey } else { qkey },
        src_qp: side.attrs.qpn & Number24::MAX,
        immediate: header.immediate,
    })
}

/// Index of the source GID: that of the queue pair's path, if it forces one, else that of the address vector.
fn source_gid(path: u8, vector: u8) -> usize {
    let index = if path & FORCE_SGID != 0 { path } else { vector };
    usize::from(index & !FORCE_SGID)
}

/// The LID of a port with source path bits, of which those count that the LMC leaves free.
pub(super) fn own_lid(lid: u16, lmc: u8, path_bits: u16) -> u16 {
    lid | path_bits & ((1 << lmc.min(7)) - 1)
}

/// Sends a packet from a port of the HCA: to the fabric, or inside the HCA if it is for this port itself.
/// Multicast goes both ways. Says for how many queue pairs of the HCA it was.
pub(super) fn transmit(side: &Side<'_>, number: u8, packet: &Packet<'_>, loopback: bool) -> u64 {
    let Some(port) = side.hca.node.port(number) else { return 0 };
    let headers = &packet.headers;
    if !headers.vl15 && !port.is_active() {
        port.counters.add(Counter::XmitDiscards, 1);
        return 0;
    }
    let own = Some(side.attrs.qpn & Number24::MAX);
    let to_self = headers.dlid != LID_PERMISSIVE && port.has_lid(headers.dlid);
    if loopback || to_self {
        return deliver(side.hca, number, packet, own);
    }
    traffic::sent_datagram(port, packet);
    if let Some(plug) = side.hca.plug(number) {
        plug.send(packet);
    }
    if headers.is_multicast() { deliver(side.hca, number, packet, own) } else { 0 }
}

/// Pieces of memory that one datagram may lie in: a list as long as a WQE can hold, and the page bounds in
/// the largest payload.
const MAX_PIECES: usize = 80;

/// The payload of a datagram, as pieces of host memory.
pub(super) struct Payload<'b> {
    pieces: [VolatileSlice<'b>; MAX_PIECES],
    count: usize,
}

impl<'b> Payload<'b> {
    /// Looks up `len` bytes of a list, from `from` on.
    pub(super) fn gather(
        side: &Side<'b>,
        list: &'b SgList,
        inline: VolatileSlice<'b>,
        from: u64,
        len: u64,
    ) -> Result<Self, Syndrome> {
        let refused = |fault| {
            side.refused_lkey(&fault);
            Syndrome::LOCAL_PROT_ERR
        };
        let user = (side.user(), Rights::LocalRead);
        let mut walk = Walk::start(side.burst, list, inline, user, from, len).map_err(refused)?;
        let mut payload = Self { pieces: [empty(); MAX_PIECES], count: 0 };
        let mut left = len;
        while left != 0 {
            let piece = walk.next(left).map_err(refused)?;
            let slot = payload.pieces.get_mut(payload.count).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
            if piece.is_empty() {
                return Err(Syndrome::LOCAL_LENGTH_ERR);
            }
            left -= piece.len() as u64;
            *slot = piece;
            payload.count += 1;
        }
        Ok(payload)
    }

    /// Puts a piece before all others.
    fn lead(&mut self, piece: VolatileSlice<'b>) -> Result<(), Syndrome> {
        if self.count == MAX_PIECES {
            return Err(Syndrome::LOCAL_QP_OP_ERR);
        }
        self.pieces.copy_within(..self.count, 1);
        self.pieces[0] = piece;
        self.count += 1;
        Ok(())
    }

    /// The pieces.
    pub(super) fn pieces(&self) -> &[VolatileSlice<'b>] {
        &self.pieces[..self.count]
    }
}
