//! The responder of a connected queue pair: what it does with the packets of a message, and what it answers
//! (IBTA vol. 1, 9.7.5 and 9.8).
//!
//! A message comes in parts, each a run of packets that one burst carries. An answer stands for all of a
//! part's packets.

use std::sync::atomic::{AtomicU64, Ordering};

use mlx4_wire::cqe::{CqeOwner, CqeSl, CqeSource, ReceiveOpcode, Syndrome};
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::eqe::EventType;
use mlx4_wire::{Number24, U32};
use vm_memory::VolatileMemory;

use super::peer::is_receiving;
use super::receive::{Message, MessageKind, NoWqe, ReceiveWork};
use super::sg::{CopyFault, RegionWalk, Walk, copy_counted, empty};
use super::side::Side;
use super::wqe::{AtomicOp, Remote};
use crate::hca::tpt::{self, By, Changes, KeyFault, Region, Rights};

/// A run of packets of one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) psn: u32,
    pub(super) packets: u32,
    /// Payload of a full packet.
    pub(super) mtu: u32,
    /// Bytes of the message before this part.
    pub(super) done: u64,
    /// Bytes of this part.
    pub(super) len: u64,
    /// Bytes of the message.
    pub(super) total: u64,
}

impl Part {
    pub(super) fn is_first(&self) -> bool {
        self.done == 0
    }

    pub(super) fn is_last(&self) -> bool {
        self.done + self.len == self.total
    }
}

/// What the receiver is told besides the data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notice {
    pub(super) immediate: Option<[u8; 4]>,
    /// Key that it shall invalidate.
    pub(super) invalidate: Option<u32>,
    pub(super) solicited: bool,
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ack,
    /// RNR NAK with a timer code.
    NotReady(u8),
    Nak(Nak),
    /// NAK: packets before these are missing.
    OutOfSequence,
    /// Nothing: the packets are dropped, or aren't those that are expected.
    Silence,
    /// The requester's own memory failed.
    Local(KeyFault),
}

/// NAKs that end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nak {
    InvalidRequest,
    Access,
    Operation,
}

/// A responder, locked for a burst.
pub(super) struct Responder<'a> {
    side: Side<'a>,
    work: &'a mut ReceiveWork,
    reliable: bool,
    /// XRC: the SRQ that requests name.
    pub(super) srqn: u32,
}

impl<'a> Responder<'a> {
    pub(super) fn new(side: Side<'a>, work: &'a mut ReceiveWork) -> Self {
        let reliable = side.attrs.is_reliable();
        Self { side, work, reliable, srqn: 0 }
    }

    /// A part of a SEND.
    pub(super) fn send(&mut self, part: &Part, from: &mut Walk<'_>, notice: &Notice) -> Answer {
        match self.arrive(part, Some(MessageKind::Send)) {
            Ok(true) => self.receive(part, from, notice).unwrap_or_else(|answer| answer),
            Ok(false) => Answer::Ack,
            Err(answer) => answer,
        }
    }

    fn receive(&mut self, part: &Part, from: &mut Walk<'_>, notice: &Notice) -> Result<Answer, Answer> {
        if part.is_first() {
            self.need_wqe()?;
        }
        if part.done + part.len > self.work.list.bytes() {
            let event = Some(EventType::WQ_INVALID_REQUEST);
            return Err(self.end(Some(Syndrome::LOCAL_LENGTH_ERR), event, Nak::InvalidRequest));
        }
        let user = (self.work.user(&self.side), Rights::LocalWrite);
        let copied = Walk::start(self.side.burst, &self.work.list, empty(), user, part.done, part.len)
            .map_err(CopyFault::Target)
            .and_then(|mut to| copy_counted(from, &mut to, part.len, &self.side.hca.counters.copied_bytes));
        match copied {
            Ok(()) => {}
            Err(CopyFault::Source(fault)) => return Err(Answer::Local(fault)),
            Err(CopyFault::Target(fault)) => {
                self.side.refused_lkey(&fault);
                return Err(self.end(Some(Syndrome::LOCAL_PROT_ERR), None, Nak::Operation));
            }
        }
        if part.is_last()
            && let Some(key) = notice.invalidate
        {
            self.invalidate(key)?;
        }
        self.accept(part, MessageKind::Send);
        if part.is_last() {
            let opcode = match notice {
                Notice { invalidate: Some(_), .. } => ReceiveOpcode::SEND_INVALIDATE,
                Notice { immediate: Some(_), .. } => ReceiveOpcode::SEND_IMM,
                _ => ReceiveOpcode::SEND,
            };
            self.complete(opcode, part.total, notice);
        }
        Ok(Answer::Ack)
    }

    /// Invalidates a key as the last packet of a SEND asks, before its receive completes. A key that can't
    /// be costs this end its connection; the other end isn't told (IBTA vol. 1, 9.9.3, class J).
    fn invalidate(&mut self, key: u32) -> Result<(), Answer> {
        let changes = Changes::begin(self.side.burst, self.side.running);
        let Err(fault) = changes.invalidate(self.work.remote_user(&self.side), key, By::Remote) else {
            self.side.hca.counters.remote_invalidates.add(1);
            return Ok(());
        };
        drop(changes);
        self.side.refused_rkey(&fault);
        let syndrome = Some(Syndrome::REMOTE_INVAL_REQ_ERR);
        self.end(syndrome, Some(EventType::WQ_ACCESS_ERROR), Nak::Access);
        Err(Answer::Silence)
    }

    /// A part of an RDMA write.
    pub(super) fn write(
        &mut self,
        part: &Part,
        remote: &Remote,
        from: &mut Walk<'_>,
        notice: &Notice,
    ) -> Answer {
        match self.arrive(part, Some(MessageKind::Write)) {
            Ok(true) => self.place(part, remote, from, notice).unwrap_or_else(|answer| answer),
            Ok(false) => Answer::Ack,
            Err(answer) => answer,
        }
    }

    fn place(
        &mut self,
        part: &Part,
        remote: &Remote,
        from: &mut Walk<'_>,
        notice: &Notice,
    ) -> Result<Answer, Answer> {
        if !self.side.attrs.remote_write {
            return Err(self.not_enabled());
        }
        let region = self.check(part, remote, Rights::RemoteWrite)?;
        if part.is_last() && notice.immediate.is_some() {
            self.need_wqe()?;
        }
        if let Some(region) = region {
            let mut to = RegionWalk { burst: self.side.burst, region };
            match copy_counted(from, &mut to, part.len, &self.side.hca.counters.copied_bytes) {
                Ok(()) => {}
                Err(CopyFault::Source(fault)) => return Err(Answer::Local(fault)),
                Err(CopyFault::Target(fault)) => return Err(self.no_access(&fault)),
            }
        }
        self.accept(part, MessageKind::Write);
        if part.is_last() && notice.immediate.is_some() {
            self.complete(ReceiveOpcode::RDMA_WRITE_IMM, part.total, notice);
        }
        Ok(Answer::Ack)
    }

    /// A part of an RDMA read: the requester asks anew for each. A duplicate is executed again.
    pub(super) fn read(&mut self, part: &Part, remote: &Remote, to: &mut Walk<'_>) -> Answer {
        match self.arrive(part, None) {
            Ok(new) => self.respond(part, remote, to, new).unwrap_or_else(|answer| answer),
            Err(answer) => answer,
        }
    }

    fn respond(
        &mut self,
        part: &Part,
        remote: &Remote,
        to: &mut Walk<'_>,
        new: bool,
    ) -> Result<Answer, Answer> {
        if !self.side.attrs.remote_read {
            return Err(self.not_enabled());
        }
        if let Some(region) = self.check(part, remote, Rights::RemoteRead)? {
            let mut from = RegionWalk { burst: self.side.burst, region };
            match copy_counted(&mut from, to, part.len, &self.side.hca.counters.copied_bytes) {
                Ok(()) => {}
                Err(CopyFault::Source(fault)) => return Err(self.no_access(&fault)),
                Err(CopyFault::Target(fault)) => return Err(Answer::Local(fault)),
            }
        }
        if new {
            if part.is_first() {
                let depth = self.side.attrs.responder_depth;
                self.work.resources.remember(part.psn, None, depth);
            }
            self.side.hca.counters.payload_bytes.add(part.len);
            self.step(part);
        }
        Ok(Answer::Ack)
    }

    /// An atomic operation; gives what was in memory before. A duplicate isn't executed again: it gets the
    /// answer that it got before, as long as that is remembered, else none.
    pub(super) fn atomic(&mut self, psn: u32, remote: &Remote, op: AtomicOp) -> Result<u64, Answer> {
        let part = Part { psn, packets: 1, mtu: self.side.attrs.mtu, done: 0, len: 8, total: 8 };
        if !self.arrive(&part, None)? {
            return self.work.resources.result(psn).ok_or(Answer::Silence);
        }
        if !self.side.attrs.remote_atomic {
            return Err(self.not_enabled());
        }
        if !remote.va.is_multiple_of(8) {
            return Err(self.end(None, Some(EventType::WQ_ACCESS_ERROR), Nak::InvalidRequest));
        }
        let before = match self.check(&part, remote, Rights::RemoteAtomic)? {
            Some(mut region) => {
                operate(&self.side, &mut region, op).map_err(|fault| self.no_access(&fault))?
            }
            None => return Err(Answer::Silence),
        };
        self.work.resources.remember(psn, Some(before), self.side.attrs.responder_depth);
        self.step(&part);
        Ok(before)
    }

    /// How many reads and atomics it lets the other end have under way.
    pub(super) fn depth(&self) -> u32 {
        self.side.attrs.responder_depth
    }

    /// One read or atomic too many is under way (IBTA vol. 1, 9.7.5.2.8).
    pub(super) fn exhausted(&mut self) -> Answer {
        self.end(None, Some(EventType::WQ_ACCESS_ERROR), Nak::InvalidRequest)
    }

    /// Looks at PSN, state and the order of packets. True if the part is new, false for a duplicate.
    fn arrive(&mut self, part: &Part, kind: Option<MessageKind>) -> Result<bool, Answer> {
        if !is_receiving(self.side.qp.state()) {
            return Err(Answer::Silence);
        }
        let ahead = part.psn.wrapping_sub(self.work.psn) & Number24::MAX;
        if ahead != 0 {
            if !self.reliable {
                self.resynchronise(part)?;
            } else if ahead > Number24::MAX / 2 {
                return Ok(false);
            } else {
                self.side.hca.counters.out_of_sequence.add(1);
                let reported = std::mem::replace(&mut self.work.gap_reported, true);
                return Err(if reported { Answer::Silence } else { Answer::OutOfSequence });
            }
        }
        self.work.gap_reported = false;
        self.establish();
        self.find_shared()?;
        if !self.reliable && part.is_first() {
            self.work.message = None;
        }
        let in_order = match (kind, self.work.message) {
            (Some(kind), Some(message)) => !part.is_first() && message == Message { kind, bytes: part.done },
            (Some(_), None) => part.is_first(),
            (None, message) => message.is_none(),
        };
        if in_order && self.fits_mtu(part) {
            return Ok(true);
        }
        Err(self.end(None, Some(EventType::WQ_INVALID_REQUEST), Nak::InvalidRequest))
    }

    /// XRC: finds the SRQ that a request names. One that isn't there or belongs to another domain is an
    /// invalid request (IBTA vol. 1, annex A14).
    fn find_shared(&mut self) -> Result<(), Answer> {
        let Some(xrcd) = self.side.attrs.xrcd else { return Ok(()) };
        if self.work.shared.as_ref().is_some_and(|srq| srq.srqn == self.srqn && srq.is_live()) {
            return Ok(());
        }
        if self.work.in_hand.is_some() {
            // It was taken for a message that broke off, and belongs to the SRQ of that.
            let event = Some(EventType::WQ_INVALID_REQUEST);
            return Err(self.end(Some(Syndrome::LOCAL_QP_OP_ERR), event, Nak::InvalidRequest));
        }
        match self.side.running.srqs.get(self.srqn).filter(|srq| srq.is_in_domain(xrcd)) {
            Some(srq) if srq.srqn == self.srqn => {
                self.work.shared = Some(srq);
                Ok(())
            }
            _ => {
                log::debug!("QP {:#x}: SRQ {:#x} isn't of its domain", self.side.attrs.qpn, self.srqn);
                Err(self.end(None, Some(EventType::WQ_INVALID_REQUEST), Nak::InvalidRequest))
            }
        }
    }

    /// UC: packets are lost. The next message that begins is taken (IBTA vol. 1, 9.8.2.2).
    fn resynchronise(&mut self, part: &Part) -> Result<(), Answer> {
        self.side.hca.counters.out_of_sequence.add(1);
        self.work.message = None;
        if !part.is_first() {
            return Err(Answer::Silence);
        }
        self.work.psn = part.psn;
        Ok(())
    }

    /// Whether the packets have the size that this end's path MTU makes them have.
    fn fits_mtu(&self, part: &Part) -> bool {
        part.total <= u64::from(self.side.attrs.mtu.min(part.mtu)) || part.mtu == self.side.attrs.mtu
    }

    fn establish(&mut self) {
        if !self.work.established {
            self.work.established = true;
            if self.side.qp.state() == QpState::RTR {
                self.side.raise(EventType::COMMUNICATION_ESTABLISHED);
            }
        }
    }

    /// Checks the key of the memory that the rest of a message is about. Without bytes, any key does.
    fn check(&mut self, part: &Part, remote: &Remote, rights: Rights) -> Result<Option<Region>, Answer> {
        if part.total == 0 {
            return Ok(None);
        }
        let (va, len) = (remote.va.wrapping_add(part.done), part.total - part.done);
        tpt::check(self.side.burst, remote.rkey, self.work.remote_user(&self.side), va, len, rights)
            .map(Some)
            .map_err(|fault| self.no_access(&fault))
    }

    fn need_wqe(&mut self) -> Result<(), Answer> {
        self.work.take(&self.side, 0).map_err(|reason| match reason {
            NoWqe::NotReady if self.reliable => {
                self.side.hca.counters.rnr_naks.add(1);
                Answer::NotReady(self.side.attrs.min_rnr_timer)
            }
            NoWqe::NotReady => {
                self.work.message = None;
                Answer::Silence
            }
            NoWqe::Unreadable => Answer::Nak(Nak::Operation),
        })
    }

    fn not_enabled(&mut self) -> Answer {
        self.side.hca.counters.rejected_rkeys.add(1);
        self.end(None, Some(EventType::WQ_INVALID_REQUEST), Nak::InvalidRequest)
    }

    fn no_access(&mut self, fault: &KeyFault) -> Answer {
        self.side.refused_rkey(fault);
        self.end(None, Some(EventType::WQ_ACCESS_ERROR), Nak::Access)
    }

    /// A NAK that ends the connection: the WQE in hand completes with `syndrome`, or is flushed with the
    /// others. On UC only what concerns that WQE is fatal; any other fault costs the message.
    fn end(&mut self, syndrome: Option<Syndrome>, event: Option<EventType>, nak: Nak) -> Answer {
        self.work.message = None;
        if !self.reliable && syndrome.is_none() {
            return Answer::Silence;
        }
        if let Some(syndrome) = syndrome {
            self.work.fail_in_hand(&self.side, syndrome);
        }
        if self.side.fail(QpState::ERR)
            && let Some(event) = event
        {
            self.side.raise(event);
        }
        Answer::Nak(nak)
    }

    /// A part has been placed.
    fn accept(&mut self, part: &Part, kind: MessageKind) {
        let bytes = part.done + part.len;
        self.work.message = (!part.is_last()).then_some(Message { kind, bytes });
        self.side.hca.counters.payload_bytes.add(part.len);
        self.step(part);
    }

    fn step(&mut self, part: &Part) {
        self.work.psn = self.work.psn.wrapping_add(part.packets) & Number24::MAX;
        if part.is_last() {
            self.work.msn = self.work.msn.wrapping_add(1) & Number24::MAX;
        }
    }

    fn complete(&mut self, opcode: ReceiveOpcode, bytes: u64, notice: &Notice) {
        let Some(index) = self.work.in_hand.take() else { return };
        let attrs = self.side.attrs;
        let mut cqe = self.side.cqe(index, CqeOwner::receive(opcode));
        cqe.immediate = match notice {
            Notice { invalidate: Some(key), .. } => U32::new(*key),
            _ => notice.immediate.map_or(U32::ZERO, U32::from_bytes),
        };
        cqe.source = CqeSource::new().with_remote_qpn(attrs.remote_qpn & Number24::MAX);
        cqe.sl = CqeSl::new().with_sl(attrs.path.sched_queue.sl());
        cqe.slid = attrs.path.remote_lid;
        cqe.byte_count = U32::new(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.side.hca.counters.receive_wqes.add(1);
        self.work.done(&self.side, cqe, notice.solicited);
    }
}

/// Executes an atomic operation on eight bytes, which are in the host's byte order.
fn operate(side: &Side<'_>, region: &mut Region, op: AtomicOp) -> Result<u64, KeyFault> {
    let slice = region.next(side.burst, 8)?;
    let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| KeyFault::Misaligned(region.va()))?;
    if let AtomicOp::FetchAdd { add, tops: 0 } = op {
        return Ok(word.fetch_add(add, Ordering::SeqCst));
    }
    let mut before = word.load(Ordering::SeqCst);
    for _ in 0..EXCHANGE_TRIES {
        let Some(after) = op.apply(before) else { return Ok(before) };
        match word.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(before),
            Err(now) => before = now,
        }
    }
    // Other atomics of HCAs don't lose so often, so it's a processor that stores here, towards which an HCA need not be
    // atomic.
    if let Some(after) = op.apply(before) {
        word.store(after, Ordering::SeqCst);
    }
    Ok(before)
}

/// How often an atomic operation is tried on memory that keeps changing.
const EXCHANGE_TRIES: u32 = 128;
