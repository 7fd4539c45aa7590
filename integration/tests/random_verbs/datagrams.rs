//! Datagrams between the guests, with a GRH and without one; what is wrong with some, and what comes of it.

use fastrand::Rng;
use paraverbs_verbs::{
    Ah, Context, GRH_BYTES, QpAttr, QpState, QpType, SendData, SendFlags, SendOp, SendWr, UdDest, WcOpcode,
    WcStatus,
};

use crate::scene::End;

const QKEY: u32 = 0x1234_5678;
/// Bytes of a slot for a datagram, where they are received, and most datagrams of a step.
const SLOT: usize = 8192;
const RECEIVED: usize = 0x4_0000;
const MOST: usize = 6;

/// One end, and its handles of the other's address: without a GRH, and with one. Fields in the order in which they go.
struct Side {
    ahs: [Ah; 2],
    end: End,
}

pub(crate) struct Datagrams {
    sides: [Side; 2],
    /// Bytes that a packet carries.
    mtu: usize,
}

/// A datagram on its way.
struct Sent {
    bytes: Vec<u8>,
    imm: Option<u32>,
    grh: bool,
}

impl Datagrams {
    pub(crate) fn new(guests: [&Context; 2]) -> Self {
        let [one, other] = guests.map(|guest| End::of_type(guest, QpType::Ud));
        for end in [&one, &other] {
            end.qp.to_datagrams(1, QKEY).unwrap();
        }
        let handles = |from: &End, to: &End| [false, true].map(|grh| from.ah(to, grh));
        let (of_one, of_other) = (handles(&one, &other), handles(&other, &one));
        let mtu = usize::try_from(one.guest.query_port(1).unwrap().active_mtu.bytes()).unwrap();
        Self { sides: [Side { ahs: of_one, end: one }, Side { ahs: of_other, end: other }], mtu }
    }

    /// Does something, and expects what must come of it.
    pub(crate) fn step(&mut self, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        let from = rng.usize(..2);
        match rng.u8(..8) {
            0 => self.too_long(from, rng, note),
            1 => self.wrong_key(from, rng, note),
            _ => {
                let count = rng.usize(1..=MOST);
                note(format!("{from} sends {count} datagrams"));
                self.some(from, count, rng);
            }
        }
    }

    /// Datagrams that arrive.
    fn some(&self, from: usize, count: usize, rng: &mut Rng) {
        let room = u32::try_from(GRH_BYTES + self.mtu).unwrap();
        for id in 0..count {
            self.sides[1 - from].end.receive(id as u64, RECEIVED + id * SLOT, room);
        }
        let sent: Vec<Sent> = (0..count).map(|id| self.send(from, id, QKEY, rng)).collect();
        for id in 0..count {
            assert_eq!(self.sides[from].end.done(id as u64).opcode, WcOpcode::Send);
        }
        for (id, sent) in sent.iter().enumerate() {
            self.arrived(from, id, sent);
        }
        self.sides.iter().for_each(|side| side.end.nothing());
    }

    fn send(&self, from: usize, id: usize, qkey: u32, rng: &mut Rng) -> Sent {
        let (side, to) = (&self.sides[from], &self.sides[1 - from].end);
        let bytes: Vec<u8> = (0..rng.usize(..=self.mtu)).map(|_| rng.u8(..)).collect();
        let (imm, grh) = (rng.bool().then(|| rng.u32(..)), rng.bool());
        side.end.mr.write(id * SLOT, &bytes).unwrap();
        let sges = [side.end.mr.sge(id * SLOT, u32::try_from(bytes.len()).unwrap())];
        let pieces = [&bytes[..]];
        let inline = bytes.len() <= 100 && rng.bool();
        let data = if inline { SendData::Inline(&pieces) } else { SendData::Sges(&sges) };
        let op = imm.map_or(SendOp::Send, SendOp::SendImm);
        let wr = SendWr { wr_id: id as u64, op, data, flags: SendFlags::SIGNALED };
        let to = UdDest { ah: &side.ahs[usize::from(grh)], remote_qpn: to.qp.qpn(), remote_qkey: qkey };
        side.end.qp.post_send_ud(&wr, &to).unwrap();
        Sent { bytes, imm, grh }
    }

    fn arrived(&self, from: usize, id: usize, sent: &Sent) {
        let (sender, receiver) = (&self.sides[from].end, &self.sides[1 - from].end);
        let wc = receiver.done(id as u64);
        assert_eq!((wc.opcode, wc.imm, wc.grh), (WcOpcode::Recv, sent.imm, sent.grh), "{wc:?}");
        assert_eq!((wc.src_qp, wc.byte_len as usize), (sender.qp.qpn(), GRH_BYTES + sent.bytes.len()));
        let place = RECEIVED + id * SLOT;
        assert!(receiver.bytes(place + GRH_BYTES, sent.bytes.len()) == sent.bytes, "another payload: {wc:?}");
        if sent.grh {
            let gids = [sender, receiver].map(|end| end.guest.query_gid(1, 0).unwrap().0);
            assert_eq!(receiver.bytes(place + 8, 32), gids.concat());
        }
    }

    /// A datagram with a wrong Q_Key is counted and dropped; the one after it arrives in its place.
    fn wrong_key(&self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        note(format!("{from} sends with a wrong Q_Key"));
        let violations = || self.sides[1 - from].end.guest.query_port(1).unwrap().qkey_viol_cntr;
        let before = violations();
        let end = &self.sides[from].end;
        let _dropped = self.send(from, MOST, QKEY ^ 1 << rng.u8(..31), rng);
        end.done(MOST as u64);
        self.some(from, 1, rng);
        assert_eq!(violations(), before + 1);
    }

    /// A datagram that no packet holds stops the send queue until it is started again.
    fn too_long(&self, from: usize, rng: &mut Rng, note: &mut dyn FnMut(String)) {
        note(format!("{from} sends more than a packet holds"));
        let (side, to) = (&self.sides[from], &self.sides[1 - from].end);
        let dest = UdDest { ah: &side.ahs[0], remote_qpn: to.qp.qpn(), remote_qkey: QKEY };
        let length = u32::try_from(self.mtu + rng.usize(1..1000)).unwrap();
        side.end.post_datagram(1, SendOp::Send, 0, length, &dest);
        side.end.failed(1, WcStatus::LocLenErr);
        side.end.post_datagram(2, SendOp::Send, 0, 1, &dest);
        side.end.failed(2, WcStatus::WrFlushErr);
        assert_eq!(side.end.qp.query().unwrap().qp_state, Some(QpState::Sqe));
        side.end.qp.modify(&QpAttr::state(QpState::Rts)).unwrap();
    }
}
