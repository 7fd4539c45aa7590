//! States of queue pairs: drained, in error, and back.

use paraverbs_verbs::{
    Access, EventElement, EventType, QpAttr, QpState, QpType, SendData, SendFlags, SendOp, SendWr, UdDest,
    WcStatus,
};

use crate::scene::{End, Fence, PATIENCE, Scene, errno};

const EINVAL: i32 = 22;
const QKEY: u32 = 0x99;

fn drained(end: &End) {
    let notify = QpAttr { en_sqd_async_notify: Some(true), ..QpAttr::state(QpState::Sqd) };
    end.qp.modify(&notify).unwrap();
    loop {
        let event = end.guest.get_async_event(PATIENCE).unwrap().expect("an event");
        if event.element == EventElement::Qp(end.qp.qpn()) && event.event_type == EventType::SqDrained {
            return;
        }
    }
}

#[test]
fn requests_posted_to_a_drained_send_queue_wait_for_rts() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let fence = Fence::new([&one.guest, &other.guest]);
    drained(one);
    let attr = one.qp.query().unwrap();
    assert_eq!((attr.qp_state, attr.sq_draining), (Some(QpState::Sqd), Some(false)));
    one.mr.write(0, b"later").unwrap();
    one.post(1, SendOp::Write { remote_addr: other.mr.addr(), rkey: other.mr.rkey() }, 0, 5);
    fence.pass();
    one.nothing();
    assert_eq!(other.bytes(0, 5), [0; 5]);
    // What comes from the other end is answered all the same.
    other.post(2, SendOp::Read { remote_addr: one.mr.addr(), rkey: one.mr.rkey() }, 100, 5);
    other.done(2);
    assert_eq!(other.bytes(100, 5), b"later");
    one.qp.modify(&QpAttr::state(QpState::Rts)).unwrap();
    one.done(1);
    assert_eq!(other.bytes(0, 5), b"later");
    drop((ends, fence));
    scene.stop();
}

#[test]
fn drained_queue_pair_takes_other_attributes() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    drained(other);
    let change =
        QpAttr { qp_access_flags: Some(Access::REMOTE_READ), min_rnr_timer: Some(20), ..QpAttr::default() };
    other.qp.modify(&change).unwrap();
    other.qp.modify(&QpAttr::state(QpState::Rts)).unwrap();
    let attr = other.qp.query().unwrap();
    assert_eq!((attr.qp_access_flags, attr.min_rnr_timer), (Some(Access::REMOTE_READ), Some(20)));
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey());
    one.post(1, SendOp::Read { remote_addr, rkey }, 0, 8);
    one.done(1);
    one.post(2, SendOp::Write { remote_addr, rkey }, 0, 8);
    one.failed(2, WcStatus::RemInvReqErr);
    drop(ends);
    scene.stop();
}

#[test]
fn failed_datagram_stops_the_send_queue_only_until_it_is_ready_again() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| {
        let end = End::of_type(&guest, QpType::Ud);
        end.qp.to_datagrams(1, QKEY).unwrap();
        end
    });
    let ah = one.ah(&other, false);
    let to = UdDest { ah: &ah, remote_qpn: other.qp.qpn(), remote_qkey: QKEY };
    let mut wrong = one.mr.sge(0, 8);
    wrong.lkey ^= 1;
    let flags = SendFlags::SIGNALED;
    let wr = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&[wrong]), flags };
    one.qp.post_send_ud(&wr, &to).unwrap();
    one.failed(1, WcStatus::LocProtErr);
    assert_eq!(one.qp.query().unwrap().qp_state, Some(QpState::Sqe));
    one.post_datagram(2, SendOp::Send, 0, 8, &to);
    one.failed(2, WcStatus::WrFlushErr);
    // The receive queue works on.
    let back = other.ah(&one, false);
    one.receive(3, 0, 100);
    let to_one = UdDest { ah: &back, remote_qpn: one.qp.qpn(), remote_qkey: QKEY };
    other.post_datagram(3, SendOp::Send, 0, 8, &to_one);
    other.done(3);
    one.done(3);
    let ready = QpAttr { cur_qp_state: Some(QpState::Sqe), ..QpAttr::state(QpState::Rts) };
    one.qp.modify(&ready).unwrap();
    other.receive(4, 0, 100);
    one.post_datagram(4, SendOp::Send, 0, 8, &to);
    one.done(4);
    other.done(4);
    drop((ah, back, one, other));
    scene.stop();
}

#[test]
fn outstanding_requests_of_both_queues_are_flushed_in_order() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    for id in 10..14 {
        one.receive(id, 0, 8);
    }
    // No receive is there, so the first waits, and the others behind it.
    for id in 1..5 {
        one.post(id, SendOp::Send, 0, 8);
    }
    one.qp.modify(&QpAttr::state(QpState::Err)).unwrap();
    let mut flushed: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..8 {
        let wc = crate::scene::completion(&one.cq);
        assert_eq!(wc.status, WcStatus::WrFlushErr, "{wc:?}");
        flushed[usize::from(wc.opcode.is_receive())].push(wc.wr_id);
    }
    assert_eq!(flushed, [vec![1, 2, 3, 4], vec![10, 11, 12, 13]]);
    one.nothing();
    assert_eq!(errno(one.qp.modify(&QpAttr::state(QpState::Rts))), EINVAL, "only RESET leads out of ERR");
    let _other = other;
    drop(ends);
    scene.stop();
}

#[test]
fn first_message_on_a_queue_pair_that_is_not_ready_to_send_is_an_event() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| End::new(&guest));
    one.connect(&other);
    other.qp.to_init(1, Access::ALL).unwrap();
    other.qp.to_rtr(one.rtr()).unwrap();
    other.receive(1, 0, 8);
    one.post(1, SendOp::Send, 0, 8);
    one.done(1);
    let element = EventElement::Qp(other.qp.qpn());
    loop {
        let event = other.guest.get_async_event(PATIENCE).unwrap().expect("an event");
        if event.element == element {
            assert_eq!(event.event_type, EventType::CommEst);
            break;
        }
    }
    other.done(1);
    drop((one, other));
    scene.stop();
}

#[test]
fn each_type_needs_and_takes_the_attributes_of_its_own() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let [rc, uc, ud] = [QpType::Rc, QpType::Uc, QpType::Ud].map(|qp_type| End::of_type(&guest, qp_type));
    let init = QpAttr { port_num: Some(1), pkey_index: Some(0), ..QpAttr::state(QpState::Init) };
    let access = QpAttr { qp_access_flags: Some(Access::ALL), ..init };
    let qkey = QpAttr { qkey: Some(QKEY), ..init };
    for (end, good, bad) in [(&rc, access, qkey), (&uc, access, qkey), (&ud, qkey, access)] {
        assert_eq!(errno(end.qp.modify(&bad)), EINVAL);
        assert_eq!(errno(end.qp.modify(&init)), EINVAL);
        end.qp.modify(&good).unwrap();
        assert_eq!(end.qp.query().unwrap().qp_state, Some(QpState::Init));
    }
    // What RC needs is too much for UC.
    assert_eq!(errno(uc.qp.to_rtr(rc.rtr())), EINVAL);
    assert_eq!(errno(rc.qp.modify(&QpAttr::state(QpState::Rtr))), EINVAL);
    ud.qp.modify(&QpAttr::state(QpState::Rtr)).unwrap();
    let rts = QpAttr { sq_psn: Some(7), ..QpAttr::state(QpState::Rts) };
    assert_eq!(errno(ud.qp.modify(&QpAttr { timeout: Some(1), ..rts })), EINVAL);
    ud.qp.modify(&rts).unwrap();
    ud.qp.modify(&QpAttr { qkey: Some(QKEY + 1), ..QpAttr::state(QpState::Rts) }).unwrap();
    let attr = ud.qp.query().unwrap();
    assert_eq!((attr.qkey, attr.qp_state), (Some(QKEY + 1), Some(QpState::Rts)));
    // A wrong idea of the present state changes nothing.
    let wrong = QpAttr { cur_qp_state: Some(QpState::Sqd), ..QpAttr::state(QpState::Rts) };
    assert_eq!(errno(ud.qp.modify(&wrong)), EINVAL);
    drop((rc, uc, ud, guest));
    scene.stop();
}
