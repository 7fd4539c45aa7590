//! Completion events without interrupts: they come on the thread that polls for them, and none is lost.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::guest::{CQ_COOKIE, Guest};
use common::{Rig, Told, config, eventually};
use mlx4::{CompletionEvents, Profile};
use mlx4_wire::wqe::Opcode;
use paraverbs_hca::Mlx4Config;
use paraverbs_tenant::hca::*;

/// An event queue of 512 entries.
fn polled() -> Mlx4Config {
    let profile = Profile { log2_cqs: 8, ..config().profile };
    Mlx4Config { profile, completion_eqs: 1, completion_events: CompletionEvents::Polled, ..config() }
}

/// Completion events that a guest was told of, up to now.
fn told(guest: &Guest) -> usize {
    guest.bare.told.try_iter().filter(|told| *told == Told::Completion(CQ_COOKIE)).count()
}

#[test]
fn event_comes_when_somebody_polls_and_not_before() {
    let rig = Rig::new(0x0002_c903_00a1_0000, polled());
    let lid = rig.active().lid;
    for life in 0..2 {
        let [mut near, far] = Guest::pair(&rig.hca, lid);
        for _ in 0..300 {
            near.arm();
            near.post(Opcode::NOP, &[]);
            near.sent();
            assert_eq!(told(&near), 0);
            eventually("the event", || {
                rig.hca.poll_events();
                (told(&near) == 1).then_some(())
            });
        }
        assert!(!rig.hca.poll_events());
        assert_eq!((told(&near), told(&far)), (0, 0));
        near.destroy();
        far.destroy();
        if life == 0 {
            rig.hca.restart().unwrap();
            rig.active();
        }
    }
    rig.close();
}

#[test]
fn threads_that_poll_at_once_tell_of_each_event_once() {
    let rig = Rig::new(0x0002_c903_00a2_0000, polled());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    rig.hca.poll_events();
                    std::thread::yield_now();
                }
            });
        }
        for _ in 0..1200 {
            near.arm();
            near.post(Opcode::NOP, &[]);
            near.sent();
            common::wait_for(&near.bare.told, Told::Completion(CQ_COOKIE));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!((told(&near), rig.hca.poll_events()), (0, false));
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn guest_that_asks_without_pause_is_told_once_more_when_its_event_was_taken() {
    let rig = Rig::new(0x0002_c903_00a4_0000, polled());
    let lid = rig.active().lid;
    let [mut near, mut far] = Guest::pair(&rig.hca, lid);
    let poll_until_told = |guest: &Guest| {
        eventually("the event", || {
            rig.hca.poll_events();
            (told(guest) != 0).then_some(())
        });
    };
    near.post(Opcode::NOP, &[]);
    near.arm();
    poll_until_told(&near);
    // Its completion is there still: the first word is an event, and all others are one when that was taken.
    (0..1000).for_each(|_| near.arm());
    far.arm();
    far.post(Opcode::NOP, &[]);
    far.sent();
    assert_eq!(told(&near), 0);
    poll_until_told(&far);
    let mut events = 0;
    eventually("both events", || {
        rig.hca.poll_events();
        events += told(&near);
        (events == 2).then_some(())
    });
    rig.hca.poll_events();
    assert_eq!(told(&near), 0);
    near.sent();
    near.destroy();
    far.destroy();
    rig.close();
}

/// Else nobody who sleeps would poll.
#[test]
fn event_that_a_command_sends_wakes_who_runs_the_engine() {
    let mut rig = Rig::new(0x0002_c903_00a3_0000, polled());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    rig.run_engine(false);
    let woken = Arc::new(AtomicBool::new(false));
    let waker = Arc::clone(&woken);
    let card = Arc::clone(rig.device.hca());
    card.set_waker(Box::new(move || waker.store(true, Ordering::SeqCst)));
    let settle = || {
        while card.run().worked || rig.hca.poll_events() || !card.may_sleep() {}
    };
    // Moderation holds the event back for 65 ms, unless this thread gets no time to look.
    let held_back = (0..100).any(|_| {
        rig.hca.moderate_cq(near.cq.id, 100, u16::MAX).unwrap();
        near.arm();
        near.post(Opcode::NOP, &[]);
        woken.store(false, Ordering::SeqCst);
        settle();
        near.sent();
        told(&near) == 0
    });
    assert!(held_back);
    rig.hca.moderate_cq(near.cq.id, 0, 0).unwrap();
    assert!(woken.load(Ordering::SeqCst));
    rig.hca.poll_events();
    assert_eq!(told(&near), 1);
    rig.run_engine(true);
    near.destroy();
    far.destroy();
    rig.close();
}
