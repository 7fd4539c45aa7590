//! What a guest can do to its queues: it gets nothing by it, and can go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use virtio_rdma::queue::{CONTROL, EVENT, MAD_SEND, QUEUES};
use virtio_rdma::request::query::{QueryDevice, QueryStats};

use crate::guest::{
    BASE, BYTES, FREE, Guest, INDIRECT_TABLE, NEXT, QUEUE_SIZE, REPLY, REQUEST, WRITE, wait_until,
};
use crate::scene::Scene;

const END: u64 = BASE + BYTES as u64;

#[test]
fn chain_whose_form_is_wrong_is_used_with_length_zero_and_counted() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let request = (BASE + REQUEST, 24, NEXT, 1);
    let table = |bytes, flags| (BASE + FREE, bytes, INDIRECT_TABLE | flags, 0);
    guest.describe(FREE, 0, &[(BASE + FREE, 16, INDIRECT_TABLE, 0)]);
    let wrong: Vec<(&str, Vec<_>)> = vec![
        ("no room at all", vec![(BASE + REQUEST, 24, 0, 0)]),
        ("no room for a header", vec![request, (BASE + REPLY, 23, WRITE, 0)]),
        ("readable behind writable", vec![(BASE + REPLY, 512, WRITE | NEXT, 1), (BASE + REQUEST, 24, 0, 0)]),
        ("loop of one", vec![(BASE + REQUEST, 24, NEXT, 0)]),
        ("loop of two", vec![request, (BASE + REPLY, 512, WRITE | NEXT, 0)]),
        ("next beyond the queue", vec![request, (BASE + REPLY, 512, WRITE | NEXT, QUEUE_SIZE)]),
        ("below memory", vec![(BASE - 1, 24, NEXT, 1), (BASE + REPLY, 512, WRITE, 0)]),
        ("across the end of memory", vec![(END - 8, 24, NEXT, 1), (BASE + REPLY, 512, WRITE, 0)]),
        ("reply outside memory", vec![request, (END, 512, WRITE, 0)]),
        ("address that wraps", vec![(u64::MAX - 3, 24, NEXT, 1), (BASE + REPLY, 512, WRITE, 0)]),
        ("huge length", vec![(BASE, u32::MAX, NEXT, 1), (BASE + REPLY, 512, WRITE, 0)]),
        ("huge reply", vec![request, (BASE + REPLY, u32::MAX, WRITE, 0)]),
        ("more than four gigabytes", vec![(BASE, u32::MAX, NEXT, 1), (BASE, u32::MAX, WRITE, 0)]),
        ("empty table", vec![table(0, 0)]),
        ("table of half a descriptor", vec![table(24, 0)]),
        ("table in a table", vec![table(16, 0)]),
        ("table outside memory", vec![(END, 16, INDIRECT_TABLE, 0)]),
        ("endless table", vec![table(0xffff_fff0, 0)]),
        ("table behind a buffer that ends", vec![request, table(16, NEXT)]),
    ];
    for (refused, (what, chain)) in (1..).zip(&wrong) {
        guest.offer(CONTROL, 0, chain);
        guest.kick(CONTROL);
        assert_eq!(guest.used(CONTROL), (0, 0), "{what}");
        let stats = guest.call(&QueryStats {}, &[]).unwrap();
        assert_eq!(stats.chains_refused.get(), refused, "{what}");
    }
}

#[test]
fn buffers_that_take_no_event_are_used_and_the_event_comes_in_the_next() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::without_queues(socket.path(), crate::guest::VERSION_1, file());
    guest.start_queues();
    guest.offer(EVENT, 0, &[(BASE + REPLY, 31, WRITE, 0)]);
    guest.offer(EVENT, 1, &[(BASE + REQUEST, 64, 0, 0)]);
    guest.offer(EVENT, 2, &[(END, 64, WRITE, 0)]);
    guest.offer(EVENT, 3, &[(BASE + REPLY, 64, WRITE, 0)]);
    guest.kick(EVENT);
    scene.hca.tell(|sink| sink.raise(port_event(2)));
    let used = [0; 4].map(|_| guest.used(EVENT));
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, 32)]);
    assert_eq!(guest.read(REPLY + 1, 1), [2]);
    assert_eq!(guest.call(&QueryStats {}, &[]).unwrap().chains_refused.get(), 3);
}

pub(crate) fn port_event(port: u8) -> paraverbs_tenant::hca::HcaEvent {
    paraverbs_tenant::hca::HcaEvent::Port { port, change: paraverbs_tenant::hca::PortChange::Lid }
}

fn file() -> std::fs::File {
    crate::guest::memfd(BYTES as u64, rustix::fs::SealFlags::SHRINK)
}

#[test]
fn index_beyond_the_queue_is_passed_over_until_it_is_right() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let refused = || socket.status().stats.unwrap().chains_refused.get();
    for queue in [CONTROL, MAD_SEND] {
        let before = refused();
        let index = guest.queues[usize::from(queue)].available() + 2;
        guest.write16(index, QUEUE_SIZE + 1);
        guest.kick(queue);
        wait_until(|| refused() > before);
        guest.write16(index, 0);
    }
    // A head that is no descriptor can't even be given back.
    let before = refused();
    guest.make_available(CONTROL, 0xffff);
    guest.kick(CONTROL);
    wait_until(|| refused() > before);
    guest.call(&QueryDevice {}, &[]).unwrap();
}

/// Says stop when it goes, also by a panic.
pub(crate) struct Stopping<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn guest_that_gives_bad_buffers_without_end_holds_up_neither_events_of_others_nor_the_end() {
    let scene = Scene::new();
    let sockets = ["hostile", "honest"].map(|name| scene.socket(name));
    let mut hostile = Guest::without_queues(sockets[0].path(), crate::guest::VERSION_1, file());
    hostile.start_queues();
    let mut honest = Guest::new(sockets[1].path());
    // Every entry of the queue is a buffer that no event fits into.
    (0..QUEUE_SIZE).for_each(|_| hostile.offer(EVENT, 0, &[(BASE + REPLY, 4, WRITE, 0)]));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopping = Stopping(&stop);
        scope.spawn(|| {
            let queue = &hostile.queues[usize::from(EVENT)];
            let (available, used) = (queue.available() + 2, queue.descriptors() + 0x2002);
            while !stop.load(Ordering::Relaxed) {
                hostile.write16(available, hostile.read16(used).wrapping_add(QUEUE_SIZE / 2));
            }
        });
        for port in [1, 2, 1, 2] {
            hostile.kick(EVENT);
            scene.hca.tell(|sink| sink.raise(port_event(port)));
            assert_eq!(honest.event().port, port);
        }
        wait_until(|| {
            hostile.kick(EVENT);
            sockets[0].status().stats.is_some_and(|stats| stats.chains_refused.get() > 1000)
        });
        let [busy, _other] = sockets;
        busy.stop();
        drop(stopping);
    });
    assert_eq!(scene.hca.guests(), 0);
}

#[test]
fn table_of_more_descriptors_than_the_queue_has_is_refused() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    for (descriptors, taken) in [(QUEUE_SIZE, true), (QUEUE_SIZE + 1, false), (0x1000, false)] {
        let chain: Vec<_> = (1..=descriptors)
            .map(|next| (BASE + REPLY, 64, WRITE | if next < descriptors { NEXT } else { 0 }, next))
            .collect();
        guest.describe(FREE, 0, &chain);
        let before = guest.call(&QueryStats {}, &[]).unwrap().chains_refused.get();
        guest.offer(CONTROL, 0, &[(BASE + FREE, 16 * u32::from(descriptors), INDIRECT_TABLE, 0)]);
        guest.kick(CONTROL);
        // An empty request has a reply, which says so.
        assert_eq!(guest.used(CONTROL).1 != 0, taken, "{descriptors}");
        let refused = guest.call(&QueryStats {}, &[]).unwrap().chains_refused.get() - before;
        assert_eq!(refused, u64::from(!taken));
    }
}

#[derive(Clone, Debug)]
struct Garbage {
    queue: u16,
    head: u16,
    chain: Vec<(u64, u32, u16, u16)>,
    bytes: Vec<u8>,
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let address = prop_oneof![
        4 => (0..BYTES as u64).prop_map(|offset| BASE + offset),
        2 => Just(BASE + REQUEST),
        2 => Just(BASE + FREE),
        1 => any::<u64>(),
        1 => END - 64..END + 64,
    ];
    let length =
        prop_oneof![4 => 0..600u32, 1 => Just(24), 1 => (1..20u32).prop_map(|n| 16 * n), 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..QUEUE_SIZE, 1 => any::<u16>()];
    let head = prop_oneof![6 => 0..QUEUE_SIZE, 1 => any::<u16>()];
    let chain = prop::collection::vec((address, length, flags, next), 1..8);
    let bytes = prop_oneof![prop::collection::vec(any::<u8>(), 64), prop::collection::vec(0..4u8, 64)];
    (0..QUEUES, head, chain, bytes).prop_map(|(queue, head, chain, bytes)| Garbage {
        queue,
        head,
        chain,
        bytes,
    })
}

#[test]
fn random_chains_never_stop_a_queue() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let other = scene.socket("b");
    let mut bystander = Guest::new(other.path());
    let guest = Arc::new(std::sync::Mutex::new(Guest::new(socket.path())));
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 400, failure_persistence: None, ..<_>::default() });
    runner
        .run(&garbage(), |garbage| {
            let mut guest = guest.lock().unwrap();
            let first = garbage.head % QUEUE_SIZE;
            let room = usize::from(QUEUE_SIZE - first);
            guest.write(REQUEST, &garbage.bytes);
            guest.write(FREE, &garbage.bytes);
            let table = guest.queues[usize::from(garbage.queue)].descriptors();
            // A random writable buffer may hit the queues themselves: then the guest begins anew.
            guest.describe(table, first, &garbage.chain[..garbage.chain.len().min(room)]);
            guest.make_available(garbage.queue, garbage.head);
            guest.kick(garbage.queue);
            for queue in [garbage.queue, CONTROL] {
                guest.frontend_restart(queue);
            }
            let answer = guest.call(&QueryDevice {}, &[]);
            prop_assert!(answer.is_ok(), "{answer:?}");
            Ok(())
        })
        .unwrap();
    bystander.call(&QueryDevice {}, &[]).unwrap();
    assert_eq!(socket.status().connections, 1);
}
