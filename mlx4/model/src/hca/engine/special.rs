//! Sending from QP0 and QP1: software has built the packet headers, and puts them before the payload as
//! inline segments or memory. The HCA completes the source LID and the ICRC, for which the last four bytes
//! are a placeholder.

use mlx4_wire::cqe::Syndrome;
use mlx4_wire::packet::{
    Bth, Deth, GrhHeader, ICRC_BYTES, IMMEDIATE_BYTES, LinkNextHeader, Lrh, PacketOpcode,
};
use mlx4_wire::wqe::MlxCtrlSeg;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::datagram::{Payload, own_lid, transmit};
use super::send::SendWork;
use super::side::Side;
use crate::fabric::packet::{Grh, Headers, Packet};

/// All headers that a datagram can have: LRH, GRH, BTH, DETH, immediate data.
const MAX_HEADER: usize = 8 + 40 + 12 + 8 + 4;
/// Largest payload: what fits the largest MTU.
const MAX_PAYLOAD: u64 = 4096;

/// Sends the packet in a special queue pair's WQE.
pub(super) fn send(side: &Side<'_>, work: &mut SendWork, ctrl: &MlxCtrlSeg) -> Result<(), Syndrome> {
    let port = side.port().ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
    let len = work.wqe.len();
    let (list, inline) = work.wqe.parts();
    let mut start = [0; MAX_HEADER];
    let known = len.min(MAX_HEADER as u64);
    let head = Payload::gather(side, list, inline, 0, known)?;
    let copied = Packet { headers: Headers::default(), payload: head.pieces() }.copy_payload(&mut start);
    let (mut headers, header_len) = parse(&start[..copied]).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
    let around = (header_len + ICRC_BYTES) as u64;
    let payload = len.checked_sub(around).ok_or(Syndrome::LOCAL_QP_OP_ERR)?;
    if payload > MAX_PAYLOAD {
        return Err(Syndrome::LOCAL_LENGTH_ERR);
    }
    headers.vl15 = ctrl.flags.vl15();
    if !ctrl.flags.header_slid() {
        let (lid, lmc) = port.lid_and_lmc();
        headers.slid = own_lid(lid, lmc, headers.slid);
    }
    let payload = Payload::gather(side, list, inline, header_len as u64, payload)?;
    let packet = Packet { headers, payload: payload.pieces() };
    transmit(side, side.attrs.port, &packet, ctrl.flags.force_loopback());
    Ok(())
}

/// Reads the headers of a packet, and their length. `None` for what isn't a datagram.
fn parse(bytes: &[u8]) -> Option<(Headers, usize)> {
    let mut rest = bytes;
    let lrh: Lrh = cut(&mut rest)?;
    let grh = match lrh.start.next_header() {
        LinkNextHeader::BTH => None,
        LinkNextHeader::GRH => Some(cut::<GrhHeader>(&mut rest)?),
        _ => return None,
    };
    let bth: Bth = cut(&mut rest)?;
    let deth: Deth = cut(&mut rest)?;
    let immediate = match bth.opcode() {
        PacketOpcode::UD_SEND_ONLY => None,
        PacketOpcode::UD_SEND_ONLY_IMM => Some(cut::<[u8; IMMEDIATE_BYTES]>(&mut rest)?),
        _ => return None,
    };
    let headers = Headers {
        vl15: false,
        sl: lrh.start.sl(),
        dlid: lrh.dlid.get(),
        slid: lrh.slid.get(),
        grh: grh.map(|grh| Grh {
            traffic_class: grh.start.traffic_class(),
            flow_label: grh.start.flow_label(),
            hop_limit: grh.hop_limit,
            sgid: grh.sgid,
            dgid: grh.dgid,
        }),
        solicited: bth.flags.solicited(),
        pkey: bth.pkey.get(),
        dest_qp: bth.dest_qp.number(),
        psn: bth.psn.psn(),
        qkey: deth.qkey.get(),
        src_qp: deth.src_qp.number(),
        immediate,
    };
    Some((headers, bytes.len() - rest.len()))
}

fn cut<T: FromBytes + KnownLayout + Immutable>(rest: &mut &[u8]) -> Option<T> {
    let (value, after) = T::read_from_prefix(rest).ok()?;
    *rest = after;
    Some(value)
}

#[cfg(test)]
mod tests {
    use mlx4_wire::packet::LrhStart;
    use mlx4_wire::{Number24, U16, U32};
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    fn packet(next: LinkNextHeader, opcode: PacketOpcode) -> Vec<u8> {
        let mut lrh = Lrh::new_zeroed();
        lrh.start = LrhStart::new().with_sl(3).with_next_header(next);
        lrh.dlid = U16::new(7);
        let mut bth = Bth::new_zeroed();
        bth.set_opcode(opcode);
        bth.dest_qp = Number24::wrapping(1);
        let mut deth = Deth::new_zeroed();
        deth.qkey = U32::new(0x8001_0000);
        let grh = if next == LinkNextHeader::GRH { vec![0xff; 40] } else { vec![] };
        [lrh.as_bytes(), &grh, bth.as_bytes(), deth.as_bytes(), &[1, 2, 3, 4]].concat()
    }

    #[test]
    fn headers_with_and_without_grh_and_immediate_are_read() {
        let (headers, len) = parse(&packet(LinkNextHeader::BTH, PacketOpcode::UD_SEND_ONLY)).unwrap();
        assert_eq!((headers.sl, headers.dlid, headers.dest_qp, headers.qkey), (3, 7, 1, 0x8001_0000));
        assert_eq!((len, headers.grh.is_some(), headers.immediate), (28, false, None));
        let (headers, len) = parse(&packet(LinkNextHeader::GRH, PacketOpcode::UD_SEND_ONLY_IMM)).unwrap();
        assert_eq!(headers.grh.unwrap().dgid, [0xff; 16]);
        assert_eq!((len, headers.immediate), (72, Some([1, 2, 3, 4])));
    }

    #[test]
    fn what_is_no_datagram_is_refused() {
        let whole = packet(LinkNextHeader::BTH, PacketOpcode::UD_SEND_ONLY);
        assert!(parse(&whole[..27]).is_none());
        assert!(parse(&packet(LinkNextHeader::RAW, PacketOpcode::UD_SEND_ONLY)).is_none());
        assert!(parse(&packet(LinkNextHeader::BTH, PacketOpcode(4))).is_none());
    }
}
