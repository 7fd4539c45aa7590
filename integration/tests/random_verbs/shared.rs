//! Receives that two connections share, and the event that few of them are left.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use paraverbs_verbs::{
    Access, Context, EventElement, EventType, Mr, Pd, RecvWr, SendOp, Srq, SrqInit, WcOpcode,
};

use crate::scene::{End, PATIENCE, errno, senders_to_srq};

const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
/// Receives that the queue holds, and bytes of each.
const MOST: u32 = 15;
const SLOT: usize = 512;

/// Fields in the order in which they go.
pub(crate) struct Shared {
    senders: [End; 2],
    receivers: [End; 2],
    srq: Srq,
    mr: Mr,
    _pd: Pd,
    guest: Context,
    /// Slots of the receives that are posted, in order, and those that are free.
    posted: VecDeque<usize>,
    free: Vec<usize>,
    /// The limit that the queue is armed with.
    limit: Option<usize>,
}

impl Shared {
    /// The second guest receives.
    pub(crate) fn new([other, guest]: [&Context; 2]) -> Self {
        let pd = guest.alloc_pd().unwrap();
        let srq = pd.create_srq(&SrqInit { max_wr: MOST, max_sge: 1 }).unwrap();
        let free: Vec<usize> = (0..usize::try_from(MOST).unwrap()).collect();
        let mr = pd.alloc_mr(free.len() * SLOT, Access::LOCAL_WRITE).unwrap();
        let [senders, receivers] = senders_to_srq(other, guest, &srq);
        let guest = guest.clone();
        Self { senders, receivers, srq, mr, _pd: pd, guest, posted: VecDeque::new(), free, limit: None }
    }

    /// Does something, and expects what must come of it.
    pub(crate) fn step(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        match rng.u8(..8) {
            0 => self.arm(rng, note),
            1 => {
                note("one receive too many, and a limit beyond the queue".into());
                while !self.free.is_empty() {
                    self.receive(rng);
                }
                assert_eq!(errno(self.srq.post_recv(&RecvWr { wr_id: 0, sges: &[] })), ENOMEM);
                assert_eq!(errno(self.srq.arm_limit(MOST + 1)), EINVAL);
            }
            2..5 => {
                note(format!("a receive beside {}", self.posted.len()));
                if !self.free.is_empty() {
                    self.receive(rng);
                }
            }
            _ => self.send(rng, note),
        }
    }

    fn receive(&mut self, rng: &mut Rng) {
        let slot = self.free.swap_remove(rng.usize(..self.free.len()));
        let sges = [self.mr.sge(slot * SLOT, u32::try_from(SLOT).unwrap())];
        self.srq.post_recv(&RecvWr { wr_id: slot as u64, sges: &sges }).unwrap();
        self.posted.push_back(slot);
    }

    /// Arms with a limit that isn't reached yet.
    fn arm(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        if self.posted.is_empty() {
            return;
        }
        let limit = rng.usize(1..=self.posted.len());
        note(format!("a limit of {limit} with {} posted", self.posted.len()));
        self.srq.arm_limit(u32::try_from(limit).unwrap()).unwrap();
        assert_eq!(self.srq.query().unwrap().srq_limit as usize, limit);
        self.limit = Some(limit);
    }

    fn send(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let Some(slot) = self.posted.pop_front() else { return };
        let which = rng.usize(..2);
        let bytes: Vec<u8> = (0..rng.usize(..=SLOT)).map(|_| rng.u8(..)).collect();
        note(format!("connection {which} sends {} bytes to the first receive of them all", bytes.len()));
        let (sender, receiver) = (&self.senders[which], &self.receivers[which]);
        let length = u32::try_from(bytes.len()).unwrap();
        sender.mr.write(0, &bytes).unwrap();
        sender.post(1, SendOp::Send, 0, length);
        sender.done(1);
        let wc = receiver.done(slot as u64);
        assert_eq!((wc.opcode, wc.byte_len), (WcOpcode::Recv, length));
        let mut arrived = vec![0; bytes.len()];
        self.mr.read(slot * SLOT, &mut arrived).unwrap();
        assert!(arrived == bytes, "another payload: {wc:?}");
        self.free.push(slot);
        if self.limit.is_some_and(|limit| self.posted.len() < limit) {
            note("that the limit is reached is told".into());
            self.limit = None;
            while !self.takes_limit(PATIENCE) {}
        }
        let armed = self.limit.map_or(0, |limit| u32::try_from(limit).unwrap());
        assert_eq!(self.srq.query().unwrap().srq_limit, armed);
    }

    /// Takes an event: whether it tells of the limit.
    fn takes_limit(&self, timeout: Duration) -> bool {
        let event = self.guest.get_async_event(timeout).unwrap().expect("an event");
        let of_limit = event.event_type == EventType::SrqLimitReached;
        assert!(!of_limit || event.element == EventElement::Srq(self.srq.srqn()), "{event:?}");
        of_limit
    }

    /// No event of a limit is there that hasn't been expected, and nothing has completed.
    pub(crate) fn settle(&mut self) {
        while let Some(event) = self.guest.get_async_event(Duration::ZERO).unwrap() {
            assert_ne!(event.event_type, EventType::SrqLimitReached);
        }
        self.senders.iter().chain(&self.receivers).for_each(End::nothing);
    }
}
