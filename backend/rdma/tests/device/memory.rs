//! Memory tables: what is accepted, what stays, what is torn down, and memory that is taken away.

use std::fs::File;

use rustix::fs::SealFlags;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_rdma::Reason;
use virtio_rdma::event::EventType;
use virtio_rdma::queue::{CONTROL, FIRST_KICK};
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::query::QueryDevice;

use crate::guest::{
    BASE, BYTES, FREE, Guest, Memory, NEXT, REPLY, VERSION_1, WRITE, connect, memfd, region, wait_until,
};
use crate::objects::{Process, alloc_uar};
use crate::scene::Scene;

/// A second region.
const SECOND: u64 = 0x2_0000_0000;

fn refused(scene: &Scene, file: &File, bytes: u64) {
    let socket = scene.socket("a");
    let frontend = connect(socket.path(), VERSION_1);
    let info = region(BASE, bytes, 0x1000_0000, file);
    frontend.set_mem_table(&[info]).unwrap_err();
    wait_until(|| !socket.status().connected && scene.hca.guests() == 0);
    // Another connection is served.
    Guest::new(socket.path()).call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn memory_without_the_seal_is_refused_where_it_is_required() {
    let scene = Scene::new();
    refused(&scene, &memfd(BYTES as u64, SealFlags::GROW), BYTES as u64);

    let mut config = scene.config("vm");
    config.require_seals = false;
    let socket = paraverbs_rdma::GuestSocket::listen(&scene.host, config).unwrap();
    let file = memfd(BYTES as u64, SealFlags::empty());
    Guest::with(socket.path(), VERSION_1, file).call(&AllocPd {}, &[]).unwrap();
}

#[test]
fn memory_of_a_file_with_a_name_is_refused() {
    let scene = Scene::new();
    let file = File::create_new(scene.path("memory")).unwrap();
    file.set_len(BYTES as u64).unwrap();
    let file = File::options().read(true).write(true).open(scene.path("memory")).unwrap();
    refused(&scene, &file, BYTES as u64);
}

#[test]
fn memory_beyond_the_end_of_its_file_is_refused() {
    let scene = Scene::new();
    refused(&scene, &memfd(0x1000, SealFlags::SHRINK), 0x2000);
}

#[test]
fn region_is_added_and_removed_while_the_others_keep_their_pins() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    Process::new(&mut guest, 0);
    assert_eq!(guest.call(&alloc_uar(SECOND), &[]).err(), Some(Reason::NOT_IN_MEMORY));

    let second = Memory::new(SECOND, memfd(BYTES as u64, SealFlags::SHRINK), BYTES);
    let before = scene.hca.log();
    guest.frontend.add_mem_region(&second.info()).unwrap();
    guest.call(&alloc_uar(SECOND), &[]).unwrap();
    guest.frontend.remove_mem_region(&second.info()).unwrap();
    // Of the one in use nothing was taken back, of the other everything.
    let log = scene.hca.log().split_off(before.len());
    assert_eq!(log.iter().filter(|call| call.starts_with("create")).count(), 1);
    assert!(!log.iter().any(|call| call == "destroy cq" || call == "destroy qp"), "{log:?}");
    assert_eq!(guest.call(&alloc_uar(SECOND), &[]).err(), Some(Reason::NOT_IN_MEMORY));
}

#[test]
fn same_table_again_changes_nothing() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let process = Process::new(&mut guest, 0);
    let (log, left) = (scene.hca.log(), scene.hca.left());
    for _ in 0..3 {
        guest.frontend.set_mem_table(&[guest.memory.info()]).unwrap();
    }
    assert_eq!((scene.hca.log(), scene.hca.left()), (log, left));
    let _kick = virtio_rdma::doorbell::ring(&process.area(&guest), process.send, 1);
    guest.kick(FIRST_KICK);
    wait_until(|| scene.hca.sends(process.qpn).0 == 1);
}

#[test]
fn objects_in_a_region_that_goes_away_are_taken_back_and_told() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    Process::new(&mut guest, 0);
    // Another file at the same place.
    let other = Memory::new(BASE, memfd(BYTES as u64, SealFlags::SHRINK), BYTES);
    let image = guest.read(0, BYTES);
    other.write(0, &image);
    guest.frontend.set_mem_table(&[other.info()]).unwrap();
    guest.memory = other;
    let kinds = [guest.event().event_type, guest.event().event_type];
    assert_eq!(kinds, [EventType::QP_FATAL, EventType::CQ_ERR]);
    guest.call(&QueryDevice {}, &[]).unwrap();
    assert_eq!(scene.hca.left().1, 0);
}

/// A guest whose memory can be cut short, and another that must not notice.
fn pair(scene: &Scene) -> ([paraverbs_rdma::GuestSocket; 2], [Guest; 2]) {
    let mut config = scene.config("hostile");
    config.require_seals = false;
    let sockets = [paraverbs_rdma::GuestSocket::listen(&scene.host, config).unwrap(), scene.socket("honest")];
    let hostile = Guest::with(sockets[0].path(), VERSION_1, memfd(BYTES as u64, SealFlags::empty()));
    let honest = Guest::new(sockets[1].path());
    (sockets, [hostile, honest])
}

fn is_cut_off(scene: &Scene, sockets: &[paraverbs_rdma::GuestSocket; 2], honest: &mut Guest) {
    wait_until(|| !sockets[0].status().connected && scene.hca.guests() == 1);
    honest.call(&AllocPd {}, &[]).unwrap();
    assert_eq!(sockets[1].status().connections, 1);
}

#[test]
fn guest_that_cuts_its_memory_short_under_the_control_queue_is_cut_off() {
    let scene = Scene::new();
    let (sockets, [mut hostile, mut honest]) = pair(&scene);
    // The queues stay, the request goes.
    let gone = 4 << 20;
    let chain = [(BASE + gone, 24, NEXT, 1), (BASE + REPLY, 512, WRITE, 0)];
    hostile.offer(CONTROL, 0, &chain);
    hostile.memory.file.set_len(gone).unwrap();
    hostile.kick(CONTROL);
    is_cut_off(&scene, &sockets, &mut honest);
}

#[test]
fn guest_that_cuts_its_memory_short_under_the_relay_is_cut_off() {
    let scene = Scene::new();
    let (sockets, [mut hostile, mut honest]) = pair(&scene);
    Process::new(&mut hostile, 0);
    let process = Process::new(&mut honest, 0);
    hostile.memory.file.set_len(FREE).unwrap();
    hostile.kick(FIRST_KICK);
    is_cut_off(&scene, &sockets, &mut honest);
    // The relay goes on.
    let _kick = virtio_rdma::doorbell::ring(&process.area(&honest), process.send, 1);
    honest.kick(FIRST_KICK);
    wait_until(|| scene.hca.sends(process.qpn).0 == 1);
}

#[test]
fn guest_whose_queues_themselves_go_is_cut_off() {
    let scene = Scene::new();
    let (sockets, [hostile, mut honest]) = pair(&scene);
    hostile.memory.file.set_len(0).unwrap();
    hostile.kick(CONTROL);
    is_cut_off(&scene, &sockets, &mut honest);
}

#[test]
fn guest_that_cuts_short_what_only_the_tenant_reads_is_cut_off() {
    let scene = Scene::new();
    let (sockets, [mut hostile, mut honest]) = pair(&scene);
    hostile.memory.file.set_len(4 << 20).unwrap();
    // The header of the area is written by the tenant.
    hostile.send(&alloc_uar(BASE + (6 << 20)), &[]);
    is_cut_off(&scene, &sockets, &mut honest);
}
