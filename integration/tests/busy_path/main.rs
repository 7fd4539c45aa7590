//! What a message costs between two guests besides time: copies, allocations and wake-ups, all counted. Guests and
//! daemon are in this process, so that their threads can be told apart and looked at.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod allocator;
mod copies;
mod scene;
mod wakeups;

use std::time::Duration;

use paraverbs_verbs::SendOp;

use scene::Scene;

/// Messages before those that are counted, and those.
const WARM_UP: u64 = 500;
const MESSAGES: u64 = 2000;
/// The relay's thread also runs what isn't for guests (management of the subnet), which allocates, but seldom.
const ATTEMPTS: u32 = 50;

#[test]
fn posting_relaying_executing_and_polling_allocate_nothing() {
    let scene = Scene::new(Some(Duration::from_millis(1)));
    let [near, far] = scene.connection();
    let op = SendOp::Write { remote_addr: far.mr.addr(), rkey: far.mr.rkey() };
    let exchange = |messages: u64| {
        for number in 0..messages {
            near.post(number, op, 0, 4096);
            near.done(number);
        }
    };
    exchange(WARM_UP);
    let relay =
        allocator::of_thread("rdma-relay").expect("the relay's thread has a name, and allocated once");
    let own = allocator::of_this_thread();
    let quiet = (0..ATTEMPTS).any(|_| {
        let before = [relay.count(), own.count()];
        exchange(MESSAGES);
        [relay.count(), own.count()] == before
    });
    assert!(quiet, "{ATTEMPTS} times {MESSAGES} messages, and each time relay or guest has allocated");
    drop((near, far));
    scene.stop();
}

#[test]
fn allocations_are_counted_for_their_thread() {
    let own = allocator::of_this_thread();
    let before = own.count();
    drop(std::hint::black_box(Box::new(7u64)));
    assert_eq!(own.count(), before + 1);
    std::thread::spawn(|| drop(std::hint::black_box(vec![1u8; 100]))).join().unwrap();
    let spawned = own.count();
    assert_eq!(allocator::of_this_thread().count(), spawned);
}
