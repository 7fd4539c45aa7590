//! The driver's side of queues.

use std::cell::Cell;
use std::sync::Arc;

use mlx4_wire::cmd::Status;
use mlx4_wire::cqe::{Cqe, ErrorCqe, Syndrome};
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::path::{AddressPath, PathTimeout, SchedQueue};
use mlx4_wire::ctx::qp::{Mtu, MtuMessage, OptPar, QpMailbox, QpSrq, QpState, ServiceType, WqSize};
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::doorbell::CqArmCommand;
use mlx4_wire::wqe::{ByteCount, Completion, CtrlSeg, DataSeg, Opcode};
use mlx4_wire::{Number24, U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::machine::{Buffer, Machine, PD, UAR};
use crate::device::PciFunction;
use crate::hca::cq::Cq;
use crate::hca::qp::Qp;
use crate::hca::srq::Srq;

/// A bus address where there is no memory.
pub(super) const NOWHERE: u64 = 0x1000;

/// A unit of a WQE.
pub(super) type Unit = [u8; 16];

/// A completion, as far as the tests care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Good { opcode: u8, bytes: u32 },
    Failed(Syndrome),
}

pub(super) struct TestCq {
    pub(super) cqn: u32,
    ring: u64,
    pub(super) record: u64,
    log2: u8,
    consumed: Cell<u32>,
}

impl TestCq {
    pub(super) fn new(machine: &Machine, log2: u8) -> Self {
        let pages = (machine.entry_bytes << log2).div_ceil(4096);
        Self::with_ring(machine, log2, machine.pages(pages))
    }

    /// A queue whose ring is at a bus address.
    pub(super) fn with_ring(machine: &Machine, log2: u8, ring: u64) -> Self {
        Self::at(machine, log2, ring, machine.pages(1))
    }

    /// A queue of one entry, in a page that others may use too.
    pub(super) fn sharing(machine: &Machine, page: u64) -> Self {
        Self::at(machine, 0, page, page + 2048)
    }

    fn at(machine: &Machine, log2: u8, ring: u64, record: u64) -> Self {
        let pages = (machine.entry_bytes << log2).div_ceil(4096);
        let mut context = CqContext::new_zeroed();
        context.size.set_log2_entries(log2);
        context.size.set_uar_page(UAR);
        context.pages = machine.ring_pages(ring, pages);
        context.record_address = U64::new(record);
        let cqn = machine.number();
        let cq = Arc::new(
            Cq::new(&machine.burst(), &machine.running(), cqn, &context, Some(machine.eq()), false).unwrap(),
        );
        machine.running().cqs.insert(cqn, cq);
        Self { cqn, ring, record, log2, consumed: Cell::new(0) }
    }

    /// The next entry, without giving its slot back.
    pub(super) fn peek(&self, machine: &Machine) -> Option<Cqe> {
        let index = self.consumed.get();
        let slot = u64::from(index & ((1 << self.log2) - 1));
        let cqe: Cqe = machine.load(self.ring + machine.entry_bytes * (slot + 1) - 32);
        (cqe.owner.owner() == (index >> self.log2 & 1 != 0)).then_some(cqe)
    }

    /// The queue itself.
    pub(super) fn cq(&self, machine: &Machine) -> Arc<Cq> {
        machine.running().cqs.get(self.cqn).unwrap()
    }

    /// The queue as a consumer sees it that goes on in a new ring, after the marker.
    pub(super) fn moved(&self, ring: u64, log2: u8, consumed: u32) -> Self {
        Self { cqn: self.cqn, ring, record: self.record, log2, consumed: Cell::new(consumed) }
    }

    /// Bytes of the ring.
    pub(super) fn bytes(&self, machine: &Machine) -> Vec<u8> {
        machine.read(self.ring, machine.entry_bytes << self.log2)
    }

    /// The next entry.
    pub(super) fn poll(&self, machine: &Machine) -> Option<Cqe> {
        let cqe = self.peek(machine)?;
        self.consumed.set(self.consumed.get() + 1);
        machine.store(self.record, &Number24::wrapping(self.consumed.get()));
        Some(cqe)
    }

    /// As if so many more entries had come and been read.
    pub(super) fn skip(&self, machine: &Machine, entries: u32) {
        self.cq(machine).skip(entries);
        self.consumed.set(self.consumed.get() + entries);
        machine.store(self.record, &Number24::wrapping(self.consumed.get()));
    }

    /// Asks for an event with the next entry, or the next solicited one.
    pub(super) fn arm(&self, machine: &Machine, command: CqArmCommand) {
        let doorbell = self.request(machine, command);
        self.ring(machine, doorbell);
    }

    /// The first half of that: writes the record. The doorbell that is to follow.
    pub(super) fn request(&self, machine: &Machine, command: CqArmCommand) -> [U32; 2] {
        let index = self.consumed.get();
        let word = 1 << 28 | u32::from(command.0) << 24;
        machine.store(self.record + 4, &U32::new(word | index));
        [U32::new(word | self.cqn), U32::new(index)]
    }

    /// The second half.
    pub(super) fn ring(&self, machine: &Machine, doorbell: [U32; 2]) {
        machine.hca.bar_write(2, u64::from(UAR) * 4096 + 0x20, doorbell.as_bytes());
    }
}

/// What a completion says.
pub(super) fn done(cqe: &Cqe) -> Done {
    match cqe.owner.is_error() {
        true => Done::Failed(ErrorCqe::from(*cqe).syndrome()),
        false => Done::Good { opcode: cqe.owner.opcode().0, bytes: cqe.byte_count.get() },
    }
}

/// How to make a queue pair.
#[derive(Clone, Copy)]
pub(super) struct QpConfig {
    pub(super) service: ServiceType,
    pub(super) log2_sends: u8,
    pub(super) log2_receives: u8,
    /// log2 of the strides of the send queue (6 or more) and the receive queue (4 or more).
    pub(super) strides: (u8, u8),
    pub(super) pd: u32,
    pub(super) log2_max_message: u8,
    pub(super) mtu: Mtu,
    pub(super) retries: u8,
    pub(super) rnr_retries: u8,
    /// Remote write, read, atomic.
    pub(super) rights: (bool, bool, bool),
    pub(super) ack_timeout: u8,
    /// log2 of the reads and atomics under way, as requester and as responder.
    pub(super) log2_reads: (u8, u8),
    pub(super) srqn: Option<u32>,
    pub(super) qkey: u32,
    pub(super) pkey_index: u8,
    /// Port, from 1.
    pub(super) port: u8,
    /// Makes an XRC target of a domain.
    pub(super) xrcd: Option<u16>,
    /// The queues' memory isn't where the HCA is told.
    pub(super) lost: bool,
    /// Fast register work requests are allowed.
    pub(super) fast_register: bool,
}

impl QpConfig {
    pub(super) fn new(service: ServiceType) -> Self {
        let datagrams = [ServiceType::UD, ServiceType::MLX].contains(&service);
        Self {
            service,
            log2_sends: 6,
            log2_receives: 5,
            strides: (8, 6),
            pd: PD,
            log2_max_message: if datagrams { 12 } else { 30 },
            mtu: Mtu::MTU_1024,
            retries: 2,
            rnr_retries: 2,
            rights: (true, true, true),
            // About 1 ms.
            ack_timeout: 8,
            log2_reads: (2, 2),
            srqn: None,
            qkey: 0x1234_5678,
            pkey_index: 0,
            port: 1,
            xrcd: None,
            lost: false,
            fast_register: false,
        }
    }
}

pub(super) struct TestQp {
    pub(super) qpn: u32,
    pub(super) qp: Arc<Qp>,
    config: QpConfig,
    sq: u64,
    rq: u64,
    record: u64,
    sent: Cell<u32>,
    received: Cell<u16>,
}

impl TestQp {
    /// A queue pair in INIT.
    pub(super) fn new(machine: &Machine, send: &TestCq, receive: &TestCq, config: QpConfig) -> Self {
        let target = if config.xrcd.is_some() { 1 << 23 } else { 0 };
        Self::with_number(machine, send, receive, config, machine.number() | target)
    }

    pub(super) fn with_number(
        machine: &Machine,
        send: &TestCq,
        receive: &TestCq,
        config: QpConfig,
        qpn: u32,
    ) -> Self {
        let size = |log2_entries, log2_stride: u8| {
            WqSize::new().with_log2_entries(log2_entries).with_log2_stride_less_4(log2_stride - 4)
        };
        let sq_size = size(config.log2_sends, config.strides.0);
        let rq_size = size(config.log2_receives, config.strides.1);
        let (sq_bytes, rq_bytes) = (u64::from(sq_size.bytes()), u64::from(rq_size.bytes()));
        let pages = (sq_bytes + rq_bytes).div_ceil(4096);
        let (buffer, record) = (machine.pages(pages), machine.pages(1));
        let rq_first = config.srqn.is_none() && config.strides.1 > config.strides.0;
        let (sq, rq) = if rq_first { (buffer + rq_bytes, buffer) } else { (buffer, buffer + sq_bytes) };
        for slot in 0..1u64 << config.log2_sends {
            machine.write(sq + (slot << config.strides.0), &[0x80, 0, 0, 0]);
        }
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.optional =
            OptPar::new().with_remote_read(true).with_remote_write(true).with_remote_atomic(true);
        let context = &mut mailbox.context;
        context.flags.set_service(config.service);
        context.pd = Number24::wrapping(config.pd);
        context.sq_size = sq_size;
        let no_queue = config.srqn.is_some() || config.service == ServiceType::XRC;
        context.xrcd.set_xrcd(config.xrcd.unwrap_or(0));
        context.rq_size = if no_queue { WqSize::from_bits(0xfc) } else { rq_size };
        context.uar_page = Number24::wrapping(UAR);
        context.send_cqn = Number24::wrapping(send.cqn);
        context.receive_cqn = Number24::wrapping(receive.cqn);
        context.record_address = U64::new(record);
        context.pages = machine.ring_pages(if config.lost { NOWHERE } else { buffer }, pages);
        context.qkey = U32::new(config.qkey);
        context.requester.set_fast_register(config.fast_register);
        context.primary_path.pkey_index = config.pkey_index;
        context.primary_path.sched_queue = SchedQueue::BASE.with_port_index(config.port - 1);
        context.mtu_message = MtuMessage::new().with_mtu(Mtu::MTU_4096).with_log2_max_message(12);
        let (write, read, atomic) = config.rights;
        context.responder.set_remote_write(write);
        context.responder.set_remote_read(read);
        context.responder.set_remote_atomic(atomic);
        if let Some(srqn) = config.srqn {
            context.srq = QpSrq::new().with_enable(true).with_srqn(srqn);
        }
        let qp = Arc::new(Qp::new(&machine.burst(), &machine.running(), qpn, &mailbox).unwrap());
        machine.running().qps.insert(qpn, qp.clone());
        Self { qpn, qp, config, sq, rq, record, sent: Cell::new(0), received: Cell::new(0) }
    }

    pub(super) fn transition(&self, machine: &Machine, opcode: mlx4_wire::cmd::Opcode, mailbox: &QpMailbox) {
        self.try_transition(machine, opcode, mailbox).unwrap();
    }

    pub(super) fn try_transition(
        &self,
        machine: &Machine,
        opcode: mlx4_wire::cmd::Opcode,
        mailbox: &QpMailbox,
    ) -> Result<(), Status> {
        let (burst, running) = (machine.burst(), machine.running());
        self.qp.transition(&burst, &running, opcode, mailbox, true)?;
        machine.hca.engine.ring(self.qpn);
        Ok(())
    }

    /// INIT to RTR.
    pub(super) fn to_rtr(&self, machine: &Machine, remote: u32, path: AddressPath, psn: u32) {
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.optional = OptPar::new().with_primary_path(true);
        let context = &mut mailbox.context;
        let datagrams = [ServiceType::UD, ServiceType::MLX].contains(&self.config.service);
        let mtu = if datagrams { Mtu::MTU_4096 } else { self.config.mtu };
        context.mtu_message =
            MtuMessage::new().with_mtu(mtu).with_log2_max_message(self.config.log2_max_message);
        context.remote_qpn = Number24::wrapping(remote);
        context.primary_path = path;
        context.rnr_next_psn.set_next_receive_psn(psn);
        context.responder.set_log2_max_reads(self.config.log2_reads.1);
        // 0.01 ms.
        context.rnr_next_psn.set_min_rnr_timer(1);
        self.transition(machine, mlx4_wire::cmd::Opcode::INIT2RTR_QP, &mailbox);
    }

    /// RTR to RTS.
    pub(super) fn to_rts(&self, machine: &Machine, psn: u32) {
        let mut mailbox = QpMailbox::new_zeroed();
        let context = &mut mailbox.context;
        context.next_send_psn = Number24::wrapping(psn);
        context.primary_path.timeout = PathTimeout::new().with_ack_timeout(self.config.ack_timeout);
        context.requester.set_log2_max_reads(self.config.log2_reads.0);
        context.requester.set_retry_count(self.config.retries);
        context.requester.set_rnr_retry(self.config.rnr_retries);
        self.transition(machine, mlx4_wire::cmd::Opcode::RTR2RTS_QP, &mailbox);
    }

    pub(super) fn state(&self) -> QpState {
        self.qp.state()
    }

    /// The slot of the WQE that is posted next.
    pub(super) fn next_slot(&self) -> u64 {
        let slot = u64::from(self.sent.get() & ((1 << self.config.log2_sends) - 1));
        self.sq + (slot << self.config.strides.0)
    }

    /// Posts a send WQE of a control segment and other units, and rings.
    pub(super) fn post(&self, machine: &Machine, ctrl: CtrlSeg, units: &[Unit]) {
        self.put(machine, ctrl, units);
        machine.ring(self.qpn);
    }

    /// Posts without ringing.
    pub(super) fn put(&self, machine: &Machine, mut ctrl: CtrlSeg, units: &[Unit]) {
        if ctrl.size.units() == 0 {
            ctrl.size.set_units(u32::try_from(units.len() + 1).unwrap());
        }
        let count = self.sent.get();
        ctrl.opcode.set_owner(count >> self.config.log2_sends & 1 != 0);
        let slot = self.next_slot();
        machine.write(slot + 16, &units.concat());
        machine.write(slot + 4, &ctrl.as_bytes()[4..]);
        let first = ctrl.as_bytes()[..4].try_into().unwrap();
        machine.publish(slot, first);
        self.sent.set(count + 1);
    }

    /// Posts a receive WQE; there is no doorbell.
    pub(super) fn post_receive(&self, machine: &Machine, list: &[DataSeg]) {
        let count = self.received.get();
        let slot = u64::from(count & ((1 << self.config.log2_receives) - 1));
        let at = self.rq + (slot << self.config.strides.1);
        write_list(machine, at, 1 << self.config.strides.1, list);
        self.received.set(count.wrapping_add(1));
        let [high, low] = self.received.get().to_be_bytes();
        machine.publish(self.record, [0, 0, high, low]);
    }
}

fn write_list(machine: &Machine, at: u64, room: u64, list: &[DataSeg]) {
    for (seg, i) in list.iter().chain([&DataSeg::TERMINATOR]).zip(0..room / 16) {
        machine.store(at + 16 * i, seg);
    }
}

/// A shared receive queue.
pub(super) struct TestSrq {
    pub(super) srqn: u32,
    pub(super) srq: Arc<Srq>,
    ring: u64,
    record: u64,
    head: Cell<u16>,
    posted: Cell<u16>,
}

/// Bytes of a shared receive WQE.
const SRQ_STRIDE: u64 = 64;

impl TestSrq {
    /// A queue of 16 WQEs, linked with a step of 3.
    pub(super) fn new(machine: &Machine, pd: u32) -> Self {
        Self::of_domain(machine, pd, (0, 0), machine.pages(1), machine.pages(1))
    }

    /// One of an XRC domain, with a CQ.
    pub(super) fn xrc(machine: &Machine, pd: u32, cq: &TestCq, xrcd: u16) -> Self {
        Self::of_domain(machine, pd, (cq.cqn, xrcd), machine.pages(1), machine.pages(1))
    }

    /// One whose doorbell record can't be read.
    pub(super) fn lost(machine: &Machine) -> Self {
        Self::of_domain(machine, PD, (0, 0), machine.pages(1), NOWHERE)
    }

    /// One in a page that others may use too.
    pub(super) fn sharing(machine: &Machine, page: u64) -> Self {
        Self::of_domain(machine, PD, (0, 0), page, page + 2048)
    }

    fn of_domain(machine: &Machine, pd: u32, (cqn, xrcd): (u32, u16), ring: u64, record: u64) -> Self {
        for slot in 0..16u16 {
            machine.store(ring + SRQ_STRIDE * u64::from(slot) + 2, &U16::new((slot + 3) % 16));
        }
        let mut context = SrqContext::new_zeroed();
        context.size.set_log2_entries(4);
        context.stride.set_log2_stride_less_4(2);
        context.pages = machine.ring_pages(ring, 1);
        context.pd = Number24::wrapping(pd);
        context.cq.set_cqn(cqn);
        context.xrcd = U16::new(xrcd);
        context.record_address = U64::new(record);
        let srqn = machine.number();
        let srq = Arc::new(Srq::new(&machine.burst(), &machine.running(), srqn, &context).unwrap());
        machine.running().srqs.insert(srqn, srq.clone());
        Self { srqn, srq, ring, record, head: Cell::new(0), posted: Cell::new(0) }
    }

    /// Posts a WQE; gives its slot.
    pub(super) fn post(&self, machine: &Machine, list: &[DataSeg]) -> u16 {
        let slot = self.head.get();
        write_list(machine, self.ring + SRQ_STRIDE * u64::from(slot) + 16, SRQ_STRIDE - 16, list);
        self.head.set((slot + 3) % 16);
        self.posted.set(self.posted.get().wrapping_add(1));
        let [high, low] = self.posted.get().to_be_bytes();
        machine.publish(self.record, [0, 0, high, low]);
        slot
    }
}

/// A control segment with a completion.
pub(super) fn ctrl(opcode: Opcode) -> CtrlSeg {
    let mut ctrl = CtrlSeg::new_zeroed();
    ctrl.opcode.set_opcode(opcode);
    ctrl.flags.set_completion(Completion::ALWAYS);
    ctrl
}

/// A pointer to a part of a buffer.
pub(super) fn part(buffer: &Buffer, from: u64, len: u64) -> DataSeg {
    DataSeg {
        byte_count: ByteCount::new().with_count(u32::try_from(len).unwrap()),
        lkey: U32::new(buffer.key),
        address: U64::new(buffer.va + from),
    }
}

/// A pointer to a whole buffer.
pub(super) fn whole(buffer: &Buffer) -> DataSeg {
    part(buffer, 0, buffer.len)
}

/// A segment as units of a WQE.
pub(super) fn units<T: IntoBytes + zerocopy::Immutable>(segment: &T) -> Vec<Unit> {
    segment.as_bytes().chunks_exact(16).map(|unit| unit.try_into().unwrap()).collect()
}

/// Inline data as units, from a unit's start at `offset` in the WQE: a new header in each chunk.
pub(super) fn inline(offset: usize, mut data: &[u8]) -> Vec<Unit> {
    let mut bytes: Vec<u8> = Vec::new();
    while !data.is_empty() {
        let room = 64 - (offset + bytes.len()) % 64 - 4;
        let (now, later) = data.split_at(room.min(data.len()));
        let head = ByteCount::new().with_inline(true).with_count(u32::try_from(now.len()).unwrap());
        bytes.extend(head.into_bits().to_bytes());
        bytes.extend(now);
        data = later;
    }
    bytes.resize(bytes.len().next_multiple_of(16), 0xee);
    bytes.chunks_exact(16).map(|unit| unit.try_into().unwrap()).collect()
}
