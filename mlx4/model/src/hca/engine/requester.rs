//! The requester of a connected queue pair: executes WQEs in order, in parts that fit the budget of a burst,
//! and acts on the answers (IBTA vol. 1, 9.7.5.2 and 9.9.2).
//!
//! Requests are answered before the next one starts, so fence and strong order ask for nothing more. The
//! hardware has several reads and atomics under way; that they may be more than the other end has resources
//! for is seen from what is posted when the first of them starts.

use mlx4_wire::Number24;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::ServiceType;
use vm_memory::VolatileSlice;

use super::peer::Peer;
use super::responder::{Answer, Nak, Notice, Part, Responder};
use super::send::{Budget, Current, Reads, SendWork};
use super::sg::{Slices, Walk, copy};
use super::side::Side;
use super::traffic::Run;
use super::wqe::{AtomicOp, Header, Remote, Request};
use super::{Next, keys, wqe};
use crate::hca::tpt::Rights;

/// Executes the send queue of an RC, UC or XRC queue pair.
pub(super) fn run(side: &Side<'_>, work: &mut SendWork, mut budget: Budget) -> Next {
    if let Err(next) = work.advance(side, &mut budget) {
        return next;
    }
    let peer = Peer::find(side);
    let mut half = peer.as_ref().map(|peer| peer.qp.receive());
    let far = match (&peer, &mut half) {
        (Some(peer), Some(half)) => peer.responder(side, half),
        _ => None,
    };
    let mut requester = Requester { side, work, peer: peer.as_ref(), far, budget };
    loop {
        match requester.step() {
            Ok(()) => {}
            Err(next) => return next,
        }
    }
}

struct Requester<'a, 'b> {
    side: &'a Side<'b>,
    work: &'a mut SendWork,
    /// The other end, if there is one.
    peer: Option<&'a Peer<'b>>,
    /// The same, if it listens.
    far: Option<Responder<'a>>,
    budget: Budget,
}

impl Requester<'_, '_> {
    /// Executes a part of the WQE in hand, and sees to the next.
    fn step(&mut self) -> Result<(), Next> {
        let &Current { ref header, done } = self.work.current.as_ref().ok_or(Next::Idle)?;
        if let Some(far) = &mut self.far {
            far.srqn = header.remote_srqn;
        }
        if header.request.takes_resources() {
            self.take_resource(done)?;
        } else {
            self.work.reads = Reads::default();
        }
        self.execute(done)?;
        self.work.advance(self.side, &mut self.budget)
    }

    /// Executes a part of the WQE in hand, from byte `done` of the message on.
    fn execute(&mut self, done: u64) -> Result<(), Next> {
        match &self.work.current.as_ref().ok_or(Next::Idle)?.header.request {
            Request::Nop => self.work.finish(self.side, 0),
            Request::Send | Request::Write(_) | Request::Read(_) => self.transfer(done)?,
            &Request::Atomic(remote, op) => self.atomic(&remote, op)?,
            request @ (Request::Bind(_) | Request::LocalInvalidate(_) | Request::FastRegister(_)) => {
                match keys::execute(self.side, request) {
                    Ok(()) => self.work.finish(self.side, 0),
                    Err(syndrome) => return Err(self.fail(syndrome)),
                }
            }
            Request::Datagram(_) | Request::Segmented(..) | Request::Special(_) => {
                return Err(self.fail(Syndrome::LOCAL_QP_OP_ERR));
            }
        }
        Ok(())
    }

    /// Sees to the other end's resources for a read or atomic that begins, if nothing of it is done.
    fn take_resource(&mut self, done: u64) -> Result<(), Next> {
        let own = self.side.attrs.requester_depth;
        let Some(far) = self.far.as_mut().filter(|far| far.depth() < own) else { return Ok(()) };
        if done != 0 || self.work.retries() {
            return Ok(());
        }
        let counter = self.work.counter();
        let earlier = self.work.reads.begin(|| wqe::count_reads(self.side, counter, own));
        if earlier < far.depth() {
            return Ok(());
        }
        let answer = far.exhausted();
        let atomic = matches!(
            self.work.current,
            Some(Current { header: Header { request: Request::Atomic(..), .. }, .. })
        );
        self.count_packets((1, 0, if atomic { ATOMIC_ETH } else { RETH }), REFUSAL);
        self.answered(answer)
    }

    fn fail(&mut self, syndrome: Syndrome) -> Next {
        self.work.fail(self.side, syndrome);
        Next::Idle
    }

    /// The next part of the WQE in hand: as many full packets as the budget has room for, at least one.
    fn part(&self, done: u64) -> Part {
        let attrs = self.side.attrs;
        let (total, mtu) = (self.work.wqe.len(), u64::from(attrs.mtu));
        let most = (self.budget.bytes / mtu * mtu).max(mtu);
        let len = (total - done).min(most);
        let packets = u32::try_from(len.div_ceil(mtu).max(1)).unwrap_or(1);
        Part { psn: self.work.psn, packets, mtu: attrs.mtu, done, len, total }
    }

    fn transfer(&mut self, done: u64) -> Result<(), Next> {
        if self.work.wqe.len() > self.side.attrs.max_message {
            return Err(self.fail(Syndrome::LOCAL_LENGTH_ERR));
        }
        let part = self.part(done);
        let answer = self.exchange(&part);
        self.count(&part, &answer);
        self.answered(answer)?;
        let Some(current) = &mut self.work.current else { return Ok(()) };
        current.done += part.len;
        let read = matches!(current.header.request, Request::Read(_));
        self.work.psn = self.work.psn.wrapping_add(part.packets) & Number24::MAX;
        self.budget.spend(part.len);
        if part.is_last() {
            self.work.finish(self.side, if read { part.total } else { 0 });
        }
        Ok(())
    }

    /// Carries a part to the other end, or from there.
    fn exchange(&mut self, part: &Part) -> Answer {
        let SendWork { current: Some(Current { header, .. }), wqe, .. } = &mut *self.work else {
            return Answer::Silence;
        };
        let Header { immediate, invalidate, solicited, .. } = *header;
        let notice = Notice { immediate, invalidate, solicited };
        let read = matches!(header.request, Request::Read(_));
        let rights = if read { Rights::LocalWrite } else { Rights::LocalRead };
        let (list, inline) = wqe.parts();
        let user = (self.side.user(), rights);
        let mut walk = match Walk::start(self.side.burst, list, inline, user, part.done, part.len) {
            Ok(walk) => walk,
            Err(fault) => return Answer::Local(fault),
        };
        let Some(far) = &mut self.far else { return Answer::Silence };
        match &header.request {
            Request::Write(remote) => far.write(part, remote, &mut walk, &notice),
            Request::Read(remote) => far.read(part, remote, &mut walk),
            _ => far.send(part, &mut walk, &notice),
        }
    }

    /// Acts on an answer. On UC there is none, and what was sent is done.
    fn answered(&mut self, answer: Answer) -> Result<(), Next> {
        let reliable = self.side.attrs.is_reliable();
        let syndrome = match answer {
            Answer::Local(fault) => {
                self.side.refused_lkey(&fault);
                Syndrome::LOCAL_PROT_ERR
            }
            _ if !reliable => return Ok(()),
            Answer::Ack => {
                self.work.progress();
                return Ok(());
            }
            Answer::Silence => return Err(self.work.lost(self.side)),
            Answer::OutOfSequence => return Err(self.work.resend(self.side)),
            Answer::NotReady(timer) => {
                self.side.hca.counters.rnr_naks_received.add(1);
                return Err(self.work.not_ready(self.side, timer));
            }
            Answer::Nak(Nak::InvalidRequest) => Syndrome::REMOTE_INVAL_REQ_ERR,
            Answer::Nak(Nak::Access) => Syndrome::REMOTE_ACCESS_ERR,
            Answer::Nak(Nak::Operation) => Syndrome::REMOTE_OP_ERR,
        };
        Err(self.fail(syndrome))
    }

    fn atomic(&mut self, remote: &Remote, op: AtomicOp) -> Result<(), Next> {
        let result = self.operate(remote, op);
        let answer = result.as_ref().err().unwrap_or(&Answer::Ack);
        if let Some(back) = back(answer, (1, 0, AETH + ATOMIC_ACK_ETH)) {
            self.count_packets((1, 0, ATOMIC_ETH), back);
        }
        match result {
            Ok(()) => {}
            Err(answer) => self.answered(answer)?,
        }
        self.work.progress();
        self.work.psn = self.work.psn.wrapping_add(1) & Number24::MAX;
        self.work.finish(self.side, 8);
        Ok(())
    }

    /// Executes an atomic operation and stores what it returns, in the host's byte order. The memory for it
    /// is checked first, since the operation can't be taken back.
    fn operate(&mut self, remote: &Remote, op: AtomicOp) -> Result<(), Answer> {
        let (list, inline) = self.work.wqe.parts();
        let user = (self.side.user(), Rights::LocalWrite);
        let mut walk = Walk::start(self.side.burst, list, inline, user, 0, 8).map_err(Answer::Local)?;
        let far = self.far.as_mut().ok_or(Answer::Silence)?;
        let mut before = far.atomic(self.work.psn, remote, op)?.to_ne_bytes();
        let slices = [VolatileSlice::from(&mut before[..])];
        copy(&mut Slices { slices: &slices }, &mut walk, 8).map_err(|fault| Answer::Local(fault.key()))
    }

    /// Counts the packets of a part, and what came back, whatever it was.
    fn count(&self, part: &Part, answer: &Answer) {
        let Some(Current { header, .. }) = &self.work.current else { return };
        let packets = u64::from(part.packets);
        let ack = if part.is_last() { 1 } else { 0 };
        let told = header.immediate.is_some() || header.invalidate.is_some();
        let immediate = if part.is_last() && told { IMMEDIATE } else { 0 };
        let (there, done) = match header.request {
            Request::Read(_) => ((1, 0, RETH), (packets, part.len, AETH * packets.min(2))),
            Request::Write(_) if part.is_first() => {
                ((packets, part.len, RETH + immediate), (ack, 0, AETH * ack))
            }
            _ => ((packets, part.len, immediate), (ack, 0, AETH * ack)),
        };
        if let Some(back) = back(answer, done) {
            self.count_packets(there, back);
        }
    }

    /// Counts packets there and back. Those inside the HCA nobody counts; those that reach nobody its port does.
    fn count_packets(&self, there: Packets, back: Packets) {
        let attrs = self.side.attrs;
        let grh = attrs.path.source.grh();
        let run = |(packets, payload, extended)| Run { packets, payload, extended, grh };
        let mut there = run(there);
        if attrs.service == ServiceType::XRC {
            there.extended += there.packets * XRC_ETH;
        }
        match self.peer {
            Some(peer) => peer.count(self.side, there, run(if attrs.is_reliable() { back } else { NONE })),
            None => Peer::count_lost(self.side, there),
        }
    }
}

/// Packets of one kind: how many, payload bytes, and words of extended headers.
type Packets = (u64, u64, u64);

/// What comes back with an answer, where a success brings `done`; `None` if the request wasn't sent.
fn back(answer: &Answer, done: Packets) -> Option<Packets> {
    match answer {
        Answer::Ack => Some(done),
        Answer::NotReady(_) | Answer::Nak(_) | Answer::OutOfSequence => Some(REFUSAL),
        Answer::Silence => Some(NONE),
        Answer::Local(_) => None,
    }
}

const NONE: Packets = (0, 0, 0);
/// A NAK.
const REFUSAL: Packets = (1, 0, AETH);
/// Sizes of extended headers in words.
const RETH: u64 = 4;
const AETH: u64 = 1;
const ATOMIC_ETH: u64 = 7;
const ATOMIC_ACK_ETH: u64 = 2;
/// Immediate data, or a key to invalidate.
const IMMEDIATE: u64 = 1;
const XRC_ETH: u64 = 1;
