//! Two guests send to each other through rings in their own memory; the HCA's owner only rings doorbells.

mod common;

use common::guest::{ADDRESS, CQ_COOKIE, Guest};
use common::rings::remote;
use common::{Rig, Told, config, wait_for};
use mlx4_wire::wqe::Opcode;

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
