//! One extended connection to SRQs of several domains of memory, each with a CQ of its own.
//!
//! The memory of each SRQ has slots for what receives bring, a part that is written to and read from, and none of it
//! is the others': a key is good only with the SRQ of its own domain.

use std::collections::VecDeque;

use fastrand::Rng;
use paraverbs_verbs::{
    Access, Context, Cq, Mr, Pd, QpAttr, QpState, QpType, RecvWr, SendData, SendFlags, SendOp, SendWr, Srq,
    SrqInit, Wc, WcOpcode, WcStatus, XrcRecvQp, Xrcd,
};

use crate::due::Due;
use crate::scene::{End, completion, connect_extended, errno};

const ENOMEM: i32 = 12;
/// Receives that an SRQ holds.
const SIZE: SrqInit = SrqInit { max_wr: 7, max_sge: 1 };
const RECEIVES: usize = 7;
/// Bytes of a slot, and the sender's slots.
const SLOT: usize = 4096;
const SLOTS: usize = 12;
/// Where in an SRQ's memory the part is that is written to, and how long it is.
const TARGET: usize = RECEIVES * SLOT;
const TARGET_BYTES: usize = 0x2000;
/// Where in the sender's memory reads and atomics bring what they bring.
const RESULT: usize = 0x2_0000;
/// A number that no SRQ has.
const NOBODY: u32 = 0xff_ffff;
/// Ordered behind reads and atomics before it.
const FENCED: SendFlags = SendFlags { fence: true, ..SendFlags::SIGNALED };

/// An SRQ with a CQ and memory of its own. Fields in the order in which they go.
struct Inbox {
    srq: Srq,
    cq: Cq,
    mr: Mr,
    pd: Pd,
    /// What lies in the part that is written to.
    target: Vec<u8>,
    /// Slots of the receives that are posted, in order, those that are free, and completions that must come.
    posted: VecDeque<usize>,
    free: Vec<usize>,
    dues: VecDeque<Due>,
}

impl Inbox {
    fn new(guest: &Context, domain: &Xrcd) -> Self {
        let (cq, pd) = (guest.create_cq(20, None).unwrap(), guest.alloc_pd().unwrap());
        let mr = pd.alloc_mr(TARGET + TARGET_BYTES, Access::ALL).unwrap();
        let srq = domain.create_srq(&pd, &cq, &SIZE).unwrap();
        let free = (0..RECEIVES).collect();
        let target = vec![0; TARGET_BYTES];
        Self { srq, cq, mr, pd, target, posted: VecDeque::new(), free, dues: VecDeque::new() }
    }

    fn receive(&mut self, rng: &mut Rng) {
        let slot = self.free.swap_remove(rng.usize(..self.free.len()));
        let sges = [self.mr.sge(slot * SLOT, u32::try_from(SLOT).unwrap())];
        self.srq.post_recv(&RecvWr { wr_id: slot as u64, sges: &sges }).unwrap();
        self.posted.push_back(slot);
    }

    /// The next receive, which completes in a way.
    fn is_due(&mut self, due: impl FnOnce(u64) -> Due) {
        let slot = self.posted.pop_front().unwrap();
        self.dues.push_back(due(slot as u64));
    }

    /// Where a part of what is written to is, and its key.
    fn remote(&self, at: usize) -> (u64, u32) {
        (self.mr.addr() + (TARGET + at) as u64, self.mr.rkey())
    }

    /// Takes every completion that must come, in order, and no other.
    fn poll(&mut self, target: &XrcRecvQp) {
        while let Some(due) = self.dues.pop_front() {
            due.check(&completion(&self.cq), target.qpn(), &self.mr);
            self.free.push(usize::try_from(due.wr_id).unwrap());
        }
        let mut wc = [Wc::default()];
        assert_eq!(self.cq.poll(&mut wc).unwrap(), 0, "{wc:?}");
        let mut bytes = vec![0; TARGET_BYTES];
        self.mr.read(TARGET, &mut bytes).unwrap();
        assert!(bytes == self.target, "another target");
    }
}

/// Fields in the order in which they go.
pub(crate) struct Extended {
    sender: End,
    target: XrcRecvQp,
    inboxes: Vec<Inbox>,
    /// An SRQ of another domain of the same guest.
    foreign: Inbox,
    domain: Xrcd,
    _other: Xrcd,
    guest: Context,
    /// What the sender waits for, and its requests so far.
    sends: VecDeque<Due>,
    next: u64,
    /// Numbers that SRQs had once.
    gone: Vec<u32>,
}

impl Extended {
    /// The second guest receives.
    pub(crate) fn new([one, guest]: [&Context; 2]) -> Self {
        let (domain, other) = (guest.open_xrcd().unwrap(), guest.open_xrcd().unwrap());
        let sender = End::of_type(one, QpType::XrcSend);
        let target = domain.create_recv_qp().unwrap();
        connect_extended(&sender, &target);
        let inboxes = (0..2).map(|_| Inbox::new(guest, &domain)).collect();
        let foreign = Inbox::new(guest, &other);
        let guest = guest.clone();
        let (sends, gone) = (VecDeque::new(), Vec::new());
        Self { sender, target, inboxes, foreign, domain, _other: other, guest, sends, next: 0, gone }
    }

    /// Does something, and expects what must come of it.
    pub(crate) fn step(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let to = rng.usize(..2);
        match rng.u8(..16) {
            0..4 => self.receive(to, rng, note),
            4..8 => self.send(to, rng, note),
            8..10 => self.write(to, rng, note),
            10 => self.read(to, rng, note),
            11 => self.add(to, rng, note),
            12 => {
                note("settle".into());
                self.settle();
            }
            13 => self.replace(to, note),
            14 => self.refused(to, rng, note),
            _ => self.too_long(to, rng, note),
        }
    }

    /// Takes all completions, and compares memory.
    pub(crate) fn settle(&mut self) {
        while let Some(due) = self.sends.pop_front() {
            due.check(&completion(&self.sender.cq), self.sender.qp.qpn(), &self.sender.mr);
        }
        self.sender.nothing();
        self.inboxes.iter_mut().for_each(|inbox| inbox.poll(&self.target));
        self.foreign.poll(&self.target);
    }

    fn receive(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        if self.inboxes[to].free.is_empty() {
            self.settle();
        }
        let inbox = &mut self.inboxes[to];
        note(format!("a receive for {to} beside {}", inbox.posted.len()));
        if inbox.free.is_empty() {
            assert_eq!(errno(inbox.srq.post_recv(&RecvWr { wr_id: 0, sges: &[] })), ENOMEM);
        } else {
            inbox.receive(rng);
        }
    }

    /// Posts a request of `length` bytes from a place of the sender's memory, for an SRQ. Its number.
    fn post(&mut self, op: SendOp, (at, length): (usize, usize), srqn: u32) -> u64 {
        self.next += 1;
        let wr_id = self.next;
        let sges = [self.sender.mr.sge(at, u32::try_from(length).unwrap())];
        let wr = SendWr { wr_id, op, data: SendData::Sges(&sges), flags: FENCED };
        self.sender.qp.post_send_xrc(&wr, srqn).unwrap();
        wr_id
    }

    /// A slot of the sender's memory that nothing under way uses.
    fn slot(&mut self) -> usize {
        if self.sends.len() >= SLOTS {
            self.settle();
        }
        usize::try_from(self.next).unwrap() % SLOTS * SLOT
    }

    /// A slot with random bytes.
    fn source(&mut self, length: usize, rng: &mut Rng) -> (usize, Vec<u8>) {
        let at = self.slot();
        let bytes: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        self.sender.mr.write(at, &bytes).unwrap();
        (at, bytes)
    }

    fn send(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        if self.inboxes[to].posted.is_empty() {
            return self.receive(to, rng, note);
        }
        let length = rng.usize(..=SLOT);
        let imm = rng.bool().then(|| rng.u32(..));
        note(format!("sends {length} bytes to {to} with {imm:?}"));
        let (at, bytes) = self.source(length, rng);
        let srqn = self.inboxes[to].srq.srqn();
        let wr_id = self.post(imm.map_or(SendOp::Send, SendOp::SendImm), (at, length), srqn);
        self.sends.push_back(Due::success(wr_id, WcOpcode::Send));
        self.inboxes[to].is_due(|slot| Due {
            byte_len: u32::try_from(length).ok(),
            imm,
            payload: Some((usize::try_from(slot).unwrap() * SLOT, bytes)),
            ..Due::success(slot, WcOpcode::Recv)
        });
    }

    fn write(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let length = rng.usize(..=SLOT);
        let place = rng.usize(..=TARGET_BYTES - length);
        let imm = (rng.bool() && !self.inboxes[to].posted.is_empty()).then(|| rng.u32(..));
        note(format!("writes {length} bytes at {place:#x} of {to} with {imm:?}"));
        let (at, bytes) = self.source(length, rng);
        let (remote_addr, rkey) = self.inboxes[to].remote(place);
        let op = match imm {
            Some(imm) => SendOp::WriteImm { remote_addr, rkey, imm },
            None => SendOp::Write { remote_addr, rkey },
        };
        let wr_id = self.post(op, (at, length), self.inboxes[to].srq.srqn());
        self.sends.push_back(Due::success(wr_id, WcOpcode::RdmaWrite));
        let inbox = &mut self.inboxes[to];
        inbox.target[place..place + length].copy_from_slice(&bytes);
        if imm.is_some() {
            let byte_len = u32::try_from(length).ok();
            let due = |slot| Due { byte_len, imm, ..Due::success(slot, WcOpcode::RecvRdmaWithImm) };
            inbox.is_due(due);
        }
    }

    fn read(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let length = rng.usize(..=SLOT);
        let place = rng.usize(..=TARGET_BYTES - length);
        note(format!("reads {length} bytes at {place:#x} of {to}"));
        let at = RESULT + self.slot();
        let (remote_addr, rkey) = self.inboxes[to].remote(place);
        let wr_id = self.post(SendOp::Read { remote_addr, rkey }, (at, length), self.inboxes[to].srq.srqn());
        let payload = Some((at, self.inboxes[to].target[place..place + length].to_vec()));
        self.sends.push_back(Due { payload, ..Due::success(wr_id, WcOpcode::RdmaRead) });
    }

    fn add(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let (place, add) = (8 * rng.usize(..TARGET_BYTES / 8), rng.u64(..));
        note(format!("adds {add:#x} at {place:#x} of {to}"));
        let at = RESULT + self.slot();
        let (remote_addr, rkey) = self.inboxes[to].remote(place);
        let op = SendOp::FetchAdd { remote_addr, rkey, add };
        let wr_id = self.post(op, (at, 8), self.inboxes[to].srq.srqn());
        let number = &mut self.inboxes[to].target[place..place + 8];
        let before = u64::from_ne_bytes(number.try_into().unwrap());
        number.copy_from_slice(&before.wrapping_add(add).to_ne_bytes());
        let payload = Some((at, before.to_ne_bytes().to_vec()));
        self.sends.push_back(Due { payload, ..Due::success(wr_id, WcOpcode::FetchAdd) });
    }

    /// Another SRQ in the place of one, with receives posted or not. One beside it would be one too many.
    fn replace(&mut self, which: usize, note: &mut dyn FnMut(String)) {
        note(format!("another SRQ in the place of {which}"));
        self.settle();
        let old = &self.inboxes[which];
        assert_eq!(errno(self.domain.create_srq(&old.pd, &old.cq, &SIZE)), ENOMEM);
        self.gone.push(old.srq.srqn());
        drop(self.inboxes.remove(which));
        self.inboxes.insert(which, Inbox::new(&self.guest, &self.domain));
    }

    /// Asks for what the target refuses: an SRQ that isn't there, or of another domain; a key of another SRQ's memory.
    fn refused(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        self.settle();
        let [one, other] = [&self.inboxes[to], &self.inboxes[1 - to]];
        let there = [one, other, &self.foreign].map(|inbox| inbox.srq.srqn());
        let gone = self.gone.iter().copied().find(|srqn| !there.contains(srqn));
        let (remote_addr, rkey) = other.remote(0);
        let (op, srqn, status) = match rng.u8(..4) {
            0 => (SendOp::Write { remote_addr, rkey }, there[0], WcStatus::RemAccessErr),
            1 => (SendOp::Send, there[2], WcStatus::RemInvReqErr),
            2 => (SendOp::Send, gone.unwrap_or(NOBODY), WcStatus::RemInvReqErr),
            _ => (SendOp::Send, NOBODY, WcStatus::RemInvReqErr),
        };
        note(format!("{op:?} for SRQ {srqn:#x} is refused"));
        let wr_id = self.post(op, (0, 8), srqn);
        self.sends.push_back(Due::failed(wr_id, status));
        self.start_again();
    }

    /// A message that is longer than its receive has room for.
    fn too_long(&mut self, to: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        self.settle();
        if self.inboxes[to].posted.is_empty() {
            self.inboxes[to].receive(rng);
        }
        let length = SLOT + rng.usize(1..SLOT);
        note(format!("sends {length} bytes to {to}, which are too many"));
        let wr_id = self.post(SendOp::Send, (0, length), self.inboxes[to].srq.srqn());
        self.sends.push_back(Due::failed(wr_id, WcStatus::RemInvReqErr));
        self.inboxes[to].is_due(|slot| Due::failed(slot, WcStatus::LocLenErr));
        self.start_again();
    }

    /// Both ends are in error. Receives stay where they are.
    fn start_again(&mut self) {
        self.settle();
        assert_eq!(self.target.query().unwrap().qp_state, Some(QpState::Err));
        assert_eq!(self.sender.qp.query().unwrap().qp_state, Some(QpState::Err));
        self.sender.qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
        self.target.modify(&QpAttr::state(QpState::Reset)).unwrap();
        connect_extended(&self.sender, &self.target);
    }
}
