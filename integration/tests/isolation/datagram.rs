//! A queue pair of datagrams, made by hand, on the CQ and the memory that a guest has already.

use std::time::Instant;

use anyhow::{Context as _, Result};
use mlx4_wire::cqe::Cqe;
use mlx4_wire::packet::{Bth, Deth, LinkNextHeader, Lrh, LrhStart, PacketOpcode};
use mlx4_wire::wqe::{Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, Opcode};
use mlx4_wire::{Number24, U16 as Be16, U32 as Be32};
use virtio_rdma::doorbell::slot_at;
use virtio_rdma::request::datagram::CreateAh;
use virtio_rdma::request::queue_pair::{
    AhAttributes, CreateQp, ModifyQp, QpAttrMask as Mask, QpAttributes, QpCap, QpCreated, QpState, QpType,
};
use virtio_rdma::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::guest::{Guest, PATIENCE, at};
use super::objects::{Objects, RECORDS, SPARE, data, lid, ring};

/// Rings of datagrams: 64 sends of 128 bytes, then 32 receives of 64 bytes, in three pages.
const RINGS: u64 = SPARE + 0x2_0000;
const RING_BYTES: u64 = 0x3000;
const RECEIVES: u64 = 0x2000;
const SEND_STRIDE: u64 = 128;
const RECEIVE_STRIDE: u64 = 64;
const SENDS: u32 = 64;
/// Where receive buffers are, and how long.
const BUFFERS: u64 = super::objects::DATA;
/// Bytes of a receive buffer.
pub(crate) const BUFFER: u32 = 1024;
/// Bytes before the payload.
pub(crate) const GRH: u64 = 40;
/// The Q_Key that queue pairs have here.
pub(crate) const QKEY: u32 = 0x1234_5678;

/// A queue pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagrams {
    pub(crate) created: QpCreated,
    slot: u32,
    rings: u64,
    record: u64,
    sent: u32,
    posted: u16,
}

/// The request for such a queue pair.
pub(crate) fn create(mine: &Objects, n: u64) -> CreateQp {
    CreateQp {
        pd: U32::new(mine.pd),
        uar: U32::new(mine.uar),
        send_cq: mine.cq.cq,
        recv_cq: mine.cq.cq,
        qp_type: QpType::UD,
        log2_send_wqes: 6,
        log2_send_stride: 7,
        log2_recv_wqes: 5,
        log2_recv_stride: 6,
        cap: QpCap {
            max_send_wr: U32::new(16),
            max_recv_wr: U32::new(32),
            max_send_sge: U32::new(1),
            max_recv_sge: U32::new(1),
            ..QpCap::new_zeroed()
        },
        record: U64::new(at(RECORDS + 0x100 + 8 * n)),
        ..CreateQp::new_zeroed()
    }
}

/// The changes to INIT, RTR and RTS.
pub(crate) fn transitions(qp: U32, qkey: u32, pkey_index: u16) -> [ModifyQp; 3] {
    let zero = QpAttributes::new_zeroed();
    let init = QpAttributes {
        qp_state: QpState::INIT,
        port_num: 1,
        qkey: U32::new(qkey),
        pkey_index: U16::new(pkey_index),
        ..zero
    };
    let step = |attr_mask, attributes| ModifyQp { qp, attr_mask, attributes };
    [
        step(Mask::STATE | Mask::PKEY_INDEX | Mask::PORT | Mask::QKEY, init),
        step(Mask::STATE, QpAttributes { qp_state: QpState::RTR, ..zero }),
        step(Mask::STATE | Mask::SQ_PSN, QpAttributes { qp_state: QpState::RTS, ..zero }),
    ]
}

impl Datagrams {
    /// The `n`th of a guest, in RESET.
    pub(crate) fn new(guest: &mut Guest, mine: &Objects, n: u64) -> Result<Self> {
        let (rings, record) = (RINGS + n * RING_BYTES, RECORDS + 0x100 + 8 * n);
        for slot in 0..u64::from(SENDS) {
            guest.memory.write(rings + SEND_STRIDE * slot, &0x8000_0000u32.to_be_bytes())?;
        }
        guest.memory.zero(record, 8)?;
        let created = guest.must(&create(mine, n), &[(at(rings), RING_BYTES)])?;
        let slot = slot_at(created.send.offset.get()).context("no slot")?;
        Ok(Self { created, slot, rings, record, sent: 0, posted: 0 })
    }

    pub(crate) fn qpn(&self) -> u32 {
        self.created.qpn.get()
    }

    /// Takes it to RTS.
    pub(crate) fn start(&self, guest: &mut Guest, qkey: u32, pkey_index: u16) -> Result<()> {
        for step in transitions(self.created.qp, qkey, pkey_index) {
            guest.must(&step, &[])?;
        }
        Ok(())
    }

    /// Posts a receive buffer; where its payload will be.
    pub(crate) fn post_receive(&mut self, guest: &Guest, mine: &Objects) -> Result<u64> {
        let place = BUFFERS + u64::from(self.posted) * u64::from(BUFFER);
        let slot = self.rings + RECEIVES + u64::from(self.posted) * RECEIVE_STRIDE;
        let wqe = [&data(mine.mr.lkey.get(), at(place), BUFFER)[..], DataSeg::TERMINATOR.as_bytes()].concat();
        guest.memory.write(slot, &wqe)?;
        self.posted += 1;
        guest.memory.write(self.record, &u32::from(self.posted).to_be_bytes())?;
        Ok(place + GRH)
    }

    /// Posts a work request of these units behind the control segment, and rings.
    pub(crate) fn post(&mut self, guest: &Guest, body: &[u8]) -> Result<()> {
        let slot = self.rings + SEND_STRIDE * u64::from(self.sent % SENDS);
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::new().with_owner(self.sent & SENDS != 0).with_opcode(Opcode::SEND);
        ctrl.size = CtrlSize::new().with_units(u32::try_from(1 + body.len() / 16)?);
        ctrl.flags = CtrlFlags::new().with_completion(Completion::ALWAYS);
        guest.memory.write(slot + 16, body)?;
        guest.memory.write(slot + 4, &ctrl.as_bytes()[4..])?;
        guest.memory.write(slot, &ctrl.as_bytes()[..4])?;
        self.sent += 1;
        ring(guest, self.slot, u64::from(self.qpn()) << 8)
    }

    /// Sends a datagram within the port.
    pub(crate) fn send(
        &mut self,
        guest: &mut Guest,
        mine: &Objects,
        to: u32,
        qkey: u32,
        body: &[u8],
    ) -> Result<()> {
        let vector = vector(guest, mine)?;
        self.post(guest, &[&datagram(vector, to, qkey)[..], body].concat())
    }
}

/// The address vector of the port itself, as the device makes it.
pub(crate) fn vector(guest: &mut Guest, mine: &Objects) -> Result<[u8; 48]> {
    let attributes = AhAttributes { dlid: U16::new(lid(guest)?), port_num: 1, ..AhAttributes::new_zeroed() };
    let verb = CreateAh { pd: U32::new(mine.pd), attributes, ..CreateAh::new_zeroed() };
    Ok(guest.must(&verb, &[])?.vector)
}

/// A datagram segment: an address vector with queue pair and Q_Key.
pub(crate) fn datagram(vector: [u8; 48], to: u32, qkey: u32) -> [u8; 48] {
    let mut segment = vector;
    segment[32..36].copy_from_slice(&to.to_be_bytes());
    segment[36..40].copy_from_slice(&qkey.to_be_bytes());
    segment
}

/// Inline data of whole units.
fn inline(bytes: &[u8]) -> Result<Vec<u8>> {
    let head = 1 << 31 | u32::try_from(bytes.len())?;
    let mut segment = [&head.to_be_bytes()[..], bytes].concat();
    segment.resize(segment.len().next_multiple_of(16), 0);
    Ok(segment)
}

/// A packet with all headers chosen by hand, as the work requests of special queue pairs have it: to a queue pair
/// of the LID, and from whom it likes.
pub(crate) fn raw_packet(lid: u16, to: u32, from: u32, qkey: u32, payload: &[u8]) -> Result<Vec<u8>> {
    let mut lrh = Lrh::new_zeroed();
    lrh.start = LrhStart::new().with_next_header(LinkNextHeader::BTH);
    (lrh.dlid, lrh.slid) = (Be16::new(lid), Be16::new(lid));
    let mut bth = Bth::new_zeroed();
    bth.set_opcode(PacketOpcode::UD_SEND_ONLY);
    (bth.pkey, bth.dest_qp) = (Be16::new(0xffff), Number24::wrapping(to));
    let mut deth = Deth::new_zeroed();
    (deth.qkey, deth.src_qp) = (Be32::new(qkey), Number24::wrapping(from));
    // The last four bytes stand for the ICRC.
    let headers = [lrh.as_bytes(), bth.as_bytes(), deth.as_bytes()].concat();
    Ok([inline(&headers)?, payload.to_vec(), inline(&[0; 4])?].concat())
}

/// The next completion, of whatever kind.
pub(crate) fn completion(guest: &Guest, mine: &mut Objects) -> Result<(Cqe, Option<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(bytes) = mine.take(guest)? {
            let cqe = Cqe::read_from_bytes(&bytes).ok().context("a CQE")?;
            return Ok((cqe, cqe.owner.is_error().then_some(bytes[0x1b])));
        }
        std::thread::yield_now();
    }
    None.context("no completion")
}
