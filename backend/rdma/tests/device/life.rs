//! Connections that end, at any moment, and an HCA that is lost.

use virtio_rdma::Reason;
use virtio_rdma::config::DeviceState;
use virtio_rdma::doorbell::ring;
use virtio_rdma::event::EventType;
use virtio_rdma::queue::FIRST_KICK;
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::query::QueryDevice;

use crate::guest::{Guest, VERSION_1, config, connect, wait_until};
use crate::objects::Process;
use crate::scene::Scene;

#[test]
fn every_connection_has_another_generation_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut before = 0;
    for connections in 1..=5 {
        let mut guest = Guest::new(socket.path());
        assert!(guest.generation > before);
        before = guest.generation;
        Process::new(&mut guest, 0);
        let status = socket.status();
        assert!(status.connected);
        assert_eq!((status.generation, status.connections), (Some(before), connections));
        drop(guest);
        wait_until(|| !socket.status().connected && scene.hca.guests() == 0);
        assert_eq!(scene.hca.left(), (0, 0));
    }
    wait_until(|| socket.status().last_teardown.is_some());
    assert_eq!(socket.status().last_teardown, Some(paraverbs_tenant::TeardownReport::default()));
}

#[test]
fn guests_on_their_own_sockets_have_generations_of_their_own() {
    let scene = Scene::new();
    let sockets = ["a", "b", "c"].map(|name| scene.socket(name));
    let mut generations =
        sockets.each_ref().map(|socket| config(&mut connect(socket.path(), VERSION_1)).generation.get());
    generations.sort_unstable();
    assert!(generations.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn disconnection_in_the_middle_of_a_request_waits_for_it_and_nobody_else_waits() {
    let scene = Scene::new();
    let sockets = ["a", "b"].map(|name| scene.socket(name));
    let mut guests = sockets.each_ref().map(|socket| Guest::new(socket.path()));
    let process = Process::new(&mut guests[0], 0);
    let [mut leaving, mut staying] = guests;

    scene.hca.hold_up(true);
    leaving.send(&AllocPd {}, &[]);
    scene.hca.wait_for_held_up(1);
    // Doorbells don't wait for requests.
    let _kick = ring(&process.area(&leaving), process.send, 1);
    leaving.kick(FIRST_KICK);
    wait_until(|| scene.hca.sends(process.qpn).0 == 1);
    drop(leaving);
    staying.call(&QueryDevice {}, &[]).unwrap();
    assert_ne!(scene.hca.left().0, 0);

    scene.hca.hold_up(false);
    wait_until(|| scene.hca.left() == (0, 0) && scene.hca.guests() == 1);
    staying.call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn socket_that_is_stopped_ends_its_guest_only() {
    let scene = Scene::new();
    let (a, b) = (scene.socket("a"), scene.socket("b"));
    let mut guests = [&a, &b].map(|socket| Guest::new(socket.path()));
    Process::new(&mut guests[0], 0);
    let path = a.path().to_owned();
    a.stop();
    assert_eq!((scene.hca.left(), scene.hca.guests()), ((0, 0), 1));
    assert!(!path.exists());
    guests[1].call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn lost_hca_is_told_to_every_guest_and_comes_back() {
    let scene = Scene::new();
    let sockets = ["a", "b"].map(|name| scene.socket(name));
    let mut guests = sockets.each_ref().map(|socket| Guest::new(socket.path()));
    let process = Process::new(&mut guests[0], 0);

    scene.host.stop_all();
    assert_eq!(guests[0].call(&AllocPd {}, &[]).err(), Some(Reason::STARTING));
    let _kick = ring(&process.area(&guests[0]), process.send, 1);
    guests[0].kick(FIRST_KICK);
    scene.hca.lose(true);
    let generation = scene.host.device_lost();
    for guest in &mut guests {
        assert_eq!(config(&mut guest.frontend).state, DeviceState::STARTING);
        let event = guest.event();
        assert_eq!((event.event_type, event.generation.get()), (EventType::DEVICE_FATAL, generation));
        guest.generation = generation;
        assert_eq!(guest.call(&AllocPd {}, &[]).err(), Some(Reason::STARTING));
    }
    scene.hca.lose(false);
    scene.host.device_ready();
    for guest in &mut guests {
        assert_eq!(guest.event().event_type, EventType::DEVICE_READY);
        assert_eq!(config(&mut guest.frontend).state, DeviceState::READY);
        guest.call(&AllocPd {}, &[]).unwrap();
    }
    assert_eq!(scene.hca.sends(process.qpn).0, 0);
    Process::new(&mut guests[1], 0);
}

#[test]
fn guest_that_comes_while_the_hca_is_down_waits_for_it() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    scene.host.stop_all();
    scene.hca.lose(true);
    let path = socket.path().to_owned();
    let guest = std::thread::spawn(move || Guest::new(&path).call(&AllocPd {}, &[]).map(|_| ()));
    scene.host.device_lost();
    scene.hca.lose(false);
    scene.host.device_ready();
    assert_eq!(guest.join().unwrap(), Ok(()));

    // Nor does stopping wait for an HCA that doesn't come back.
    scene.host.stop_all();
    let waiting = std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
    socket.stop();
    drop(waiting);
}

#[test]
fn hca_that_failed_for_good_has_failed_devices() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    Process::new(&mut guest, 0);
    scene.host.stop_all();
    scene.hca.lose(true);
    scene.host.device_failed();
    let failed = config(&mut guest.frontend);
    assert_eq!(failed.state, DeviceState::FAILED);
    // Nobody else tells a driver whose VMM passes no configuration change.
    let event = guest.event();
    assert_eq!((event.event_type, event.generation), (EventType::DEVICE_FATAL, failed.generation));
    assert_ne!(event.generation.get(), guest.generation);
    guest.generation = event.generation.get();
    assert_eq!(guest.call(&AllocPd {}, &[]).err(), Some(Reason::HCA_LOST));
    // The HCA may not have been reset, so nothing is unmapped.
    drop(guest);
    wait_until(|| !socket.status().connected);
    wait_until(|| socket.status().last_teardown.is_some());
    assert_ne!(scene.hca.left().1, 0);
    assert_eq!(scene.host.host().quarantined_bytes(), scene.hca.left().1);
}

#[test]
fn status_waits_neither_for_a_request_nor_for_an_hca_that_is_being_stopped() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    Process::new(&mut guest, 0);
    let before = socket.status().stats.unwrap();
    scene.hca.hold_up(true);
    guest.send(&AllocPd {}, &[]);
    scene.hca.wait_for_held_up(1);
    std::thread::scope(|scope| {
        scope.spawn(|| scene.host.stop_all());
        let status = socket.status();
        assert_eq!((status.connected, status.generation), (true, Some(guest.generation)));
        let stats = status.stats.unwrap();
        assert_eq!((stats.objects, stats.requests.get()), (before.objects, before.requests.get() + 1));
        assert_eq!(scene.host.connected(), 1);
        scene.hca.hold_up(false);
    });
    guest.reply::<AllocPd>().unwrap();
    wait_until(|| socket.status().stats.unwrap().objects.get() == before.objects.get() + 1);
}
