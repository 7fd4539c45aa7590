//! A machine's QP0 and the little driver behind it: it answers SMPs with the node's own agents, as the stock
//! driver does through MAD_IFC. So every lab tests the way of SMPs in and out.

use std::cell::RefCell;

use mlx4_wire::cqe::Cqe;
use mlx4_wire::ctx::qp::ServiceType;
use mlx4_wire::mad::header::{Method, MgmtClass};
use mlx4_wire::mad::notice::Notice;
use mlx4_wire::mad::smp::Smp;
use mlx4_wire::packet::{Bth, Deth, LinkNextHeader, Lrh, PacketOpcode};
use mlx4_wire::wqe::{CtrlSeg, MlxCtrlSeg, Opcode};
use mlx4_wire::{Number24, U16};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::lab::Lab;
use super::machine::{Buffer, Machine};
use super::queues::{Done, QpConfig, TestCq, TestQp, Unit, ctrl, done, inline, part, units, whole};
use crate::node::MadInput;

/// First special queue pair.
const SPECIAL: u32 = 0x40;
/// Receive WQEs of QP0.
const BUFFERS: usize = 16;

/// Room for a GRH, and a MAD.
const RECEIVE_BYTES: u64 = 40 + 256;

pub(super) struct Agent {
    cq: TestCq,
    qp: TestQp,
    receive: Vec<Buffer>,
    send: Buffer,
    port: u8,
    traps: RefCell<Vec<Notice>>,
}

impl Agent {
    /// The agents of a machine's ports.
    pub(super) fn all(machine: &Machine, ports: u8) -> Vec<Self> {
        machine.running().set_special_base(SPECIAL);
        (1..=ports).map(|port| Self::new(machine, port)).collect()
    }

    fn new(machine: &Machine, port: u8) -> Self {
        let cq = TestCq::new(machine, 7);
        let qp = special(machine, &cq, SPECIAL + u32::from(port) - 1, 0);
        let receive: Vec<_> = (0..BUFFERS).map(|_| machine.buffer(RECEIVE_BYTES)).collect();
        for buffer in &receive {
            qp.post_receive(machine, &[whole(buffer)]);
        }
        Self { cq, qp, receive, send: machine.buffer(256), port, traps: RefCell::default() }
    }

    /// The notices that came as traps, to be forwarded.
    pub(super) fn traps(&self) -> Vec<Notice> {
        self.traps.borrow().clone()
    }

    /// Answers what has come. False if nothing has.
    pub(super) fn serve(&self, machine: &Machine) -> bool {
        let mut worked = false;
        while let Some(cqe) = self.cq.poll(machine) {
            worked = true;
            assert!(!cqe.owner.is_error(), "QP0 has failed: {:?}", done(&cqe));
            if !cqe.owner.is_send() {
                self.answer(machine, &cqe);
            }
        }
        worked
    }

    fn answer(&self, machine: &Machine, cqe: &Cqe) {
        assert_eq!(cqe.byte_count.get(), 296);
        let buffer = &self.receive[usize::from(cqe.wqe_index.get()) % BUFFERS];
        let mad: [u8; 256] = machine.read(buffer.bus + 40, 256).try_into().unwrap();
        self.qp.post_receive(machine, &[whole(buffer)]);
        let mut smp = Smp::from_mad(&mad);
        if smp.header.method == Method::TRAP {
            assert_eq!(cqe.slid.get(), 0);
            self.traps.borrow_mut().push(smp.attribute::<Notice>());
        }
        let directed = smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE;
        if directed {
            smp.return_path[usize::from(smp.hop_pointer())] = self.port;
            smp.set_hop_pointer(smp.hop_pointer() + 1);
        }
        let slid = cqe.slid.get();
        let input = MadInput { slid, ..MadInput::default() };
        let done = machine.hca.node.process_mad(self.port, &smp.to_mad(), &input);
        machine.hca.port_changed(&done.changes);
        let Some(reply) = done.reply else { return };
        let mut reply = Smp::from_mad(&reply);
        if directed {
            reply.set_returning(true);
            reply.set_hop_pointer(reply.hop_pointer() - 1);
        }
        machine.fill(&self.send, &reply.to_mad());
        let dlid = if directed { 0xffff } else { slid };
        self.qp.post(machine, special_ctrl(true, directed), &wqe(dlid, 0, 0, &self.send, 0));
        // The reply's memory is used again for the next one.
        machine.hca.run();
    }
}

/// A special queue pair in RTS.
fn special(machine: &Machine, cq: &TestCq, qpn: u32, qkey: u32) -> TestQp {
    let config = QpConfig { log2_receives: 4, strides: (8, 4), qkey, ..QpConfig::new(ServiceType::MLX) };
    let qp = TestQp::with_number(machine, cq, cq, config, qpn);
    qp.to_rtr(machine, 0, FromZeros::new_zeroed(), 0);
    qp.to_rts(machine, 0);
    qp
}

fn special_ctrl(vl15: bool, header_slid: bool) -> CtrlSeg {
    let plain = ctrl(Opcode::SEND);
    let mut special = MlxCtrlSeg::read_from_bytes(plain.as_bytes()).unwrap();
    special.flags.set_vl15(vl15);
    special.flags.set_header_slid(header_slid);
    CtrlSeg::read_from_bytes(special.as_bytes()).unwrap()
}

/// The units of a special WQE: headers inline, a MAD, and the placeholder of the ICRC.
fn wqe(dlid: u16, number: u32, qkey: u32, mad: &Buffer, pad: u64) -> Vec<Unit> {
    let mut lrh = Lrh::new_zeroed();
    lrh.start.set_next_header(LinkNextHeader::BTH);
    lrh.dlid = U16::new(dlid);
    lrh.slid = U16::new(dlid);
    let mut bth = Bth::new_zeroed();
    bth.set_opcode(PacketOpcode::UD_SEND_ONLY);
    bth.pkey = U16::new(0xffff);
    bth.dest_qp = Number24::wrapping(number);
    let mut deth = Deth::new_zeroed();
    deth.qkey.set(qkey);
    deth.src_qp = Number24::wrapping(number);
    let headers = [lrh.as_bytes(), bth.as_bytes(), deth.as_bytes()].concat();
    let mut list = inline(16, &headers);
    list.extend(units(&part(mad, 0, 256 + pad)));
    if pad == 0 {
        list.extend(inline(16 + 16 * list.len(), &[0; 4]));
    }
    list
}

#[test]
fn qp1_gets_mads_with_their_addresses_and_pkey_index() {
    let lab = Lab::new(2);
    let qkey = 0x8001_0000;
    let cqs: Vec<_> = lab.machines.iter().map(|m| TestCq::new(m, 4)).collect();
    let qps: Vec<_> =
        lab.machines.iter().zip(&cqs).map(|(m, cq)| special(m, cq, SPECIAL + 2, qkey)).collect();
    let (a, b) = (&lab.machines[0], &lab.machines[1]);
    let receive = b.buffer(RECEIVE_BYTES);
    for pad in [0, 4] {
        qps[1].post_receive(b, &[whole(&receive)]);
        let mad = a.buffer(260);
        a.fill(&mad, &super::pattern(260, 3));
        let list = wqe(b.port().lid(), 1, qkey, &mad, pad);
        qps[0].post(a, special_ctrl(false, false), &list);
        assert!(matches!(lab.done(0, &cqs[0]), Done::Good { .. }));
        let cqe = lab.cqe(1, &cqs[1]);
        assert_eq!((cqe.owner.opcode().0, cqe.byte_count.get(), cqe.qp.qpn()), (1, 296, SPECIAL + 2));
        assert_eq!((cqe.source.remote_qpn(), cqe.slid.get()), (1, a.port().lid()));
        assert_eq!((cqe.immediate.get() & 0x7f, cqe.source.grh()), (0, false));
        assert_eq!(b.contents(&receive)[40..], super::pattern(260, 3)[..256]);
    }
}

#[test]
fn qp1_refuses_a_wrong_qkey_and_vl15() {
    let lab = Lab::new(1);
    let m = &lab.machines[0];
    let cq = TestCq::new(m, 4);
    let qp = special(m, &cq, SPECIAL + 2, 0x8001_0000);
    let receive = m.buffer(RECEIVE_BYTES);
    qp.post_receive(m, &[whole(&receive)]);
    let mad = m.buffer(256);
    let before = m.hca.counters().dropped_datagrams.get();
    qp.post(m, special_ctrl(false, false), &wqe(m.port().lid(), 1, 0x8001_0001, &mad, 0));
    qp.post(m, special_ctrl(true, false), &wqe(m.port().lid(), 1, 0x8001_0000, &mad, 0));
    lab.settle();
    assert!(matches!(lab.done(0, &cq), Done::Good { .. }));
    assert!(matches!(lab.done(0, &cq), Done::Good { .. }));
    assert!(cq.poll(m).is_none());
    assert_eq!(m.hca.counters().dropped_datagrams.get() - before, 2);
    assert_eq!(m.port().q_key_violations.get(), 1);
}

#[test]
fn headers_that_make_no_datagram_are_an_operation_error() {
    let lab = Lab::new(1);
    let m = &lab.machines[0];
    let cq = TestCq::new(m, 4);
    let qp = special(m, &cq, SPECIAL + 2, 0x8001_0000);
    let list = inline(16, &[0; 20]);
    qp.post(m, special_ctrl(false, false), &list);
    assert_eq!(lab.done(0, &cq), Done::Failed(mlx4_wire::cqe::Syndrome::LOCAL_QP_OP_ERR));
}
