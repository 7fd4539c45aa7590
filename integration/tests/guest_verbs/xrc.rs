//! XRC: one connection to many SRQs.

use paraverbs_verbs::{
    Access, Context, Cq, Mr, Pd, QpAttr, QpInit, QpState, QpType, RecvWr, SendData, SendFlags, SendOp,
    SendWr, Srq, SrqInit, Wc, WcOpcode, WcStatus, XrcRecvQp, Xrcd,
};

use crate::scene::{End, Scene, completion, connect_extended, errno};

const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const SIZE: SrqInit = SrqInit { max_wr: 15, max_sge: 1 };

/// An SRQ of XRC with a CQ and memory of its own. Fields in the order in which they go.
struct Inbox {
    srq: Srq,
    cq: Cq,
    mr: Mr,
    pd: Pd,
}

impl Inbox {
    fn new(guest: &Context, domain: &Xrcd) -> Self {
        let (cq, pd) = (guest.create_cq(20, None).unwrap(), guest.alloc_pd().unwrap());
        let mr = pd.alloc_mr(4096, Access::ALL).unwrap();
        Self { srq: domain.create_srq(&pd, &cq, &SIZE).unwrap(), cq, mr, pd }
    }

    fn receive(&self, wr_id: u64) {
        self.srq.post_recv(&RecvWr { wr_id, sges: &[self.mr.sge(0, 100)] }).unwrap();
    }

    /// The next completion, which must be good.
    fn done(&self, wr_id: u64, target: &XrcRecvQp) -> Wc {
        let wc = completion(&self.cq);
        assert_eq!((wc.wr_id, wc.status, wc.qp_num), (wr_id, WcStatus::Success, target.qpn()), "{wc:?}");
        wc
    }

    fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.mr.read(0, &mut bytes).unwrap();
        bytes
    }
}

/// A sender, and a target of a domain at the other guest.
struct Connection {
    sender: End,
    target: XrcRecvQp,
    domain: Xrcd,
    guest: Context,
}

impl Connection {
    fn new(scene: &Scene) -> Self {
        let [one, guest] = scene.guests();
        let sender = End::of_type(&one, QpType::XrcSend);
        let domain = guest.open_xrcd().unwrap();
        let target = domain.create_recv_qp().unwrap();
        assert_ne!(target.qpn() & 1 << 23, 0, "by this bit completions tell a target");
        connect_extended(&sender, &target);
        Self { sender, target, domain, guest }
    }

    fn send(&self, wr_id: u64, op: SendOp, length: u32, srqn: u32) {
        let sges = [self.sender.mr.sge(0, length)];
        let wr = SendWr { wr_id, op, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
        self.sender.qp.post_send_xrc(&wr, srqn).unwrap();
    }
}

#[test]
fn messages_of_one_connection_go_to_the_srq_that_each_names() {
    let scene = Scene::new();
    let connection = Connection::new(&scene);
    let inboxes = [(), ()].map(|()| Inbox::new(&connection.guest, &connection.domain));
    for (round, inbox) in (0..20u8).zip(inboxes.iter().cycle()) {
        inbox.receive(round.into());
        connection.sender.mr.write(0, &[round; 50]).unwrap();
        let imm = (round % 3 == 0).then_some(round.into());
        connection.send(round.into(), imm.map_or(SendOp::Send, SendOp::SendImm), 50, inbox.srq.srqn());
        connection.sender.done(round.into());
        let wc = inbox.done(round.into(), &connection.target);
        assert_eq!((wc.opcode, wc.byte_len, wc.imm), (WcOpcode::Recv, 50, imm));
        assert_eq!(inbox.bytes(50), [round; 50]);
    }
    drop((connection, inboxes));
    scene.stop();
}

#[test]
fn writes_and_atomics_of_xrc_reach_memory_of_the_srq_s_domain() {
    let scene = Scene::new();
    let connection = Connection::new(&scene);
    let inbox = Inbox::new(&connection.guest, &connection.domain);
    let (remote_addr, rkey, srqn) = (inbox.mr.addr(), inbox.mr.rkey(), inbox.srq.srqn());
    connection.sender.mr.write(0, b"over there").unwrap();
    connection.send(1, SendOp::Write { remote_addr, rkey }, 10, srqn);
    connection.sender.done(1);
    assert_eq!(inbox.bytes(10), b"over there");
    inbox.receive(2);
    connection.send(2, SendOp::WriteImm { remote_addr: remote_addr + 100, rkey, imm: 3 }, 10, srqn);
    connection.sender.done(2);
    let wc = inbox.done(2, &connection.target);
    assert_eq!((wc.opcode, wc.byte_len, wc.imm), (WcOpcode::RecvRdmaWithImm, 10, Some(3)));
    inbox.mr.store_u64(64, 40).unwrap();
    connection.send(3, SendOp::FetchAdd { remote_addr: remote_addr + 64, rkey, add: 2 }, 8, srqn);
    assert_eq!(connection.sender.done(3).opcode, WcOpcode::FetchAdd);
    assert_eq!((connection.sender.mr.load_u64(0).unwrap(), inbox.mr.load_u64(64).unwrap()), (40, 42));
    connection.send(4, SendOp::Read { remote_addr: remote_addr + 100, rkey }, 10, srqn);
    connection.sender.done(4);
    assert_eq!(connection.sender.bytes(0, 10), b"over there");
    drop((connection, inbox));
    scene.stop();
}

#[test]
fn srq_of_another_domain_and_one_that_is_not_there_are_refused_by_the_target() {
    let scene = Scene::new();
    let connection = Connection::new(&scene);
    let domain = connection.guest.open_xrcd().unwrap();
    let foreign = Inbox::new(&connection.guest, &domain);
    foreign.receive(1);
    connection.send(1, SendOp::Send, 10, foreign.srq.srqn());
    connection.sender.failed(1, WcStatus::RemInvReqErr);
    assert_eq!(connection.target.query().unwrap().qp_state, Some(QpState::Err));

    connection.sender.qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
    connection.target.modify(&QpAttr::state(QpState::Reset)).unwrap();
    connect_extended(&connection.sender, &connection.target);
    connection.send(2, SendOp::Send, 10, 0xff_ffff);
    connection.sender.failed(2, WcStatus::RemInvReqErr);
    drop((connection, foreign, domain));
    scene.stop();
}

#[test]
fn completions_of_an_xrc_srq_go_with_it_and_leave_the_others() {
    let scene = Scene::new();
    let connection = Connection::new(&scene);
    let one = Inbox::new(&connection.guest, &connection.domain);
    // Both complete in one CQ.
    let other = connection.domain.create_srq(&one.pd, &one.cq, &SIZE).unwrap();
    one.receive(1);
    other.post_recv(&RecvWr { wr_id: 2, sges: &[one.mr.sge(200, 100)] }).unwrap();
    connection.send(1, SendOp::Send, 10, other.srqn());
    connection.send(2, SendOp::Send, 10, one.srq.srqn());
    connection.sender.done(1);
    connection.sender.done(2);
    other.destroy().unwrap();
    one.done(1, &connection.target);
    assert_eq!(one.cq.poll(&mut [Wc::default()]).unwrap(), 0);
    drop((connection, one));
    scene.stop();
}

#[test]
fn objects_of_xrc_are_held_to_their_kind_and_users() {
    let scene = Scene::new();
    let connection = Connection::new(&scene);
    let inbox = Inbox::new(&connection.guest, &connection.domain);
    let guest = &connection.guest;
    let init = QpInit { srq: Some(&inbox.srq), ..QpInit::new(&inbox.cq) };
    assert_eq!(errno(inbox.pd.create_qp(&init)), EINVAL, "an SRQ of XRC is none for RC");
    let basic = inbox.pd.create_srq(&SIZE).unwrap();
    let init = QpInit { qp_type: QpType::XrcSend, srq: Some(&basic), ..QpInit::new(&inbox.cq) };
    assert_eq!(errno(inbox.pd.create_qp(&init)), EINVAL);
    let sges = [connection.sender.mr.sge(0, 8)];
    let wr = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    assert_eq!(errno(connection.sender.qp.post_send(&wr)), EINVAL, "it names no SRQ");
    assert_eq!(errno(connection.sender.qp.post_recv(&RecvWr { wr_id: 1, sges: &sges })), EINVAL);
    let foreign = connection.sender.guest.alloc_pd().unwrap();
    assert_eq!(errno(connection.domain.create_srq(&foreign, &inbox.cq, &SIZE)), EINVAL);
    let domain = guest.open_xrcd().unwrap();
    let target = domain.create_recv_qp().unwrap();
    assert_eq!(errno(domain.close()), EBUSY);
    target.destroy().unwrap();
    drop((foreign, basic, connection, inbox));
    scene.stop();
}
