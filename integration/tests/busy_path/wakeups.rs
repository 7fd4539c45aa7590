//! Who is woken for a message if nobody polls: the daemon by the doorbell, and the guest by the completion.

use paraverbs_verbs::SendOp;
use virtio_rdma::request::query::Stats;

use super::scene::{PATIENCE, Scene, eventually};

const MESSAGES: u64 = 200;

fn stats(scene: &Scene) -> Stats {
    let guests = scene.daemon.status().guests;
    guests.into_iter().find(|guest| guest.name == "a").unwrap().stats.unwrap()
}

/// Arming is a doorbell too. So a message between sleepers costs two wake-ups at most, besides the one that arms for it.
#[test]
fn doorbell_kicks_at_most_once_and_a_message_is_one_event() {
    let scene = Scene::new(Some(std::time::Duration::ZERO));
    let [near, far] = scene.connection();
    let op = SendOp::Write { remote_addr: far.mr.addr(), rkey: far.mr.rkey() };
    let before = stats(&scene);
    for number in 0..MESSAGES {
        near.cq.req_notify(false).unwrap();
        let armed = before.arm_doorbells.get() + number + 1;
        eventually("the CQ to be armed", || (stats(&scene).arm_doorbells.get() == armed).then_some(()));
        near.post(number, op, 0, 8);
        let event = near.channel.wait(PATIENCE).unwrap();
        assert!(event.is_some(), "no event for message {number}");
        near.done(number);
    }
    let now = stats(&scene);
    let events = now.completion_events.get() - before.completion_events.get();
    let sends = now.send_doorbells.get() - before.send_doorbells.get();
    assert_eq!([events, sends], [MESSAGES; 2]);
    let kicks = now.kicks.get() - before.kicks.get();
    assert!(kicks <= 2 * MESSAGES, "{kicks} kicks for {MESSAGES} arms and as many messages");
    drop((near, far));
    scene.stop();
}
