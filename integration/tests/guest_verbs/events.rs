//! Completion events and asynchronous events.

use std::time::Duration;

use paraverbs_verbs::{
    Access, AsyncEvent, Cq, EventElement, EventType, QpAttr, QpInit, QpState, RecvWr, SendData, SendFlags,
    SendOp, SendWr, Wc, WcOpcode, WcStatus,
};

use crate::scene::{End, PATIENCE, Scene, completion, errno};

const EINVAL: i32 = 22;

/// The number of the CQ that the next event is about.
fn event(end: &End) -> u32 {
    end.channel.wait(PATIENCE).unwrap().expect("an event").cqn
}

/// Arms a CQ that has no completions.
fn arm(cq: &Cq, solicited_only: bool) {
    cq.req_notify(solicited_only).unwrap();
    assert_eq!(cq.poll(&mut [Wc::default()]).unwrap(), 0);
}

fn no_event(end: &End) {
    assert_eq!(end.channel.wait(Duration::ZERO).unwrap(), None);
}

fn send(end: &End, solicited: bool) {
    let sges = [end.mr.sge(0, 8)];
    let flags = SendFlags { signaled: true, solicited, fence: false };
    let wr = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&sges), flags };
    end.qp.post_send(&wr).unwrap();
    end.done(1);
}

#[test]
fn ping_pong_by_events_wakes_each_end_once_for_each_arm() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    for end in [&one, &other] {
        end.receive(0, 0, 8);
        arm(&end.cq, false);
    }
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..100 {
                one.post(SENT, SendOp::Send, 8, 8);
                await_receive(&one, round);
            }
        });
        for round in 0..100 {
            await_receive(&other, round);
            other.post(SENT, SendOp::Send, 8, 8);
        }
    });
    drop([one, other]);
    scene.stop();
}

/// The `wr_id` of sends; those of receives are smaller.
const SENT: u64 = 1000;

/// Waits by events until a receive is done, and posts the next one.
fn await_receive(end: &End, wr_id: u64) {
    let mut received = None;
    while received.is_none() {
        assert_eq!(event(end), end.cq.cqn());
        end.cq.req_notify(false).unwrap();
        let mut wcs = [Wc::default(); 4];
        let count = end.cq.poll(&mut wcs).unwrap();
        assert!(wcs[..count].iter().all(|wc| wc.status == WcStatus::Success), "{wcs:?}");
        received = wcs[..count].iter().find(|wc| wc.wr_id != SENT).copied();
    }
    assert_eq!(received.map(|wc| (wc.wr_id, wc.opcode)), Some((wr_id, WcOpcode::Recv)));
    end.receive(wr_id + 1, 0, 8);
}

#[test]
fn completion_that_is_there_already_raises_an_event_at_once() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    other.receive(1, 0, 8);
    send(&one, false);
    arm(&one.cq, false);
    no_event(&one);
    other.cq.req_notify(false).unwrap();
    assert_eq!(event(&other), other.cq.cqn());
    other.done(1);
    drop([one, other]);
    scene.stop();
}

#[test]
fn solicited_only_waits_for_a_solicited_message() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    for id in 1..=3 {
        other.receive(id, 0, 8);
    }
    arm(&other.cq, true);
    send(&one, false);
    other.done(1);
    no_event(&other);
    send(&one, true);
    assert_eq!(event(&other), other.cq.cqn());
    other.done(2);
    send(&one, true);
    other.done(3);
    no_event(&other);
    drop([one, other]);
    scene.stop();
}

#[test]
fn events_of_several_cqs_name_them_and_go_to_their_channels() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let ends = [End::new(&guest), End::new(&guest)];
    crate::scene::connect(&ends);
    let [one, other] = &ends;
    let second = guest.create_cq(4, Some(&one.channel)).unwrap();
    let qp = one.pd.create_qp(&QpInit::new(&second)).unwrap();
    qp.to_init(1, Access::NONE).unwrap();
    qp.post_recv(&RecvWr { wr_id: 4, sges: &[] }).unwrap();
    for cq in [&one.cq, &other.cq, &second] {
        arm(cq, false);
    }
    qp.modify(&QpAttr::state(QpState::Err)).unwrap();
    assert_eq!(event(one), second.cqn());
    other.receive(1, 0, 8);
    one.post(1, SendOp::Send, 0, 8);
    // Both channels are on one vector: whoever waits first hands the other what is its.
    assert_eq!(event(other), other.cq.cqn());
    assert_eq!(event(one), one.cq.cqn());
    no_event(one);
    no_event(other);
    drop(ends);
    drop((qp, second, guest));
    scene.stop();
}

#[test]
fn event_of_a_destroyed_cq_is_gone() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let end = End::new(&guest);
    let cq = guest.create_cq(4, Some(&end.channel)).unwrap();
    let qp = end.pd.create_qp(&QpInit::new(&cq)).unwrap();
    qp.to_init(1, Access::NONE).unwrap();
    qp.post_recv(&RecvWr { wr_id: 4, sges: &[] }).unwrap();
    cq.req_notify(false).unwrap();
    qp.modify(&QpAttr::state(QpState::Err)).unwrap();
    assert_eq!(completion(&cq).wr_id, 4);
    qp.destroy().unwrap();
    cq.destroy().unwrap();
    no_event(&end);
    assert_eq!(errno(guest.create_cq(4, None).unwrap().req_notify(false)), EINVAL);
    drop((end, guest));
    scene.stop();
}

#[test]
fn drained_send_queue_is_an_asynchronous_event() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let element = EventElement::Qp(one.qp.qpn());
    // The port's events may come at any time.
    while let Some(event) = one.guest.get_async_event(Duration::ZERO).unwrap() {
        assert_ne!(event.element, element);
    }
    let drain = QpAttr { en_sqd_async_notify: Some(true), ..QpAttr::state(QpState::Sqd) };
    one.qp.modify(&drain).unwrap();
    assert_eq!(next_of(&one, element).event_type, EventType::SqDrained);
    one.qp.modify(&QpAttr::state(QpState::Rts)).unwrap();
    other.receive(1, 0, 8);
    send(&one, false);

    // What nobody takes goes with the queue pair.
    one.qp.modify(&drain).unwrap();
    let End { qp, guest, mr, cq, pd, channel } = one;
    qp.destroy().unwrap();
    while let Some(event) = guest.get_async_event(Duration::ZERO).unwrap() {
        assert_ne!(event.element, element);
    }
    drop((other, mr, cq, pd, channel, guest));
    scene.stop();
}

/// The next asynchronous event about something.
fn next_of(end: &End, element: EventElement) -> AsyncEvent {
    loop {
        let event = end.guest.get_async_event(PATIENCE).unwrap().expect("an event");
        if event.element == element {
            return event;
        }
    }
}

#[test]
fn cq_that_overruns_is_an_asynchronous_event() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let small = other.guest.create_cq(1, None).unwrap();
    let qp = other.pd.create_qp(&QpInit { recv_cq: &small, ..QpInit::new(&other.cq) }).unwrap();
    qp.to_init(1, Access::NONE).unwrap();
    for wr_id in 0..8 {
        qp.post_recv(&RecvWr { wr_id, sges: &[] }).unwrap();
    }
    qp.modify(&QpAttr::state(QpState::Err)).unwrap();
    let element = EventElement::Cq(small.cqn());
    assert_eq!(next_of(&other, element).event_type, EventType::CqErr);
    drop((qp, small, one, other));
    scene.stop();
}
