//! Completion queues through the driver on the model: another size, moderation, overrun.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::end::{End, request};
use common::{Card, Pair, config, eventually, fabric};
use mlx4::{Attributes, Config, Error, Event, Hca, Profile};
use mlx4_queue::Notify;
use mlx4_queue::geometry::Service;
use mlx4_queue::request::{Data, Operation};
use mlx4_wire::ctx::cq::CqStatus;
use mlx4_wire::ctx::qp::QpState;

/// Posts requests that complete by themselves, with these ids.
fn post(end: &End, ids: std::ops::Range<u64>) {
    for id in ids {
        end.qp.post_send(&[request(id, Operation::Nop, Data::Pieces(&[]))]).unwrap();
    }
}

/// Posts such requests, and waits until all of them have completed.
fn post_and_wait(end: &End, ids: std::ops::Range<u64>) {
    let producer = || end.cq.query().unwrap().producer;
    let (before, count) = (producer(), u32::try_from(ids.end - ids.start).unwrap());
    post(end, ids);
    eventually("completions", || (producer().wrapping_sub(before) & 0xff_ffff == count).then_some(()));
}

/// Ids of all completions that are there.
fn ids(end: &End) -> Vec<u64> {
    let mut ids = Vec::new();
    end.cq.poll(usize::MAX, |completion| ids.push(completion.wr_id)).unwrap();
    ids
}

#[test]
fn queue_of_another_size_has_what_was_unread_and_goes_on() {
    let pair = Pair::new(0x0002_c903_0021_0000);
    let [near, far] = End::connected(&pair);
    let mut next = 0;
    // The indexes come to lie anywhere in rings of all sizes, larger and smaller than the one before.
    for (size, count) in [300, 20, 60, 1000, 40, 500, 25].into_iter().cycle().zip((1..20).cycle()).take(60) {
        post_and_wait(&near, next..next + count);
        near.cq.resize(size).unwrap();
        assert_eq!(ids(&near), (next..next + count).collect::<Vec<_>>());
        assert!(ids(&near).is_empty(), "entries of the new ring that nobody wrote");
        next += count;
    }
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn queue_stays_as_it_is_if_what_is_unread_has_no_room_in_the_other_ring() {
    let pair = Pair::new(0x0002_c903_0022_0000);
    let [near, far] = End::connected(&pair);
    post_and_wait(&near, 0..20);
    let error = near.cq.resize(4).unwrap_err();
    assert!(matches!(error, Error::Resize(_)), "{error}");
    let error = near.cq.resize(u32::MAX).unwrap_err();
    assert!(matches!(error, Error::Geometry(_)), "{error}");
    assert_eq!(ids(&near), (0..20).collect::<Vec<_>>());
    near.cq.resize(4).unwrap();
    post_and_wait(&near, 20..24);
    assert_eq!(ids(&near), (20..24).collect::<Vec<_>>());
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn nothing_is_lost_while_a_queue_is_polled_and_changes_its_size() {
    let pair = Pair::new(0x0002_c903_0023_0000);
    let [near, far] = End::connected(&pair);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sizes = [100, 400, 200].into_iter().cycle();
            while !done.load(Ordering::SeqCst) {
                near.cq.resize(sizes.next().unwrap()).unwrap();
            }
        });
        for round in 0..100 {
            let wanted: Vec<u64> = (20 * round..20 * (round + 1)).collect();
            post(&near, 20 * round..20 * (round + 1));
            let mut found = Vec::new();
            eventually("completions", || {
                found.extend(ids(&near));
                (found.len() >= wanted.len()).then_some(())
            });
            assert_eq!(found, wanted);
        }
        done.store(true, Ordering::SeqCst);
    });
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn armed_queue_notifies_also_after_it_has_another_size() {
    let pair = Pair::new(0x0002_c903_0024_0000);
    let [near, far] = End::connected(&pair);
    let notified = |count| {
        eventually("a notification", || (near.notified.load(Ordering::SeqCst) == count).then_some(()));
    };
    near.cq.arm(Notify::Next);
    near.cq.resize(1000).unwrap();
    post(&near, 0..1);
    notified(1);
    assert_eq!(ids(&near), [0]);
    near.cq.resize(30).unwrap();
    near.cq.arm(Notify::Next);
    post(&near, 1..2);
    notified(2);
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn moderated_queue_notifies_of_completions_that_are_fewer_than_its_count_too() {
    let pair = Pair::new(0x0002_c903_0025_0000);
    let [near, far] = End::connected(&pair);
    near.cq.object().moderate(1000, 100).unwrap();
    near.cq.arm(Notify::Next);
    post(&near, 0..3);
    eventually("a notification", || (near.notified.load(Ordering::SeqCst) == 1).then_some(()));
    near.cq.object().moderate(0, 0).unwrap();
    near.cq.arm(Notify::Next);
    eventually("a notification at once", || (near.notified.load(Ordering::SeqCst) == 2).then_some(()));
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn entries_of_either_size_tell_the_same() {
    for wide_cqes in [false, true] {
        let fabric = fabric();
        let card = Card::new(&fabric, 0x0002_c903_0027_0000, 1);
        let profile = Profile { wide_cqes, ..config().profile };
        let hca = Hca::open(card.seam(), &Config { profile, ports: false, ..config() }).unwrap();
        assert_eq!(hca.profile().wide_cqes, wide_cqes, "the model has both");
        let end = End::new(&hca, Service::Ud);
        end.start_datagrams(1);
        for size in [40, 400] {
            end.cq.resize(size).unwrap();
            for id in 0..20 {
                end.qp.post_receive([(id, &[end.memory.piece(0, 64)][..])]).unwrap();
            }
            end.qp.modify(QpState::ERR, &Attributes::default()).unwrap();
            let mut found = Vec::new();
            eventually("completions", || {
                found.extend(ids(&end));
                (found.len() == 20).then_some(())
            });
            assert_eq!(found, (0..20).collect::<Vec<_>>());
            end.qp.modify(QpState::RST, &Attributes::default()).unwrap();
            end.start_datagrams(1);
        }
        end.destroy();
        hca.close().unwrap();
        assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
    }
}

#[test]
fn queue_that_overruns_fails_and_takes_its_queue_pair_along() {
    let pair = Pair::new(0x0002_c903_0026_0000);
    let end = End::new(&pair.hosts[0].hca, Service::Ud);
    end.start_datagrams(1);
    end.cq.resize(8).unwrap();
    for id in 0..32 {
        end.qp.post_receive([(id, &[end.memory.piece(0, 64)][..])]).unwrap();
    }
    end.qp.modify(QpState::ERR, &Attributes::default()).unwrap();
    let cqn = end.cq.object().number();
    pair.hosts[0].wait_for(Event::CqError { cqn, overrun: true });
    assert_eq!(end.cq.query().unwrap().status, CqStatus::OVERFLOW);
    let error = end.cq.resize(100).unwrap_err();
    assert!(error.status().is_some(), "{error}");
    end.destroy();
    pair.close();
}
