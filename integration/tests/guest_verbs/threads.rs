//! Several threads of a guest at once.

use std::sync::Barrier;

use paraverbs_verbs::{SendData, SendFlags, SendOp, SendWr, Wc};

use crate::scene::{End, Scene, connect, eventually};

#[test]
fn threads_make_use_and_destroy_queue_pairs_of_their_own() {
    let scene = Scene::new();
    let guests = scene.guests();
    std::thread::scope(|threads| {
        for thread in 0..8u8 {
            let guests = &guests;
            threads.spawn(move || {
                for round in 0..6 {
                    let ends = [End::new(&guests[0]), End::new(&guests[1])];
                    connect(&ends);
                    let [one, other] = &ends;
                    let text = [thread ^ round; 5000];
                    one.mr.write(0, &text).unwrap();
                    for id in 0..10 {
                        other.receive(id, 0, 5000);
                        one.post(id, SendOp::Send, 0, 5000);
                        one.done(id);
                        other.done(id);
                        assert_eq!(other.bytes(0, 5000), text);
                    }
                }
            });
        }
    });
    drop(guests);
    scene.stop();
}

#[test]
fn one_queue_pair_is_posted_to_and_polled_by_several_threads() {
    const EACH: u64 = 300;
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey());
    let start = Barrier::new(4);
    let polled = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for thread in 0..3u64 {
            let (one, start) = (&one, &start);
            threads.spawn(move || {
                start.wait();
                for number in 0..EACH {
                    let sges = [one.mr.sge(0, 64)];
                    let wr = SendWr {
                        wr_id: thread * EACH + number,
                        op: SendOp::Write { remote_addr, rkey },
                        data: SendData::Sges(&sges),
                        flags: SendFlags::SIGNALED,
                    };
                    eventually("room in the queue", || one.qp.post_send(&wr).ok());
                }
            });
        }
        start.wait();
        for _ in 0..2 {
            threads.spawn(|| {
                eventually("all completions", || {
                    let mut wcs = [Wc::default(); 7];
                    let count = one.cq.poll(&mut wcs).unwrap();
                    let mut polled = polled.lock().unwrap();
                    polled.extend(wcs[..count].iter().map(|wc| wc.wr_id));
                    (polled.len() as u64 == 3 * EACH).then_some(())
                });
            });
        }
    });
    let mut ids = polled.into_inner().unwrap();
    ids.sort_unstable();
    assert_eq!(ids, (0..3 * EACH).collect::<Vec<_>>());
    drop([one, other]);
    scene.stop();
}
