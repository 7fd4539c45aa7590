//! Shared receive queues.

use std::time::Duration;

use paraverbs_verbs::{
    Access, AsyncEvent, Context, EventElement, EventType, Mr, Pd, QpAttr, QpState, QpType, RecvWr, SendOp,
    Srq, SrqInit, UdDest, WcStatus,
};

use crate::scene::{End, Fence, PATIENCE, Scene, completion, errno, senders_to_srq};

const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const ENOMEM: i32 = 12;

/// Bytes of the memory that a receive has.
const ROOM: usize = 64;

/// Two senders, and two ends of another guest that receive by one SRQ. Fields in the order in which they go.
struct Crowd {
    senders: [End; 2],
    receivers: [End; 2],
    srq: Srq,
    mr: Mr,
    _pd: Pd,
    guest: Context,
}

impl Crowd {
    fn new(scene: &Scene) -> Self {
        let [other, guest] = scene.guests();
        let pd = guest.alloc_pd().unwrap();
        let srq = pd.create_srq(&SrqInit { max_wr: 15, max_sge: 2 }).unwrap();
        let mr = pd.alloc_mr(4096, Access::LOCAL_WRITE).unwrap();
        let [senders, receivers] = senders_to_srq(&other, &guest, &srq);
        Self { senders, receivers, srq, mr, _pd: pd, guest }
    }

    fn receive(&self, wr_id: u64) {
        let at = usize::try_from(wr_id).unwrap() * ROOM;
        self.srq
            .post_recv(&RecvWr { wr_id, sges: &[self.mr.sge(at, 10), self.mr.sge(at + 10, 54)] })
            .unwrap();
    }

    /// One of the senders sends 20 bytes to its receiver.
    fn send(&self, end: usize, byte: u8) {
        self.senders[end].mr.write(0, &[byte; 20]).unwrap();
        self.senders[end].post(1, SendOp::Send, 0, 20);
        self.senders[end].done(1);
    }

    fn received(&self, wr_id: u64) -> [u8; 20] {
        let mut bytes = [0; 20];
        self.mr.read(usize::try_from(wr_id).unwrap() * ROOM, &mut bytes).unwrap();
        bytes
    }

    /// The next asynchronous event of the receiving guest about something.
    fn event_of(&self, element: EventElement) -> EventType {
        loop {
            let event = self.guest.get_async_event(PATIENCE).unwrap().expect("an event");
            if event.element == element {
                return event.event_type;
            }
        }
    }

    /// The event that the SRQ's limit was reached isn't there.
    fn no_limit_event(&self) {
        while let Some(AsyncEvent { event_type, .. }) = self.guest.get_async_event(Duration::ZERO).unwrap() {
            assert_ne!(event_type, EventType::SrqLimitReached);
        }
    }
}

#[test]
fn queue_pairs_take_receives_of_one_srq_in_the_order_of_posting() {
    let scene = Scene::new();
    let crowd = Crowd::new(&scene);
    let cap = crowd.receivers[0].qp.cap();
    assert_eq!((cap.max_recv_wr, cap.max_recv_sge), (0, 0));
    // Round after round, so that slots come back in another order than they went.
    for round in 0..20u8 {
        (0..4).for_each(|id| crowd.receive(id));
        for (message, end) in (0..4).zip([0, 1, 1, 0]) {
            crowd.send(end, round * 4 + message);
        }
        for (end, ids) in [(0, [0, 3]), (1, [1, 2])] {
            for id in ids {
                assert_eq!(crowd.receivers[end].done(id.into()).byte_len, 20);
                assert_eq!(crowd.received(id.into()), [round * 4 + id; 20]);
            }
        }
    }
    drop(crowd);
    scene.stop();
}

#[test]
fn limit_is_told_once_when_fewer_are_posted() {
    let scene = Scene::new();
    let crowd = Crowd::new(&scene);
    (0..4).for_each(|id| crowd.receive(id));
    crowd.srq.arm_limit(3).unwrap();
    let attr = crowd.srq.query().unwrap();
    assert_eq!((attr.max_wr, attr.max_sge, attr.srq_limit), (15, 3, 3));
    crowd.send(0, 1);
    crowd.receivers[0].done(0);
    crowd.no_limit_event();
    crowd.send(1, 2);
    let srq = EventElement::Srq(crowd.srq.srqn());
    assert_eq!(crowd.event_of(srq), EventType::SrqLimitReached);
    assert_eq!(crowd.srq.query().unwrap().srq_limit, 0);
    crowd.send(1, 3);
    crowd.receivers[1].done(1);
    crowd.receivers[1].done(2);
    crowd.no_limit_event();
    // Armed again, it is told again.
    crowd.receive(0);
    crowd.srq.arm_limit(2).unwrap();
    crowd.send(0, 4);
    crowd.receivers[0].done(3);
    assert_eq!(crowd.event_of(srq), EventType::SrqLimitReached);
    drop(crowd);
    scene.stop();
}

#[test]
fn limit_may_be_all_that_the_queue_holds_and_no_more() {
    let scene = Scene::new();
    let crowd = Crowd::new(&scene);
    let most = crowd.srq.query().unwrap().max_wr;
    (0..most).for_each(|id| crowd.receive(id.into()));
    assert_eq!(errno(crowd.srq.arm_limit(most + 1)), EINVAL);
    crowd.srq.arm_limit(most).unwrap();
    crowd.send(0, 1);
    crowd.receivers[0].done(0);
    assert_eq!(crowd.event_of(EventElement::Srq(crowd.srq.srqn())), EventType::SrqLimitReached);
    drop(crowd);
    scene.stop();
}

#[test]
fn last_receive_of_a_queue_pair_in_error_is_an_event() {
    let scene = Scene::new();
    let crowd = Crowd::new(&scene);
    crowd.receive(0);
    let qp = &crowd.receivers[1].qp;
    qp.modify(&QpAttr::state(QpState::Err)).unwrap();
    assert_eq!(crowd.event_of(EventElement::Qp(qp.qpn())), EventType::QpLastWqeReached);
    // The receive stays in the SRQ for the others.
    crowd.send(0, 9);
    crowd.receivers[0].done(0);
    drop(crowd);
    scene.stop();
}

#[test]
fn receives_whose_completions_go_with_the_queue_pair_can_be_posted_again() {
    let scene = Scene::new();
    let mut crowd = Crowd::new(&scene);
    for _ in 0..3 {
        (0..15).for_each(|id| crowd.receive(id));
        assert_eq!(errno(crowd.srq.post_recv(&RecvWr { wr_id: 0, sges: &[] })), ENOMEM);
        for byte in 0..15 {
            crowd.send(0, byte);
        }
        // None of them is polled.
        let receiver = &crowd.receivers[0];
        receiver.qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
        crowd.senders[0].qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
        receiver.nothing();
        receiver.connect(&crowd.senders[0]);
        crowd.senders[0].connect(receiver);
    }
    (0..15).for_each(|id| crowd.receive(id));
    crowd.send(0, 1);
    assert_eq!(completion(&crowd.receivers[0].cq).wr_id, 0);
    let pd = crowd.guest.alloc_pd().unwrap();
    let [first, _] = &mut crowd.receivers;
    drop(std::mem::replace(first, End::new(&crowd.guest)));
    crowd.send(1, 2);
    assert_eq!(completion(&crowd.receivers[1].cq).wr_id, 1);
    drop((crowd, pd));
    scene.stop();
}

#[test]
fn datagrams_are_received_by_an_srq_too() {
    const QKEY: u32 = 0x77;
    let scene = Scene::new();
    let [one, other] = scene.guests();
    let pd = other.alloc_pd().unwrap();
    let srq = pd.create_srq(&SrqInit { max_wr: 4, max_sge: 1 }).unwrap();
    let receivers = [(), ()].map(|()| {
        let end = End::of_srq(&other, QpType::Ud, &srq);
        end.qp.to_datagrams(1, QKEY).unwrap();
        end
    });
    let mr = pd.alloc_mr(4096, Access::LOCAL_WRITE).unwrap();
    let sender = End::of_type(&one, QpType::Ud);
    sender.qp.to_datagrams(1, QKEY).unwrap();
    let ah = sender.ah(&receivers[0], false);
    for (id, receiver) in (1..).zip([&receivers[1], &receivers[0]]) {
        srq.post_recv(&RecvWr { wr_id: id, sges: &[mr.sge(0, 100)] }).unwrap();
        sender.mr.write(0, &[id.to_le_bytes()[0]; 8]).unwrap();
        let to = UdDest { ah: &ah, remote_qpn: receiver.qp.qpn(), remote_qkey: QKEY };
        sender.post_datagram(id, SendOp::Send, 0, 8, &to);
        sender.done(id);
        assert_eq!(receiver.done(id).byte_len, 48);
        let mut bytes = [0; 8];
        mr.read(40, &mut bytes).unwrap();
        assert_eq!(bytes, [id.to_le_bytes()[0]; 8]);
    }
    drop((ah, sender, receivers, srq, mr, pd, one, other));
    scene.stop();
}

#[test]
fn receive_in_memory_of_another_domain_fails_at_both_ends() {
    let scene = Scene::new();
    let crowd = Crowd::new(&scene);
    let foreign = [crowd.receivers[0].mr.sge(0, 64)];
    crowd.srq.post_recv(&RecvWr { wr_id: 3, sges: &foreign }).unwrap();
    crowd.senders[0].post(1, SendOp::Send, 0, 20);
    crowd.receivers[0].failed(3, WcStatus::LocProtErr);
    crowd.senders[0].failed(1, WcStatus::RemOpErr);
    drop(crowd);
    scene.stop();
}

#[test]
fn srq_is_held_to_its_size_and_its_users() {
    let scene = Scene::new();
    let crowd = Crowd::new(&scene);
    let device = crowd.guest.query_device().unwrap();
    let pd = crowd.guest.alloc_pd().unwrap();
    for (max_wr, max_sge) in [(0, 1), (device.max_srq_wr + 1, 1), (1, device.max_srq_sge + 1), (u32::MAX, 1)]
    {
        assert_eq!(errno(pd.create_srq(&SrqInit { max_wr, max_sge })), EINVAL);
    }
    let long = [crowd.mr.sge(0, 1); 4];
    assert_eq!(errno(crowd.srq.post_recv(&RecvWr { wr_id: 0, sges: &long })), EINVAL);
    let list = [RecvWr { wr_id: 0, sges: &long[..1] }, RecvWr { wr_id: 1, sges: &long }];
    assert_eq!(crowd.srq.post_recv_list(&list).unwrap_err().index, 1);
    assert_eq!(errno(crowd.srq.arm_limit(16)), EINVAL);
    let fence = Fence::new([&crowd.guest, &crowd.senders[0].guest]);
    let Crowd { senders, receivers, srq, mr, _pd, guest } = crowd;
    let sges = [receivers[0].mr.sge(0, 8)];
    assert_eq!(errno(receivers[0].qp.post_recv(&RecvWr { wr_id: 0, sges: &sges })), EINVAL);
    assert_eq!(errno(srq.destroy()), EBUSY);
    fence.pass();
    drop((fence, senders, receivers, mr, _pd, pd, guest));
    scene.stop();
}
