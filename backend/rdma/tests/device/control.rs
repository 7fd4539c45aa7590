//! The handshake, the configuration space, and requests.

use rustix::fs::SealFlags;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_rdma::config::DeviceState;
use virtio_rdma::mad::MadSent;
use virtio_rdma::queue::{CONTROL, MAD_SEND, QUEUES};
use virtio_rdma::request::domain::{AllocPd, DeallocPd};
use virtio_rdma::request::query::{QueryDevice, QueryStats};
use virtio_rdma::{Reason, Status, U32};
use zerocopy::{FromBytes, IntoBytes};

use crate::guest::{
    BASE, BYTES, EVENT_IDX, FREE, Guest, INDIRECT, INDIRECT_TABLE, NEXT, REPLY, REQUEST, VERSION_1, WRITE,
    config, connect, memfd,
};
use crate::scene::Scene;

#[test]
fn handshake_gives_sixteen_queues_and_the_configuration_space() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut frontend = connect(socket.path(), VERSION_1);
    assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
    let space = config(&mut frontend);
    assert_eq!((space.ports, space.state), (2, DeviceState::READY));
    assert_eq!((space.completion_vectors, space.kick_queues), (8, 1));

    let (_, bytes) = frontend.get_config(0x0c, 4, VhostUserConfigFlags::WRITABLE, &[0; 4]).unwrap();
    assert_eq!(bytes, space.generation.as_bytes());
}

#[test]
fn configuration_space_is_read_only() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut frontend = connect(socket.path(), VERSION_1);
    let before = config(&mut frontend);
    frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[0xff; 16]).unwrap();
    assert_eq!(config(&mut frontend), before);
}

#[test]
fn requests_are_carried_out_and_counted() {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX | INDIRECT] {
        let scene = Scene::new();
        let socket = scene.socket("a");
        let mut guest = Guest::with(socket.path(), features, memfd(BYTES as u64, SealFlags::SHRINK));
        let attributes = guest.call(&QueryDevice {}, &[]).unwrap();
        assert_eq!(attributes.vendor_part_id.get(), 4099);
        // More than a queue has room for, so that its indexes go round.
        for _ in 0..40 {
            let pd = guest.call(&AllocPd {}, &[]).unwrap().pd;
            guest.call(&DeallocPd { pd, ..zerocopy::FromZeros::new_zeroed() }, &[]).unwrap();
        }
        let refused = guest.call(&DeallocPd { pd: U32::new(9), ..zerocopy::FromZeros::new_zeroed() }, &[]);
        assert_eq!(refused.err(), Some(Reason::BAD_HANDLE));
        let stats = guest.call(&QueryStats {}, &[]).unwrap();
        assert_eq!((stats.requests.get(), stats.requests_failed.get()), (83, 1));
        assert_eq!(socket.status().stats.map(|stats| stats.requests.get()), Some(83));
        assert_eq!(stats.chains_refused.get(), 0);
    }
}

#[test]
fn request_in_many_buffers_and_behind_a_table_is_one_message() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    guest.call(&QueryDevice {}, &[]).unwrap();
    let whole = guest.read(REPLY, 256);
    guest.write(REPLY, &[0; 256]);

    // The request of before, a byte at a time where its fields are, through a table.
    let cuts = [(0, 1), (1, 3), (4, 4), (8, 8), (16, 0), (16, 8)];
    let mut chain: Vec<_> = cuts.map(|(at, bytes)| (BASE + REQUEST + at, bytes, NEXT, 0)).to_vec();
    chain.extend([(BASE + REPLY, 5, WRITE | NEXT, 0), (BASE + REPLY + 5, 300, WRITE, 0)]);
    for (next, descriptor) in (1..).zip(&mut chain) {
        descriptor.3 = next;
    }
    guest.describe(FREE, 0, &chain);
    let table = (BASE + FREE, 16 * chain.len() as u32, INDIRECT_TABLE, 0);
    guest.offer(CONTROL, 7, &[table]);
    guest.kick(CONTROL);
    assert_eq!(guest.used(CONTROL), (7, 256));
    assert_eq!(guest.read(REPLY, 256), whole);
}

#[test]
fn request_longer_than_allowed_is_refused_in_a_reply() {
    let scene = Scene::new();
    let mut config = scene.config("a");
    config.guest.limits.request_bytes = 256;
    let socket = paraverbs_rdma::GuestSocket::listen(&scene.host, config).unwrap();
    let mut guest = Guest::new(socket.path());
    let chain = [(BASE + REQUEST, 4 << 20, NEXT, 1), (BASE + REPLY, 24, WRITE, 0)];
    guest.offer(CONTROL, 0, &chain);
    guest.kick(CONTROL);
    assert_eq!(guest.used(CONTROL), (0, 24));
    assert_eq!(guest.read(REPLY, 2), [Status::INVALID.0, Reason::REQUEST_TOO_LONG.0]);
}

#[test]
fn request_of_another_generation_is_refused() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    guest.generation = guest.generation.wrapping_sub(1);
    assert_eq!(guest.call(&AllocPd {}, &[]).err(), Some(Reason::STALE_GENERATION));
    assert!(!scene.hca.log().contains(&"create pd".to_owned()));
}

#[test]
fn mads_are_answered_with_not_offered() {
    let scene = Scene::new();
    let socket = scene.socket("a");
    let mut guest = Guest::new(socket.path());
    let chain = [(BASE + REQUEST, 80, NEXT, 1), (BASE + REPLY, 8, WRITE, 0)];
    guest.offer(MAD_SEND, 0, &chain);
    guest.kick(MAD_SEND);
    assert_eq!(guest.used(MAD_SEND), (0, 8));
    let sent = MadSent::read_from_bytes(&guest.read(REPLY, 8)).unwrap();
    assert_eq!((sent.status, sent.reason), (Status::NOT_SUPPORTED, Reason::NOT_OFFERED));
}
