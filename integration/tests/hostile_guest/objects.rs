//! What a guest has of the HCA, made by hand: a doorbell area, a CQ, memory, queue pairs.

use anyhow::{Context as _, Result, ensure};
use mlx4_wire::cqe::{CQE_BYTES, Cqe};
use mlx4_wire::wqe::Opcode;
use mlx4_wire::wqe::{
    ByteCount, Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, RemoteAddressSeg,
};
use mlx4_wire::{U32 as Be32, U64 as Be64};
use std::time::Instant;
use virtio_rdma::doorbell::{DoorbellMode, slot_at};
use virtio_rdma::queue::FIRST_KICK;
use virtio_rdma::request::completion::{CqCreated, CreateCq};
use virtio_rdma::request::domain::{AllocPd, AllocUar};
use virtio_rdma::request::memory::{AccessFlags, MrRegistered, RegMr};
use virtio_rdma::request::query::{Mtu, QueryPort};
use virtio_rdma::request::queue_pair::{
    AhAttributes, CreateQp, ModifyQp, QpAttrMask as Mask, QpAttributes, QpCap, QpCreated, QpState, QpType,
};
use virtio_rdma::request::shared_receive::CreateSrq;
use virtio_rdma::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::guest::{Guest, PATIENCE, at};

/// The doorbell area, as an offset of the memory.
pub(crate) const AREA: u64 = 0x6_0000;
/// Slots of the area.
pub(crate) const SLOTS: u32 = 64;
/// Doorbell records: of the CQ, and of each queue pair.
pub(crate) const RECORDS: u64 = 0x7_0000;
/// The ring of the CQ.
pub(crate) const CQ_RING: u64 = 0x8_0000;
/// Entries of a CQ that fit in a page, whichever size they have.
pub(crate) const CQ_ENTRIES: u32 = 64;
/// Bytes of the ring of a CQ.
const CQ_BYTES: u32 = 4096;
/// The rings of queue pairs, this far from each other.
pub(crate) const QP_RING: u64 = 0x9_0000;
pub(crate) const QP_RING_BYTES: u64 = 0x2000;
/// Where registered memory is.
pub(crate) const DATA: u64 = 0x20_0000;
/// Bytes of registered memory.
pub(crate) const DATA_BYTES: u64 = 0x20_0000;
/// Memory that nobody needs.
pub(crate) const SPARE: u64 = 0x60_0000;

/// Syndromes of completions.
pub(crate) const LOCAL_PROTECTION: u8 = 0x04;
pub(crate) const REMOTE_ACCESS: u8 = 0x13;

/// All rights but windows.
pub(crate) fn all() -> AccessFlags {
    AccessFlags::LOCAL_WRITE
        | AccessFlags::REMOTE_WRITE
        | AccessFlags::REMOTE_READ
        | AccessFlags::REMOTE_ATOMIC
}

/// A queue pair, and where its next request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) created: QpCreated,
    pub(crate) ring: u64,
    pub(crate) slot: u32,
    pub(crate) head: u32,
}

/// One of each kind, and two queue pairs that are connected to each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Objects {
    pub(crate) uar: u32,
    pub(crate) pd: u32,
    pub(crate) pdn: u32,
    pub(crate) cq: CqCreated,
    pub(crate) mr: MrRegistered,
    pub(crate) pairs: [Pair; 2],
    /// Bytes of a completion, and how many there are in the ring.
    pub(crate) cqe_bytes: u32,
    pub(crate) entries: u32,
    pub(crate) consumer: u32,
}

/// The request for a doorbell area.
pub(crate) fn alloc_uar(area: u64, slots: u32) -> AllocUar {
    AllocUar {
        mode: DoorbellMode::RELAYED,
        slots: U32::new(slots),
        area: U64::new(area),
        ..AllocUar::new_zeroed()
    }
}

/// The request for a region whose address is that of its memory.
pub(crate) fn reg_mr(pd: u32, iova: u64, length: u64) -> RegMr {
    RegMr { pd: U32::new(pd), access: all(), iova: U64::new(iova), length: U64::new(length) }
}

/// The request for a CQ.
pub(crate) fn create_cq(uar: u32, entries: u32, record: u64) -> CreateCq {
    CreateCq {
        uar: U32::new(uar),
        entries: U32::new(entries),
        record: U64::new(record),
        ..CreateCq::new_zeroed()
    }
}

/// The request for an RC queue pair of 64 send and 64 receive slots of 64 bytes, in two pages.
pub(crate) fn create_qp(pd: u32, uar: u32, cq: u32, record: u64) -> CreateQp {
    CreateQp {
        pd: U32::new(pd),
        uar: U32::new(uar),
        send_cq: U32::new(cq),
        recv_cq: U32::new(cq),
        qp_type: QpType::RC,
        log2_send_wqes: 6,
        log2_send_stride: 6,
        log2_recv_wqes: 6,
        log2_recv_stride: 6,
        cap: QpCap {
            max_send_wr: U32::new(16),
            max_recv_wr: U32::new(64),
            max_send_sge: U32::new(1),
            max_recv_sge: U32::new(1),
            ..QpCap::new_zeroed()
        },
        record: U64::new(record),
        ..CreateQp::new_zeroed()
    }
}

/// The request for an SRQ of 64 requests of up to three elements, in a page.
pub(crate) fn create_srq(pd: u32, record: u64) -> CreateSrq {
    CreateSrq {
        pd: U32::new(pd),
        log2_wqes: 6,
        log2_stride: 6,
        max_wr: U32::new(32),
        max_sge: U32::new(1),
        record: U64::new(record),
        ..CreateSrq::new_zeroed()
    }
}

/// The changes from RESET to RTS.
pub(crate) fn transitions(qp: u32, dlid: u16, dest: u32) -> [ModifyQp; 3] {
    let ah_attr = AhAttributes { dlid: U16::new(dlid), port_num: 1, ..AhAttributes::new_zeroed() };
    let step = |attr_mask, attributes| ModifyQp { qp: U32::new(qp), attr_mask, attributes };
    let zero = QpAttributes::new_zeroed();
    [
        step(
            Mask::STATE | Mask::PKEY_INDEX | Mask::PORT | Mask::ACCESS_FLAGS,
            QpAttributes { qp_state: QpState::INIT, port_num: 1, qp_access_flags: all(), ..zero },
        ),
        step(
            Mask::STATE
                | Mask::AV
                | Mask::PATH_MTU
                | Mask::DEST_QPN
                | Mask::RQ_PSN
                | Mask::MAX_DEST_RD_ATOMIC
                | Mask::MIN_RNR_TIMER,
            QpAttributes {
                qp_state: QpState::RTR,
                ah_attr,
                path_mtu: Mtu::B4096,
                dest_qp_num: U32::new(dest),
                max_dest_rd_atomic: 4,
                min_rnr_timer: 12,
                ..zero
            },
        ),
        step(
            Mask::STATE
                | Mask::SQ_PSN
                | Mask::MAX_QP_RD_ATOMIC
                | Mask::RETRY_CNT
                | Mask::RNR_RETRY
                | Mask::TIMEOUT,
            QpAttributes {
                qp_state: QpState::RTS,
                timeout: 10,
                retry_cnt: 1,
                rnr_retry: 1,
                max_rd_atomic: 4,
                ..zero
            },
        ),
    ]
}

/// A data segment.
pub(crate) fn data(lkey: u32, address: u64, count: u32) -> Vec<u8> {
    let mut data = DataSeg::new_zeroed();
    data.byte_count = ByteCount::new().with_count(count);
    (data.lkey, data.address) = (Be32::new(lkey), Be64::new(address));
    data.as_bytes().to_vec()
}

/// A remote address segment and a data segment.
pub(crate) fn remote(rkey: u32, address: u64, local: Vec<u8>) -> Vec<u8> {
    let mut remote = RemoteAddressSeg::new_zeroed();
    (remote.rkey, remote.address) = (Be32::new(rkey), Be64::new(address));
    [remote.as_bytes(), &local].concat()
}

impl Objects {
    /// Makes them all.
    pub(crate) fn new(guest: &mut Guest) -> Result<Self> {
        guest.memory.zero(AREA, 4096 + 8 * SLOTS as usize)?;
        guest.memory.zero(RECORDS, 4096)?;
        let uar = guest.must(&alloc_uar(at(AREA), SLOTS), &[])?.uar.get();
        let pd = guest.must(&AllocPd {}, &[])?;
        let (pd, pdn) = (pd.pd.get(), pd.pdn.get());
        let mr = guest.must(&reg_mr(pd, at(DATA), DATA_BYTES), &[(at(DATA), DATA_BYTES)])?;
        let cqe_bytes = u32::from(guest.config()?.format.cqe_bytes.get());
        ensure!([32, 64].contains(&cqe_bytes), "completions of {cqe_bytes} bytes");
        let entries = CQ_BYTES / cqe_bytes;
        let cq = guest.must(&create_cq(uar, entries, at(RECORDS)), &[(at(CQ_RING), CQ_BYTES.into())])?;
        let pairs = [Pair::new(guest, pd, uar, cq.cq.get(), 0)?, Pair::new(guest, pd, uar, cq.cq.get(), 1)?];
        Ok(Self { uar, pd, pdn, cq, mr, pairs, cqe_bytes, entries, consumer: 0 })
    }

    /// Connects the two queue pairs to each other.
    pub(crate) fn connect(&self, guest: &mut Guest) -> Result<()> {
        let lid = lid(guest)?;
        let [one, other] = &self.pairs;
        one.connect(guest, lid, other.created.qpn.get())?;
        other.connect(guest, lid, one.created.qpn.get())
    }

    /// Makes them all and connects.
    pub(crate) fn connected(guest: &mut Guest) -> Result<Self> {
        let objects = Self::new(guest)?;
        objects.connect(guest)?;
        Ok(objects)
    }

    /// Posts a request and rings.
    pub(crate) fn post(&mut self, guest: &Guest, pair: usize, opcode: Opcode, body: &[u8]) -> Result<()> {
        self.pairs[pair].post(guest, opcode, body)?;
        ring(guest, self.pairs[pair].slot, u64::from(self.pairs[pair].created.qpn.get()) << 8)
    }

    /// Writes data of the first queue pair's to the second one's memory: the keys can be chosen.
    pub(crate) fn write(&mut self, guest: &Guest, lkey: u32, rkey: u32, bytes: u32) -> Result<()> {
        let body = remote(rkey, at(DATA) + DATA_BYTES / 2, data(lkey, at(DATA), bytes));
        self.post(guest, 0, Opcode::RDMA_WRITE, &body)
    }

    /// The next completion's syndrome; none of a success. None at all if there is none in time.
    pub(crate) fn completion(&mut self, guest: &Guest) -> Result<Option<u8>> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(done) = self.poll(guest)? {
                return Ok(done);
            }
            std::thread::yield_now();
        }
        None.context("no completion")
    }

    /// Takes a completion, if there is one: its syndrome if it is an error's.
    pub(crate) fn poll(&mut self, guest: &Guest) -> Result<Option<Option<u8>>> {
        let Some(bytes) = self.take(guest)? else { return Ok(None) };
        let cqe = Cqe::read_from_bytes(&bytes).ok().context("a CQE")?;
        Ok(Some(cqe.owner.is_error().then_some(bytes[0x1b])))
    }

    /// Takes the bytes of a completion, if there is one: the last 32 of its entry.
    pub(crate) fn take(&mut self, guest: &Guest) -> Result<Option<Vec<u8>>> {
        let end = u64::from(self.consumer % self.entries + 1) * u64::from(self.cqe_bytes);
        let offset = CQ_RING + end - u64::from(CQE_BYTES);
        let bytes = guest.memory.read(offset, CQE_BYTES as usize)?;
        let owner = bytes.last().is_some_and(|owner| owner & 0x80 != 0);
        if owner != (self.consumer & self.entries != 0) || bytes[31] & 0x1f == 0x0c {
            return Ok(None);
        }
        self.consumer += 1;
        guest.memory.write(RECORDS, &(self.consumer & 0xff_ffff).to_be_bytes())?;
        Ok(Some(bytes))
    }

    /// A write that succeeds: the guest's objects work.
    pub(crate) fn works(&mut self, guest: &Guest) -> Result<()> {
        self.write(guest, self.mr.lkey.get(), self.mr.rkey.get(), 256)?;
        let done = self.completion(guest)?;
        ensure!(done.is_none(), "a write ended in syndrome {done:x?}");
        Ok(())
    }
}

impl Pair {
    /// Makes the `n`th queue pair of a guest.
    pub(crate) fn new(guest: &mut Guest, pd: u32, uar: u32, cq: u32, n: u64) -> Result<Self> {
        let ring = QP_RING + n * QP_RING_BYTES;
        for slot in 0..64 {
            guest.memory.write(ring + 64 * slot, &0x8000_0000u32.to_be_bytes())?;
        }
        let verb = create_qp(pd, uar, cq, at(RECORDS + 64 + 8 * n));
        let created = guest.must(&verb, &[(at(ring), QP_RING_BYTES)])?;
        let slot = slot_at(created.send.offset.get()).context("no slot")?;
        Ok(Self { created, ring, slot, head: 0 })
    }

    /// Takes it to RTS.
    pub(crate) fn connect(&self, guest: &mut Guest, dlid: u16, dest: u32) -> Result<()> {
        for step in transitions(self.created.qp.get(), dlid, dest) {
            guest.must(&step, &[])?;
        }
        Ok(())
    }

    /// Writes the next request into the ring.
    pub(crate) fn post(&mut self, guest: &Guest, opcode: Opcode, body: &[u8]) -> Result<()> {
        self.post_with(guest, opcode, 0, body)
    }

    /// The same with immediate data, or a key in its place.
    pub(crate) fn post_with(
        &mut self,
        guest: &Guest,
        opcode: Opcode,
        immediate: u32,
        body: &[u8],
    ) -> Result<()> {
        let slot = self.ring + 64 * u64::from(self.head % 64);
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.immediate = Be32::new(immediate);
        ctrl.opcode = CtrlOpcode::new().with_owner(self.head & 64 != 0).with_opcode(opcode);
        ctrl.size = CtrlSize::new().with_units(u32::try_from(1 + body.len() / 16)?);
        ctrl.flags = CtrlFlags::new().with_completion(Completion::ALWAYS);
        guest.memory.write(slot + 16, body)?;
        guest.memory.write(slot + 4, &ctrl.as_bytes()[4..])?;
        guest.memory.write(slot, &ctrl.as_bytes()[..4])?;
        self.head = self.head.wrapping_add(1);
        Ok(())
    }
}

/// The port's LID.
pub(crate) fn lid(guest: &mut Guest) -> Result<u16> {
    Ok(guest.must(&QueryPort { port: 1, ..QueryPort::new_zeroed() }, &[])?.lid.get())
}

/// Rings a slot, and kicks whether the reader sleeps or not.
pub(crate) fn ring(guest: &Guest, slot: u32, value: u64) -> Result<()> {
    let (word, bit) = (u64::from(slot / 64), slot % 64);
    guest.memory.write(AREA + 4096 + 8 * u64::from(slot), &value.to_le_bytes())?;
    guest.memory.write(AREA + 0x200 + 8 * word, &(1u64 << bit).to_le_bytes())?;
    guest.memory.write(AREA + 0x80, &(1u64 << word).to_le_bytes())?;
    guest.kick(FIRST_KICK);
    Ok(())
}
