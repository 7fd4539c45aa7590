//! Asynchronous and completion events, and what comes when a driver's device began anew.

use paraverbs_tenant::hca::{Cookie, PortChange};
use rustix::fs::SealFlags;
use vhost::VhostBackend;
use virtio_rdma::event::{CompletionEvent, EventType};
use virtio_rdma::queue::{CONTROL, EVENT, FIRST_VECTOR};
use virtio_rdma::request::completion::DestroyCq;
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::queue_pair::DestroyQp;
use virtio_rdma::{Reason, U32};
use zerocopy::{FromBytes, FromZeros};

use crate::guest::{
    BASE, BYTES, EVENT_IDX, Guest, Memory, QUEUE_SIZE, VERSION_1, WRITE, config, connect, memfd, wait_until,
};
use crate::hostile::port_event;
use crate::objects::Process;
use crate::scene::Scene;

/// Where a test's completion events go.
const COMPLETIONS: u64 = 0xb_0000;

#[test]
fn events_come_in_order_and_are_kept_while_there_is_no_buffer() {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let scene = Scene::new();
        let socket = scene.socket("a");
        let file = memfd(BYTES as u64, SealFlags::SHRINK);
        let mut guest = Guest::without_queues(socket.path(), features, file);
        guest.start_queues();
        let ports =
            (1..=2).cycle().take(3 * usize::from(QUEUE_SIZE)).map(|port| (port, EventType::LID_CHANGE));
        for (port, _) in ports.clone() {
            scene.hca.tell(|sink| sink.raise(port_event(port)));
        }
        guest.give_event_buffers();
        guest.kick(EVENT);
        for expected in ports {
            let event = guest.event();
            assert_eq!((event.port, event.event_type), expected);
            assert_eq!((event.generation.get(), event.lost.get()), (guest.generation, 0));
        }
    }
}

#[test]
fn events_beyond_the_limit_are_counted_and_told() {
    let scene = Scene::new();
    let mut config = scene.config("a");
    config.guest.limits.events = 4;
    let socket = paraverbs_rdma::GuestSocket::listen(&scene.host, config).unwrap();
    let mut guest = Guest::without_queues(socket.path(), VERSION_1, memfd(BYTES as u64, SealFlags::SHRINK));
    for _ in 0..7 {
        scene.hca.tell(|sink| sink.raise(port_event(1)));
    }
    guest.start_queues();
    guest.give_event_buffers();
    guest.kick(EVENT);
    let lost = [0; 4].map(|_| guest.event().lost.get());
    assert_eq!(lost, [3, 0, 0, 0]);
}

#[test]
fn completion_events_come_on_their_vector_once_for_each_firing() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let processes = [(0, 2), (1, 7)].map(|(number, vector)| Process::on_vector(&mut guest, number, vector));
    for round in 0..3 {
        for (process, vector) in processes.iter().zip([2, 7]) {
            scene.hca.tell(|sink| sink.completion(Cookie(process.cq)));
            let queue = FIRST_VECTOR + vector;
            let (at, bytes) = (COMPLETIONS + 0x100 * u64::from(vector), 24);
            guest.offer(queue, round, &[(BASE + at, bytes, WRITE, 0)]);
            guest.kick(queue);
            assert_eq!(guest.used(queue), (u32::from(round), 8));
            let event = CompletionEvent::read_from_bytes(&guest.read(at, 8)).unwrap();
            assert_eq!((event.cq.get(), event.generation.get()), (process.cq, guest.generation));
        }
    }
}

/// Else each event would cost a notification, and a wake-up, for the buffer that comes back.
#[test]
fn device_wants_to_know_of_buffers_only_while_an_event_waits_for_one() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::with(socket.path(), VERSION_1, memfd(BYTES as u64, SealFlags::SHRINK));
    let process = Process::on_vector(&mut guest, 0, 3);
    let queue = FIRST_VECTOR + 3;
    for _ in 0..20 {
        scene.hca.tell(|sink| sink.completion(Cookie(process.cq)));
        wait_until(|| guest.wants_kick(queue));
        guest.offer(queue, 0, &[(BASE + COMPLETIONS, 8, WRITE, 0)]);
        guest.kick(queue);
        guest.used(queue);
        wait_until(|| !guest.wants_kick(queue));
        guest.offer(queue, 1, &[(BASE + COMPLETIONS, 8, WRITE, 0)]);
        scene.hca.tell(|sink| sink.completion(Cookie(process.cq)));
        guest.used(queue);
        assert!(!guest.wants_kick(queue));
    }
}

#[test]
fn reply_to_a_destruction_counts_the_events_that_are_in_the_queue() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::on_vector(&mut guest, 0, 3);
    guest.call(&DestroyQp { qp: U32::new(process.qp), ..DestroyQp::new_zeroed() }, &[]).unwrap();
    let queue = FIRST_VECTOR + 3;
    for head in 0..2 {
        guest.offer(queue, head, &[(BASE + COMPLETIONS, 8, WRITE, 0)]);
    }
    guest.kick(queue);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..1000).for_each(|_| scene.hca.tell(|sink| sink.completion(Cookie(process.cq)))));
        let destroyed = guest.call(&DestroyCq { cq: U32::new(process.cq), ..DestroyCq::new_zeroed() }, &[]);
        let counted = destroyed.unwrap().completion_events.get();
        let mut found = 0;
        while guest.try_used(queue).is_some() {
            found += 1;
        }
        assert_eq!(found, counted);
    });
}

#[test]
fn driver_behind_whose_back_the_connection_was_made_anew_is_told_first() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    scene.hca.tell(|sink| sink.raise(port_event(1)));
    assert_eq!(guest.event().event_type, EventType::LID_CHANGE);
    let (before, file) = (guest.generation, guest.memory.file.try_clone().unwrap());

    // The VMM connects again, with the queues as they are.
    let queues = std::mem::take(&mut guest.queues);
    drop(guest);
    let mut guest = Guest::on(connect(socket.path(), VERSION_1), VERSION_1, Memory::new(BASE, file, BYTES));
    guest.take_over(queues);
    // An event that comes before the queue doesn't hide that it comes in use.
    scene.hca.tell(|sink| {
        sink.raise(paraverbs_tenant::hca::HcaEvent::Port { port: 1, change: PortChange::Gid });
    });
    config(&mut guest.frontend);
    guest.start_queues();
    let fatal = guest.event();
    assert_eq!(fatal.event_type, EventType::DEVICE_FATAL);
    assert_ne!(fatal.generation.get(), before);
    assert_eq!(guest.event().event_type, EventType::DEVICE_READY);

    assert_eq!(fatal.generation.get(), config(&mut guest.frontend).generation.get());
    guest.generation = before;
    assert_eq!(guest.call(&AllocPd {}, &[]).err(), Some(Reason::STALE_GENERATION));
    guest.generation = fatal.generation.get();
    guest.call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn queues_that_begin_anew_get_no_event_and_lose_their_objects() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    Process::new(&mut guest, 0);
    scene.hca.tell(|sink| sink.raise(port_event(1)));
    guest.event();
    // A guest's reset, as QEMU tells it.
    for queue in [CONTROL, EVENT] {
        guest.frontend_restart(queue);
    }
    assert_eq!(scene.hca.left().0, 0);
    guest.give_event_buffers();
    guest.kick(EVENT);
    scene.hca.tell(|sink| sink.raise(port_event(2)));
    let event = guest.event();
    assert_eq!((event.event_type, event.port), (EventType::LID_CHANGE, 2));
    guest.call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn driver_that_goes_on_after_its_queues_were_stopped_is_told() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    Process::new(&mut guest, 0);
    scene.hca.tell(|sink| sink.raise(port_event(1)));
    guest.event();
    // A VMM that stops a guest and lets it go on.
    for queue in [CONTROL, EVENT] {
        let base = guest.frontend.get_vring_base(usize::from(queue)).unwrap();
        assert_ne!(base, 0);
    }
    for queue in [CONTROL, EVENT] {
        guest.start_queue(queue);
    }
    let fatal = guest.event();
    assert_eq!(fatal.event_type, EventType::DEVICE_FATAL);
    assert_ne!(fatal.generation.get(), guest.generation);
    assert_eq!(guest.event().event_type, EventType::DEVICE_READY);
}
