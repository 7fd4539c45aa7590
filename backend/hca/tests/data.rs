//! Two guests send to each other through rings in their own memory; the HCA's owner only rings doorbells.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::guest::{ADDRESS, CQ_COOKIE, Guest};
use common::rings::{datagram, remote};
use common::{Rig, Told, config, wait_for};
use mlx4_wire::wqe::Opcode;
use paraverbs_tenant::hca::{Gid, Grh, Hca, McastGroup, Path, QpState};

#[test]
fn guests_send_to_each_other_and_leave_nothing_behind() {
    let rig = Rig::new(0x0002_c903_0071_0000, config());
    let lid = rig.active().lid;
    let (before, objects) = (rig.dump(), rig.hca.driver(mlx4::Hca::objects).unwrap());
    let mut guests = Guest::pair(&rig.hca, lid);
    for round in 0..300u32 {
        let text = format!("message {round} of a guest");
        let length = u32::try_from(text.len()).unwrap();
        let [near, far] = &mut guests;
        far.arm();
        far.post_receive(0x1000, 4096);
        near.write(0, text.as_bytes());
        let body = near.data(0, length);
        near.post(Opcode::SEND, &body);
        near.sent();
        let received = far.completion();
        assert_eq!((received.is_send, received.bytes, received.syndrome), (false, length, None));
        assert_eq!(far.read(0x1000, text.len()), text.as_bytes());
        wait_for(&far.bare.told, Told::Completion(CQ_COOKIE));
        far.completions.sequence = (far.completions.sequence + 1) & 3;
        guests.swap(0, 1);
    }
    guests.into_iter().for_each(Guest::destroy);
    assert_eq!((rig.dump(), rig.hca.driver(mlx4::Hca::objects).unwrap()), (before, objects));
    assert_eq!(rig.device.hca().counters().bad_doorbells.get(), 0);
    rig.close();
}

#[test]
fn writes_and_reads_reach_the_other_guest_s_memory() {
    let rig = Rig::new(0x0002_c903_0072_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let text: Vec<u8> = (0..=250u8).cycle().take(100_000).collect();
    near.write(0, &text);
    let write = [remote(far.keys.rkey, ADDRESS + 0x2_0000), near.data(0, 100_000)].concat();
    near.post(Opcode::RDMA_WRITE, &write);
    near.sent();
    assert_eq!(far.read(0x2_0000, 100_000), text);
    let read = [remote(far.keys.rkey, ADDRESS + 0x2_0000), near.data(0x3_0000, 100_000)].concat();
    near.post(Opcode::RDMA_READ, &read);
    near.sent();
    assert_eq!(near.read(0x3_0000, 100_000), text);
    near.destroy();
    far.destroy();
    rig.close();
}

const QKEY: u32 = 0x1234;
/// Bytes in front of a datagram's payload.
const GRH_BYTES: u32 = 40;

/// Sends text along a path.
fn send(guest: &mut Guest, path: &Path, qpn: u32, text: &[u8]) {
    let vector = guest.bare.hca.address_vector(guest.pd, path).unwrap();
    guest.write(0, text);
    let length = u32::try_from(text.len()).unwrap();
    let body = [datagram(&vector.0, qpn, QKEY), guest.data(0, length)].concat();
    guest.post(Opcode::SEND, &body);
    guest.sent();
}

#[test]
fn datagrams_reach_a_queue_pair_and_a_group() {
    let rig = Rig::new(0x0002_c903_0073_0000, config());
    let lid = rig.active().lid;
    let mut guests = [0, 1, 2].map(|n| Guest::of_datagrams(&rig.hca, n));
    guests.iter().for_each(|guest| guest.start(QKEY));
    let [near, far, other] = &mut guests;
    let path = Path { port: 1, dlid: lid, sl: 0, src_path_bits: 0, static_rate: 0, grh: None, dmac: [0; 6] };
    far.post_receive(0x1000, 4096);
    send(near, &path, far.qp.number, b"to one");
    assert_eq!(far.completion().bytes, GRH_BYTES + 6);
    assert_eq!(far.read(0x1000 + GRH_BYTES as usize, 6), b"to one");

    let mgid = Gid([0xff, 0x12, 0x40, 0x1b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let group = McastGroup { mgid, mlid: 0xc000 };
    for member in [&mut *far, &mut *other] {
        rig.hca.attach_mcast(member.qp.id, &group).unwrap();
        member.post_receive(0x1000, 4096);
    }
    let grh = Some(Grh { dgid: mgid, sgid_index: 0, flow_label: 0, hop_limit: 0, traffic_class: 0 });
    send(near, &Path { dlid: group.mlid, grh, ..path }, 0xff_ffff, b"to all");
    for member in [&mut *far, &mut *other] {
        assert_eq!(member.completion().bytes, GRH_BYTES + 6);
        assert_eq!(member.read(0x1000 + GRH_BYTES as usize, 6), b"to all");
        rig.hca.detach_mcast(member.qp.id, &group).unwrap();
    }
    let now = rig.hca.query_qp(near.qp.id).unwrap();
    assert_eq!((now.state, now.qkey, now.port, now.path), (QpState::Rts, QKEY, 1, None));
    guests.into_iter().for_each(Guest::destroy);
    rig.close();
}
