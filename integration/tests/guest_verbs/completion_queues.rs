//! Completion queues: their size, and when they tell.

use std::sync::atomic::{AtomicBool, Ordering};

use paraverbs_verbs::{SendData, SendFlags, SendOp, SendWr, Wc, WcStatus};

use crate::scene::{End, Fence, PATIENCE, Scene, errno, eventually};

const EINVAL: i32 = 22;

fn write(from: &End, to: &End, wr_id: u64) {
    from.post(wr_id, SendOp::Write { remote_addr: to.mr.addr(), rkey: to.mr.rkey() }, 0, 8);
}

#[test]
fn cq_grows_and_shrinks_with_its_unread_completions() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let fence = Fence::new([&one.guest, &other.guest]);
    for (round, cqe) in (0..).zip([200, 15, 1000, 127, 64, 3000, 15]) {
        let first = round * 100;
        for id in first..first + 12 {
            write(one, other, id);
        }
        // What is there is some of them or all.
        one.done(first);
        one.done(first + 1);
        one.cq.resize(cqe).unwrap();
        assert!(one.cq.cqe() >= cqe && one.cq.cqe() < 2 * cqe + 2, "{}", one.cq.cqe());
        for id in first + 2..first + 12 {
            one.done(id);
        }
        fence.pass();
        one.nothing();
    }
    drop((ends, fence));
    scene.stop();
}

#[test]
fn size_below_what_is_unread_is_refused_and_nothing_is_lost() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let fence = Fence::new([&one.guest, &other.guest]);
    for id in 0..10 {
        write(one, other, id);
    }
    fence.pass();
    let before = one.cq.cqe();
    assert_eq!(errno(one.cq.resize(5)), EINVAL);
    let most = one.guest.query_device().unwrap().max_cqe;
    for cqe in [0, most + 1, u32::MAX] {
        assert_eq!(errno(one.cq.resize(cqe)), EINVAL);
    }
    assert_eq!(one.cq.cqe(), before);
    for id in 0..10 {
        one.done(id);
    }
    // The same size is nothing to do.
    one.cq.resize(before).unwrap();
    drop((ends, fence));
    scene.stop();
}

#[test]
fn cq_is_polled_and_written_while_it_is_resized() {
    const COUNT: u64 = 2000;
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey());
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let sges = [one.mr.sge(0, 8)];
            for wr_id in 0..COUNT {
                let op = SendOp::Write { remote_addr, rkey };
                let wr = SendWr { wr_id, op, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
                eventually("room in the queue", || one.qp.post_send(&wr).ok());
            }
        });
        threads.spawn(|| {
            for cqe in [200, 100, 500].into_iter().cycle() {
                one.cq.resize(cqe).unwrap();
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            let mut wcs = [Wc::default(); 8];
            let polled = || Some(one.cq.poll(&mut wcs).unwrap()).filter(|count| *count != 0);
            let count = eventually("completions", polled);
            for wc in &wcs[..count] {
                assert_eq!((wc.wr_id, wc.status), (next, WcStatus::Success));
                next += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(ends);
    scene.stop();
}

#[test]
fn armed_cq_that_is_resized_still_tells() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    one.cq.req_notify(false).unwrap();
    one.cq.resize(1000).unwrap();
    one.nothing();
    write(one, other, 1);
    assert_eq!(one.channel.wait(PATIENCE).unwrap().map(|event| event.cqn), Some(one.cq.cqn()));
    one.done(1);
    drop(ends);
    scene.stop();
}

#[test]
fn moderated_event_waits_for_its_count_or_its_time() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let fence = Fence::new([&one.guest, &other.guest]);
    let device = one.guest.query_device().unwrap();
    assert!(device.max_cq_count >= 4 && device.max_cq_period > 0, "{device:?}");
    one.cq.modify(4, device.max_cq_period).unwrap();
    one.cq.req_notify(false).unwrap();
    one.nothing();
    for id in 0..4 {
        write(one, other, id);
        one.done(id);
    }
    assert_eq!(one.channel.wait(PATIENCE).unwrap().map(|event| event.cqn), Some(one.cq.cqn()));
    // The time ends the wait where the count doesn't.
    one.cq.modify(device.max_cq_count, 100).unwrap();
    one.cq.req_notify(false).unwrap();
    write(one, other, 5);
    assert!(one.channel.wait(PATIENCE).unwrap().is_some());
    one.done(5);
    one.cq.modify(0, 0).unwrap();
    one.cq.req_notify(false).unwrap();
    write(one, other, 6);
    fence.pass();
    assert!(one.channel.wait(PATIENCE).unwrap().is_some());
    one.done(6);
    drop((ends, fence));
    scene.stop();
}
