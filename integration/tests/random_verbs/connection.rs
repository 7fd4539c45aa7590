//! A connection between the guests, and what the oracle knows of it.
//!
//! Each side's memory has parts: what it sends from (only it writes there), what the other side writes to, what
//! receives bring, what reads and atomics bring. So what must be where follows from one side's requests in order.

use std::collections::VecDeque;

use fastrand::Rng;
use paraverbs_verbs::{
    Context, QpAttr, QpInit, QpState, QpType, RecvWr, SendData, SendFlags, SendOp, SendWr, WcOpcode, WcStatus,
};

use crate::due::Due;
use crate::scene::{End, completion, errno};

const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;

/// Bytes of a slot of each part, and slots.
const SLOT: usize = 4096;
const SLOTS: usize = 12;
/// Where the parts are.
const SOURCE: usize = 0;
const TARGET: usize = 0x1_0000;
const TARGET_BYTES: usize = 0x2000;
const RECEIVED: usize = 0x2_0000;
const RESULT: usize = 0x3_0000;

/// What tells a receive's wr_id from a request's.
const RECEIVE: u64 = 1 << 40;

/// Ordered behind reads and atomics before it.
const FENCED: SendFlags = SendFlags { fence: true, ..SendFlags::SIGNALED };

/// A receive that nobody has sent to yet.
#[derive(Debug)]
struct Posted {
    wr_id: u64,
    slot: usize,
}

struct Side {
    end: End,
    /// What the other side has written.
    target: Vec<u8>,
    posted: VecDeque<Posted>,
    sends: VecDeque<Due>,
    receives: VecDeque<Due>,
    /// Work requests so far, and those among them that have a slot.
    next: u64,
    sent: usize,
}

impl Side {
    fn new(end: End) -> Self {
        let target = vec![0; TARGET_BYTES];
        Self {
            end,
            target,
            posted: VecDeque::new(),
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            next: 0,
            sent: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes every completion that must come, in order.
    fn poll(&mut self) {
        while !(self.sends.is_empty() && self.receives.is_empty()) {
            let wc = completion(&self.end.cq);
            let queue = if wc.wr_id & RECEIVE == 0 { &mut self.sends } else { &mut self.receives };
            let due = queue.pop_front().unwrap_or_else(|| panic!("nothing is due, but {wc:?}"));
            due.check(&wc, self.end.qp.qpn(), &self.end.mr);
        }
        self.end.nothing();
    }

    /// What is posted for receives is flushed.
    fn flush(&mut self) {
        let flushed = self.posted.drain(..).map(|posted| Due::failed(posted.wr_id, WcStatus::WrFlushErr));
        self.receives.extend(flushed);
    }

    fn write(&self, wr_id: u64, length: u32, (remote_addr, rkey): (u64, u32)) -> paraverbs_verbs::Result<()> {
        let sges = [self.end.mr.sge(SOURCE, length)];
        let op = SendOp::Write { remote_addr, rkey };
        self.end.qp.post_send(&SendWr { wr_id, op, data: SendData::Sges(&sges), flags: FENCED })
    }
}

/// How both queue pairs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connected,
    /// Both in error.
    Failed,
}

pub(crate) struct Connection {
    sides: [Side; 2],
    kind: QpType,
    state: State,
}

impl Connection {
    pub(crate) fn new(guests: [&Context; 2], kind: QpType) -> Self {
        let masked_atomics = kind == QpType::Rc;
        let end = |guest: &Context| {
            let pd = guest.alloc_pd().unwrap();
            End::with(guest, pd, |init| QpInit { qp_type: kind, masked_atomics, ..init })
        };
        let sides = guests.map(|guest| Side::new(end(guest)));
        let new = Self { sides, kind, state: State::Connected };
        new.connect();
        new
    }

    fn connect(&self) {
        let [one, other] = [&self.sides[0].end, &self.sides[1].end];
        if self.kind == QpType::Rc {
            one.connect(other);
            other.connect(one);
        } else {
            one.connect_unreliably(other);
            other.connect_unreliably(one);
        }
    }

    /// Takes all completions, and compares memory.
    pub(crate) fn settle(&mut self) {
        self.sides.iter_mut().for_each(Side::poll);
        for side in &self.sides {
            assert!(side.end.bytes(TARGET, TARGET_BYTES) == side.target, "another target");
        }
    }

    /// Does something, and expects what must come of it.
    pub(crate) fn step(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let from = rng.usize(..2);
        let choice = rng.u8(..20);
        if self.state == State::Failed {
            match choice {
                0..8 => self.post_in_error(from, note),
                _ => self.start_again(note),
            }
            return;
        }
        match choice {
            0..5 => self.receive(from, note),
            5..9 => self.send(from, rng, note),
            9..12 => self.write_to(from, rng, note),
            12..14 if self.kind == QpType::Rc => self.read(from, rng, note),
            14..16 if self.kind == QpType::Rc => self.atomic(from, rng, note),
            16 => {
                note("settle".into());
                self.settle();
            }
            17 => self.fill(from, note),
            18 => self.refused(from, note),
            19 => self.fail(from, rng, note),
            _ => self.sides[from].poll(),
        }
    }

    fn receive(&mut self, at: usize, note: &mut dyn FnMut(String)) {
        let side = &mut self.sides[at];
        if side.posted.len() + side.receives.len() >= SLOTS {
            note(format!("{at} takes what came"));
            return side.poll();
        }
        let number = side.number();
        // Slots come back in the order in which they were taken.
        let slot = (side.posted.back().map_or(0, |last| last.slot + 1)) % SLOTS;
        let in_use = side
            .receives
            .iter()
            .any(|due| due.payload.as_ref().is_some_and(|(at, _)| *at == RECEIVED + slot * SLOT));
        if in_use {
            side.poll();
        }
        note(format!("{at} posts a receive"));
        let wr_id = number | RECEIVE;
        let length = u32::try_from(SLOT).unwrap();
        let sges = [side.end.mr.sge(RECEIVED + slot * SLOT, length)];
        side.end.qp.post_recv(&RecvWr { wr_id, sges: &sges }).unwrap();
        side.posted.push_back(Posted { wr_id, slot });
    }

    /// Room for a request; its number, and its slot with random bytes.
    fn source(&mut self, from: usize, length: usize, rng: &mut Rng) -> (u64, usize, Vec<u8>) {
        if self.sides[from].sends.len() >= SLOTS {
            self.sides[from].poll();
        }
        let number = self.sides[from].number();
        let slot = self.sides[from].sent % SLOTS;
        self.sides[from].sent += 1;
        let bytes: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        self.sides[from].end.mr.write(SOURCE + slot * SLOT, &bytes).unwrap();
        (number, slot, bytes)
    }

    fn send(&mut self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let to = 1 - from;
        if self.sides[to].posted.is_empty() {
            return self.receive(to, note);
        }
        let length = rng.usize(..=SLOT);
        let imm = rng.bool().then(|| rng.u32(..));
        note(format!("{from} sends {length} bytes with {imm:?}"));
        let (wr_id, slot, bytes) = self.source(from, length, rng);
        let byte_len = u32::try_from(length).unwrap();
        let op = imm.map_or(SendOp::Send, SendOp::SendImm);
        let inline = length <= 100 && rng.bool();
        let side = &mut self.sides[from];
        let (sges, pieces) = ([side.end.mr.sge(SOURCE + slot * SLOT, byte_len)], [&bytes[..]]);
        let data = if inline { SendData::Inline(&pieces) } else { SendData::Sges(&sges) };
        side.end.qp.post_send(&SendWr { wr_id, op, data, flags: FENCED }).unwrap();
        side.sends.push_back(Due::success(wr_id, WcOpcode::Send));
        let posted = self.sides[to].posted.pop_front().unwrap();
        self.sides[to].receives.push_back(Due {
            byte_len: Some(byte_len),
            imm,
            payload: Some((RECEIVED + posted.slot * SLOT, bytes)),
            ..Due::success(posted.wr_id, WcOpcode::Recv)
        });
    }

    fn write_to(&mut self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let to = 1 - from;
        let length = rng.usize(..=SLOT);
        let at = rng.usize(..=TARGET_BYTES - length);
        let imm = (rng.bool() && !self.sides[to].posted.is_empty()).then(|| rng.u32(..));
        note(format!("{from} writes {length} bytes at {at:#x} with {imm:?}"));
        let (wr_id, slot, bytes) = self.source(from, length, rng);
        let byte_len = u32::try_from(length).unwrap();
        let (remote_addr, rkey) = self.remote(to, at);
        let op = match imm {
            Some(imm) => SendOp::WriteImm { remote_addr, rkey, imm },
            None => SendOp::Write { remote_addr, rkey },
        };
        let side = &mut self.sides[from];
        let sges = [side.end.mr.sge(SOURCE + slot * SLOT, byte_len)];
        side.end.qp.post_send(&SendWr { wr_id, op, data: SendData::Sges(&sges), flags: FENCED }).unwrap();
        side.sends.push_back(Due::success(wr_id, WcOpcode::RdmaWrite));
        let other = &mut self.sides[to];
        other.target[at..at + length].copy_from_slice(&bytes);
        if imm.is_some() {
            let posted = other.posted.pop_front().unwrap();
            let due = Due::success(posted.wr_id, WcOpcode::RecvRdmaWithImm);
            other.receives.push_back(Due { byte_len: Some(byte_len), imm, ..due });
        }
    }

    fn remote(&self, to: usize, at: usize) -> (u64, u32) {
        let mr = &self.sides[to].end.mr;
        (mr.addr() + u64::try_from(TARGET + at).unwrap(), mr.rkey())
    }

    fn read(&mut self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let to = 1 - from;
        let length = rng.usize(..=SLOT);
        let at = rng.usize(..=TARGET_BYTES - length);
        note(format!("{from} reads {length} bytes at {at:#x}"));
        let (wr_id, slot, _) = self.source(from, 0, rng);
        let (remote_addr, rkey) = self.remote(to, at);
        let payload = self.sides[to].target[at..at + length].to_vec();
        let byte_len = u32::try_from(length).unwrap();
        let side = &mut self.sides[from];
        let sges = [side.end.mr.sge(RESULT + slot * SLOT, byte_len)];
        let op = SendOp::Read { remote_addr, rkey };
        side.end.qp.post_send(&SendWr { wr_id, op, data: SendData::Sges(&sges), flags: FENCED }).unwrap();
        side.sends.push_back(Due {
            byte_len: Some(byte_len),
            payload: Some((RESULT + slot * SLOT, payload)),
            ..Due::success(wr_id, WcOpcode::RdmaRead)
        });
    }

    fn atomic(&mut self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let to = 1 - from;
        let at = 8 * rng.usize(..TARGET_BYTES / 8);
        let (wr_id, slot, _) = self.source(from, 0, rng);
        let (remote_addr, rkey) = self.remote(to, at);
        let place = &mut self.sides[to].target[at..at + 8];
        let before = u64::from_ne_bytes(place.try_into().unwrap());
        let (op, opcode, after) = operation(rng, before, (remote_addr, rkey));
        note(format!("{from}: {op:?}"));
        place.copy_from_slice(&after.to_ne_bytes());
        let side = &mut self.sides[from];
        let sges = [side.end.mr.sge(RESULT + slot * SLOT, 8)];
        side.end.qp.post_send(&SendWr { wr_id, op, data: SendData::Sges(&sges), flags: FENCED }).unwrap();
        let payload = Some((RESULT + slot * SLOT, before.to_ne_bytes().to_vec()));
        side.sends.push_back(Due { payload, ..Due::success(wr_id, opcode) });
    }

    /// Posts as many requests as there is room for, and one more.
    fn fill(&mut self, from: usize, note: &mut dyn FnMut(String)) {
        note(format!("{from} fills its send queue"));
        let to = self.remote(1 - from, 0);
        let side = &mut self.sides[from];
        side.poll();
        for _ in 0..side.end.qp.cap().max_send_wr {
            let wr_id = side.number();
            side.write(wr_id, 0, to).unwrap();
            side.sends.push_back(Due::success(wr_id, WcOpcode::RdmaWrite));
        }
        assert_eq!(errno(side.write(0, 0, to)), ENOMEM);
        side.poll();
    }

    /// Asks for what no queue pair in RTS does.
    fn refused(&mut self, from: usize, note: &mut dyn FnMut(String)) {
        note(format!("{from} asks for what is refused"));
        let qp = &self.sides[from].end.qp;
        for state in [QpState::Init, QpState::Rtr] {
            assert_eq!(errno(qp.modify(&QpAttr::state(state))), EINVAL);
        }
        assert_eq!(qp.query().unwrap().qp_state, Some(QpState::Rts));
    }

    /// Brings both queue pairs into error: by a wrong key, or because somebody says so.
    fn fail(&mut self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        self.settle();
        let by_key = self.kind == QpType::Rc && rng.bool();
        note(format!("{from} ends the connection, by a wrong key: {by_key}"));
        if by_key {
            let (address, rkey) = self.remote(1 - from, 0);
            let side = &mut self.sides[from];
            let wr_id = side.number();
            side.write(wr_id, 8, (address, rkey ^ 1)).unwrap();
            side.sends.push_back(Due::failed(wr_id, WcStatus::RemAccessErr));
        } else {
            for side in &self.sides {
                side.end.qp.modify(&QpAttr::state(QpState::Err)).unwrap();
            }
        }
        self.sides.iter_mut().for_each(Side::flush);
        self.settle();
        for side in &self.sides {
            assert_eq!(side.end.qp.query().unwrap().qp_state, Some(QpState::Err));
        }
        self.state = State::Failed;
    }

    fn post_in_error(&mut self, from: usize, note: &mut dyn FnMut(String)) {
        note(format!("{from} posts in error"));
        let to = self.remote(1 - from, 0);
        let side = &mut self.sides[from];
        let wr_id = side.number();
        side.write(wr_id, 8, to).unwrap();
        side.sends.push_back(Due::failed(wr_id, WcStatus::WrFlushErr));
        side.poll();
    }

    fn start_again(&mut self, note: &mut dyn FnMut(String)) {
        note("both start again".into());
        self.settle();
        for side in &self.sides {
            side.end.qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
        }
        self.connect();
        self.state = State::Connected;
    }
}

/// An atomic operation on a number somewhere, how it completes, and what the number is then.
fn operation(rng: &mut Rng, before: u64, (remote_addr, rkey): (u64, u32)) -> (SendOp, WcOpcode, u64) {
    let (add, swap) = (rng.u64(..), rng.u64(..));
    let compare = if rng.bool() { before } else { rng.u64(..) };
    match rng.u8(..4) {
        0 => (SendOp::FetchAdd { remote_addr, rkey, add }, WcOpcode::FetchAdd, before.wrapping_add(add)),
        1 => {
            let after = if compare == before { swap } else { before };
            (SendOp::CompareSwap { remote_addr, rkey, compare, swap }, WcOpcode::CompSwap, after)
        }
        2 => {
            // Few bits, so that they are equal now and then.
            let (compare_mask, swap_mask) = (1 << rng.u8(..64) | 1 << rng.u8(..64), rng.u64(..));
            let equal = (before ^ compare) & compare_mask == 0;
            let after = if equal { before & !swap_mask | swap & swap_mask } else { before };
            let op = SendOp::MaskedCompareSwap { remote_addr, rkey, compare, swap, compare_mask, swap_mask };
            (op, WcOpcode::MaskedCompSwap, after)
        }
        _ => {
            let boundary = rng.u64(..) & rng.u64(..);
            let op = SendOp::MaskedFetchAdd { remote_addr, rkey, add, boundary };
            (op, WcOpcode::MaskedFetchAdd, added(before, add, boundary))
        }
    }
}

/// A sum bit by bit, out of whose marked bits nothing is carried.
fn added(one: u64, other: u64, boundary: u64) -> u64 {
    let (mut sum, mut carry) = (0, 0);
    for place in 0..64 {
        let bit = |number: u64| number >> place & 1;
        let here = bit(one) + bit(other) + carry;
        sum |= (here & 1) << place;
        carry = if bit(boundary) == 1 { 0 } else { here >> 1 };
    }
    sum
}
