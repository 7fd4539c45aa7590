//! Memory windows of both types on a region of the second guest, through which the first one writes and reads.

use fastrand::Rng;
use paraverbs_verbs::{
    Access, Context, Mr, Mw, MwBind, MwType, Pd, QpAttr, QpState, SendFlags, SendOp, WcOpcode, WcStatus,
    inc_rkey,
};

use crate::scene::{End, connect};

const BYTES: usize = 8192;
/// Types of the windows.
const TYPES: [MwType; 2] = [MwType::Type1, MwType::Type2];

/// What a window is bound to.
#[derive(Clone, Copy, Debug)]
struct Bound {
    rkey: u32,
    offset: usize,
    length: usize,
    writes: bool,
}

/// Fields in the order in which they go.
pub(crate) struct Windows {
    ends: [End; 2],
    windows: [Mw; 2],
    bound: [Option<Bound>; 2],
    /// Keys that were good once.
    old: Vec<u32>,
    mr: Mr,
    content: Vec<u8>,
    pd: Pd,
}

impl Windows {
    pub(crate) fn new(guests: [&Context; 2]) -> Self {
        let pd = guests[1].alloc_pd().unwrap();
        let mr = pd.alloc_mr(BYTES, Access::ALL | Access::MW_BIND).unwrap();
        let ends = [End::new(guests[0]), End::sharing(guests[1], &pd)];
        connect(&ends);
        let windows = TYPES.map(|mw_type| pd.alloc_mw(mw_type).unwrap());
        Self { ends, windows, bound: [None; 2], old: Vec::new(), mr, content: vec![0; BYTES], pd }
    }

    /// Does something, and expects what must come of it.
    pub(crate) fn step(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let which = rng.usize(..2);
        match (self.bound[which], rng.u8(..10)) {
            (Some(bound), 0) => self.beyond(bound, rng, note),
            (_, 1) => self.stale(rng, note),
            (Some(_), 2) => self.unbind(which, note),
            (Some(bound), 3..) if bound.writes => self.write(bound, rng, note),
            (Some(bound), 3..) => self.read(bound, rng, note),
            _ => self.bind(which, rng, note),
        }
    }

    fn bind(&mut self, which: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        if which == 1 && self.bound[1].is_some() {
            // What is of type 2 is invalidated first.
            self.unbind(1, note);
        }
        let offset = rng.usize(..BYTES);
        let length = rng.usize(1..=BYTES - offset);
        let writes = rng.bool();
        note(format!("binds window {which} to {length} bytes at {offset:#x}, for writes: {writes}"));
        let access = if writes { Access::REMOTE_WRITE } else { Access::REMOTE_READ };
        let rkey = self.post_bind(which, (offset, length), access);
        self.old.extend(self.bound[which].map(|bound| bound.rkey));
        self.bound[which] = Some(Bound { rkey, offset, length, writes });
    }

    fn post_bind(&self, which: usize, (offset, length): (usize, usize), access: Access) -> u32 {
        let (mw, other) = (&self.windows[which], &self.ends[1]);
        let (offset, length) = (offset as u64, length as u64);
        let bind = MwBind { wr_id: 1, mr: &self.mr, offset, length, access, flags: SendFlags::SIGNALED };
        let rkey = match mw.mw_type() {
            MwType::Type1 => other.qp.bind_mw(mw, &bind).unwrap(),
            MwType::Type2 => {
                let rkey = inc_rkey(mw.rkey());
                other.qp.post_bind_mw(mw, rkey, &bind).unwrap();
                rkey
            }
        };
        assert_eq!(other.done(1).opcode, WcOpcode::BindMw);
        assert_eq!(mw.rkey(), rkey);
        rkey
    }

    /// Of type 1 by a bind to nothing, of type 2 by a message that names its key.
    fn unbind(&mut self, which: usize, note: &mut dyn FnMut(String)) {
        let Some(bound) = self.bound[which].take() else { return };
        note(format!("ends the bind of window {which}"));
        if which == 0 {
            self.post_bind(0, (0, 0), Access::NONE);
        } else {
            let [one, other] = &self.ends;
            other.receive(2, 0, 8);
            one.post(2, SendOp::SendInvalidate(bound.rkey), 0, 8);
            one.done(2);
            assert_eq!(other.done(2).invalidated_rkey, Some(bound.rkey));
        }
        self.old.push(bound.rkey);
    }

    fn address(&self, offset: usize) -> u64 {
        self.mr.addr() + offset as u64
    }

    fn write(&mut self, bound: Bound, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let skipped = rng.usize(..bound.length);
        let bytes: Vec<u8> = (0..rng.usize(1..=bound.length - skipped)).map(|_| rng.u8(..)).collect();
        let at = bound.offset + skipped;
        note(format!("writes {} bytes at {at:#x} through {bound:?}", bytes.len()));
        let one = &self.ends[0];
        one.mr.write(0, &bytes).unwrap();
        let op = SendOp::Write { remote_addr: self.address(at), rkey: bound.rkey };
        one.post(3, op, 0, u32::try_from(bytes.len()).unwrap());
        one.done(3);
        self.content[at..at + bytes.len()].copy_from_slice(&bytes);
        self.settle();
    }

    fn read(&self, bound: Bound, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let skipped = rng.usize(..bound.length);
        let length = rng.usize(1..=bound.length - skipped);
        let at = bound.offset + skipped;
        note(format!("reads {length} bytes at {at:#x} through {bound:?}"));
        let one = &self.ends[0];
        let op = SendOp::Read { remote_addr: self.address(at), rkey: bound.rkey };
        one.post(4, op, 0, u32::try_from(length).unwrap());
        one.done(4);
        assert!(one.bytes(0, length) == self.content[at..at + length], "another payload");
    }

    /// One byte too far, or the other direction.
    fn beyond(&mut self, bound: Bound, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let (offset, writes, length) = match rng.u8(..3) {
            0 => (bound.offset + rng.usize(..bound.length), !bound.writes, 1),
            1 if bound.offset > 0 => (bound.offset - 1, bound.writes, 1),
            _ => (bound.offset, bound.writes, bound.length + 1),
        };
        note(format!("{length} bytes at {offset:#x}, writes: {writes}, are not of {bound:?}"));
        self.refused(offset, bound.rkey, writes, length);
    }

    fn stale(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        if self.old.is_empty() {
            return;
        }
        let rkey = self.old[rng.usize(..self.old.len())];
        note(format!("key {rkey:#x} is no longer good"));
        self.refused(rng.usize(..BYTES - 8), rkey, true, 8);
    }

    /// The HCA refuses it, and both ends start again, with new windows.
    fn refused(&mut self, offset: usize, rkey: u32, writes: bool, length: usize) {
        let remote_addr = self.address(offset);
        let op =
            if writes { SendOp::Write { remote_addr, rkey } } else { SendOp::Read { remote_addr, rkey } };
        self.ends[0].post(5, op, 0, u32::try_from(length).unwrap());
        self.ends[0].failed(5, WcStatus::RemAccessErr);
        self.settle();
        for end in &self.ends {
            end.qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
        }
        let fresh = TYPES.map(|mw_type| self.pd.alloc_mw(mw_type).unwrap());
        for window in std::mem::replace(&mut self.windows, fresh) {
            window.dealloc().unwrap();
        }
        self.bound = [None; 2];
        // Their numbers may come back.
        self.old.clear();
        connect(&self.ends);
    }

    /// The region is as the oracle has it.
    pub(crate) fn settle(&self) {
        let mut bytes = vec![0; BYTES];
        self.mr.read(0, &mut bytes).unwrap();
        assert!(bytes == self.content, "another region");
        self.ends.iter().for_each(End::nothing);
    }
}
