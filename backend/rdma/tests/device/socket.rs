//! Sockets' paths, and what else can come over them.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use paraverbs_rdma::{GuestSocket, ListenError};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_rdma::queue::CONTROL;
use virtio_rdma::request::domain::AllocPd;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::guest::{Guest, VERSION_1, connect, wait_until};
use crate::scene::Scene;

fn error(scene: &Scene, path: PathBuf) -> ListenError {
    let config = paraverbs_rdma::GuestSocketConfig { path, ..scene.config("a") };
    GuestSocket::listen(&scene.host, config).unwrap_err()
}

#[test]
fn path_that_is_too_long_is_refused_with_the_limit() {
    let scene = Scene::new();
    let path = Path::new("/").join("x".repeat(107));
    let message = error(&scene, path).to_string();
    assert!(message.contains("108 bytes") && message.contains("107"), "{message}");
}

#[test]
fn directory_that_is_missing_is_named() {
    let scene = Scene::new();
    assert!(matches!(error(&scene, scene.path("none").join("a")), ListenError::NoDirectory { .. }));
    std::fs::write(scene.path("file"), "").unwrap();
    assert!(matches!(error(&scene, scene.path("file").join("a")), ListenError::NoDirectory { .. }));
}

#[test]
fn socket_in_use_is_refused_and_a_stale_one_is_replaced() {
    let scene = Scene::new();
    let first = scene.socket("a");
    assert!(matches!(error(&scene, scene.path("a")), ListenError::InUse { .. }));
    Guest::new(first.path()).call(&AllocPd {}, &[]).unwrap();

    // Dropping the listener leaves the file.
    drop(UnixListener::bind(scene.path("stale")).unwrap());
    let stale = scene.socket("stale");
    Guest::new(stale.path()).call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn file_that_is_no_socket_is_left_alone() {
    let scene = Scene::new();
    std::fs::write(scene.path("a"), "mine").unwrap();
    assert!(matches!(error(&scene, scene.path("a")), ListenError::NotASocket { .. }));
    assert_eq!(std::fs::read(scene.path("a")).unwrap(), b"mine");
}

#[test]
fn file_that_is_somebody_elses_by_now_is_not_removed() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    std::fs::remove_file(socket.path()).unwrap();
    let theirs = UnixListener::bind(socket.path()).unwrap();
    socket.stop();
    assert!(scene.path("a").exists());
    drop(theirs);
}

#[test]
fn garbage_on_the_socket_ends_that_connection_only() {
    let scene = Scene::new();
    let sockets = ["a", "b"].map(|name| scene.socket(name));
    let mut bystander = Guest::new(sockets[1].path());
    for garbage in [&[0xff; 64][..], &[0; 64], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f], b"GET /"] {
        let mut stream = UnixStream::connect(sockets[0].path()).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let before = sockets[0].status().connections;
        drop(stream);
        wait_until(|| scene.hca.guests() == 1);
        assert!(sockets[0].status().connections >= before);
    }
    Guest::new(sockets[0].path()).call(&AllocPd {}, &[]).unwrap();
    bystander.call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn messages_out_of_order_end_that_connection_only() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    // Rings before there is memory.
    let mut frontend = connect(socket.path(), VERSION_1);
    frontend.set_vring_enable(0, true).unwrap();
    frontend.set_vring_base(0, 7).unwrap();
    frontend.get_vring_base(0).unwrap();
    frontend.set_vring_num(0, 3).unwrap();
    frontend.set_vring_num(0, 2048).unwrap_err();
    wait_until(|| scene.hca.guests() == 0);

    let second = connect(socket.path(), VERSION_1);
    second.set_owner().unwrap_err();
    Guest::new(socket.path()).call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn call_that_is_full_and_kick_that_is_empty_hold_nobody_up() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let full = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    guest.frontend.set_vring_call(usize::from(CONTROL), &full).unwrap();
    guest.send(&AllocPd {}, &[]);
    wait_until(|| guest.try_used(CONTROL).is_some());
    // The guest takes its own kicks away, as far as it is fast enough.
    for _ in 0..100 {
        guest.kick(CONTROL);
        let _late = guest.queues[usize::from(CONTROL)].kick.read();
    }
    socket.stop();
    assert_eq!(scene.hca.guests(), 0);
}

#[test]
fn call_that_the_guest_fills_again_and_again_does_not_hold_up_the_end() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let call = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    guest.frontend.set_vring_call(usize::from(CONTROL), &call).unwrap();
    let filled = Epoll::new().unwrap();
    filled.ctl(ControlOperation::Add, call.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    let empty = || {
        if filled.wait(0, &mut [EpollEvent::default()]).unwrap() == 1 {
            call.read().unwrap();
        }
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Waits until the counter is empty, and fills it.
        let filler = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                call.write(u64::MAX - 1).unwrap();
            }
        });
        for _ in 0..20 {
            guest.send(&AllocPd {}, &[]);
            // The worker may wait for room in the call: it gets some until it was faster than the filler.
            wait_until(|| {
                empty();
                guest.try_used(CONTROL).is_some()
            });
        }
        guest.send(&AllocPd {}, &[]);
        socket.stop();
        stop.store(true, Ordering::SeqCst);
        while !filler.is_finished() {
            // What it fills is left full, or empty if it has seen the flag.
            empty();
        }
    });
    assert_eq!((scene.hca.guests(), scene.hca.left()), (0, (0, 0)));
}
