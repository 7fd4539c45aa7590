//! What arrives at the other guest.

use paraverbs_verbs::{
    AtomicCap, QpInit, RtrAttr, RtsAttr, SendData, SendFlags, SendOp, SendWr, WcOpcode, WcStatus,
};

use crate::scene::{End, MEMORY, Scene, connect, errno};

/// Bytes that are no others' by chance.
fn pattern(length: u32, seed: u32) -> Vec<u8> {
    (seed..seed + length).map(|at| at.wrapping_mul(167).wrapping_add(at / 251).to_le_bytes()[0]).collect()
}

#[test]
fn messages_of_all_lengths_arrive_with_their_immediate_data() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let lengths = [0, 1, 3, 64, 2047, 2048, 2049, 4096, 65_537, 500_000u32];
    for (round, length) in (0u32..).zip(lengths) {
        let message = pattern(length, round);
        one.mr.write(8, &message).unwrap();
        let imm = (round % 2 == 1).then_some(0x0102_0304 + length);
        other.receive(round.into(), 100, 500_000);
        one.post(round.into(), imm.map_or(SendOp::Send, SendOp::SendImm), 8, length);
        assert_eq!(one.done(round.into()).opcode, WcOpcode::Send);
        let wc = other.done(round.into());
        assert_eq!((wc.opcode, wc.byte_len, wc.imm), (WcOpcode::Recv, length, imm));
        assert_eq!(other.bytes(100, message.len()), message);
    }
    drop([one, other]);
    scene.stop();
}

#[test]
fn writes_and_reads_reach_the_other_memory() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let (remote, rkey) = (other.mr.addr(), other.mr.rkey());
    let length = u32::try_from(MEMORY / 2).unwrap();
    let data = pattern(length, 5);
    let half = data.len();
    one.mr.write(0, &data).unwrap();
    one.post(1, SendOp::Write { remote_addr: remote + 4096, rkey }, 0, length);
    assert_eq!(one.done(1).opcode, WcOpcode::RdmaWrite);
    assert_eq!(other.bytes(4096, half), data);

    one.post(2, SendOp::Read { remote_addr: remote + 4096, rkey }, half, length - 1);
    let wc = one.done(2);
    assert_eq!((wc.opcode, wc.byte_len), (WcOpcode::RdmaRead, length - 1));
    assert_eq!(one.bytes(half, half - 1), data[..half - 1]);

    other.receive(7, 0, 0);
    one.post(3, SendOp::WriteImm { remote_addr: remote, rkey, imm: 77 }, 0, 10);
    one.done(3);
    let wc = other.done(7);
    assert_eq!((wc.opcode, wc.byte_len, wc.imm), (WcOpcode::RecvRdmaWithImm, 10, Some(77)));
    assert_eq!(other.bytes(0, 10), data[..10]);
    drop([one, other]);
    scene.stop();
}

#[test]
fn gathered_scattered_and_inline_data_are_strung_together() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let text = pattern(200, 1);
    one.mr.write(1000, &text).unwrap();
    let sges = [one.mr.sge(1000, 50), one.mr.sge(1050, 0), one.mr.sge(1050, 150)];
    let flags = SendFlags::SIGNALED;
    let recv = [other.mr.sge(0, 33), other.mr.sge(5000, 300)];
    let recv = |wr_id| other.qp.post_recv(&paraverbs_verbs::RecvWr { wr_id, sges: &recv }).unwrap();
    let inline: [&[u8]; 3] = [&text[..7], &[], &text[7..]];
    for (id, data) in [(1, SendData::Sges(&sges)), (2, SendData::Inline(&inline))] {
        other.mr.fill(0, 8192, 0).unwrap();
        recv(id);
        one.qp.post_send(&SendWr { wr_id: id, op: SendOp::Send, data, flags }).unwrap();
        one.done(id);
        assert_eq!(other.done(id).byte_len, 200);
        assert_eq!([other.bytes(0, 33), other.bytes(5000, 167)].concat(), text);
        assert_eq!(other.bytes(33, 67), [0; 67]);
    }
    drop([one, other]);
    scene.stop();
}

#[test]
fn atomics_change_eight_bytes_and_tell_what_they_were() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let (remote_addr, rkey) = (other.mr.addr() + 64, other.mr.rkey());
    other.mr.store_u64(64, 40).unwrap();
    one.post(1, SendOp::FetchAdd { remote_addr, rkey, add: 2 }, 0, 8);
    assert_eq!(one.done(1).opcode, WcOpcode::FetchAdd);
    assert_eq!((one.mr.load_u64(0).unwrap(), other.mr.load_u64(64).unwrap()), (40, 42));
    for (id, compare, after) in [(2, 41, 42), (3, 42, 7)] {
        one.post(id, SendOp::CompareSwap { remote_addr, rkey, compare, swap: 7 }, 8, 8);
        assert_eq!(one.done(id).opcode, WcOpcode::CompSwap);
        assert_eq!((one.mr.load_u64(8).unwrap(), other.mr.load_u64(64).unwrap()), (42, after));
    }
    drop([one, other]);
    scene.stop();
}

#[test]
fn masked_atomics_change_the_bits_that_they_name() {
    let scene = Scene::new();
    let ends = scene.guests().map(|guest| {
        assert_ne!(guest.query_device().unwrap().masked_atomic_cap, AtomicCap::None);
        let pd = guest.alloc_pd().unwrap();
        End::with(&guest, pd, |init| QpInit { masked_atomics: true, ..init })
    });
    connect(&ends);
    let [one, other] = &ends;
    let (remote_addr, rkey) = (other.mr.addr() + 64, other.mr.rkey());
    let now = || (one.mr.load_u64(0).unwrap(), other.mr.load_u64(64).unwrap());
    let swap = |id, compare, swap| {
        let (compare_mask, swap_mask) = (0xff, 0xff00);
        let op = SendOp::MaskedCompareSwap { remote_addr, rkey, compare, swap, compare_mask, swap_mask };
        one.post(id, op, 0, 8);
        assert_eq!(one.done(id).opcode, WcOpcode::MaskedCompSwap);
    };
    other.mr.store_u64(64, 0x1234_5678).unwrap();
    swap(1, 0xaaaa_aa78, 0xbbbb_bbbb);
    assert_eq!(now(), (0x1234_5678, 0x1234_bb78), "only the low byte is compared, the next one swapped");
    swap(2, 0x1234_bb79, 0);
    assert_eq!(now(), (0x1234_bb78, 0x1234_bb78));

    // Two numbers of 32 bits: no carry from the one into the other.
    other.mr.store_u64(64, 0x0000_0001_ffff_ffff).unwrap();
    let op = SendOp::MaskedFetchAdd { remote_addr, rkey, add: 0x0000_0001_0000_0001, boundary: 1 << 31 };
    one.post(3, op, 0, 8);
    assert_eq!(one.done(3).opcode, WcOpcode::MaskedFetchAdd);
    assert_eq!(now(), (0x0000_0001_ffff_ffff, 0x0000_0002_0000_0000));
    drop(ends);
    scene.stop();
}

#[test]
fn masked_swap_does_not_fit_in_a_queue_pair_that_was_not_made_for_it() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let (cq, pd) = (guest.create_cq(4, None).unwrap(), guest.alloc_pd().unwrap());
    let mr = pd.alloc_mr(64, paraverbs_verbs::Access::LOCAL_WRITE).unwrap();
    let ends = [(), ()].map(|()| End::new(&guest));
    let qp = pd.create_qp(&QpInit::new(&cq)).unwrap();
    qp.to_init(1, paraverbs_verbs::Access::NONE).unwrap();
    qp.to_rtr(RtrAttr { max_dest_rd_atomic: 1, ..ends[0].rtr() }).unwrap();
    qp.to_rts(RtsAttr::new(0)).unwrap();
    let op = SendOp::MaskedCompareSwap {
        remote_addr: 0,
        rkey: 0,
        compare: 0,
        swap: 0,
        compare_mask: 0,
        swap_mask: 0,
    };
    let sges = [mr.sge(0, 8)];
    let wr = SendWr { wr_id: 1, op, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    assert_eq!(errno(qp.post_send(&wr)), 22);
    drop((qp, mr, cq, pd, ends, guest));
    scene.stop();
}

#[test]
fn atomic_on_memory_that_is_not_aligned_is_an_invalid_request() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let (remote_addr, rkey) = (other.mr.addr() + 4, other.mr.rkey());
    one.post(1, SendOp::FetchAdd { remote_addr, rkey, add: 2 }, 0, 8);
    one.failed(1, WcStatus::RemInvReqErr);
    drop([one, other]);
    scene.stop();
}

#[test]
fn fenced_write_waits_for_the_read_before_it() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey());
    let fence = SendFlags { fence: true, ..SendFlags::SIGNALED };
    for round in 0..50u8 {
        other.mr.fill(0, 100_000, round).unwrap();
        // The read's data are what is written back, to another place.
        let read = [one.mr.sge(0, 100_000)];
        let wrs = [
            SendWr {
                wr_id: 1,
                op: SendOp::Read { remote_addr, rkey },
                data: SendData::Sges(&read),
                flags: SendFlags::default(),
            },
            SendWr {
                wr_id: 2,
                op: SendOp::Write { remote_addr: remote_addr + 200_000, rkey },
                data: SendData::Sges(&read),
                flags: fence,
            },
        ];
        one.qp.post_send_list(&wrs).unwrap();
        one.done(2);
        assert_eq!(other.bytes(200_000, 100_000), vec![round; 100_000]);
    }
    drop([one, other]);
    scene.stop();
}

#[test]
fn unsignalled_requests_complete_with_the_next_signalled_one() {
    let scene = Scene::new();
    let [one, other] = scene.connection();
    let (remote_addr, rkey) = (other.mr.addr(), other.mr.rkey());
    let sges = [one.mr.sge(0, 8)];
    let most = u64::from(one.qp.cap().max_send_wr);
    for _ in 0..3 {
        for wr_id in 1..=most {
            let flags = SendFlags { signaled: wr_id == most, ..SendFlags::default() };
            let op = SendOp::Write { remote_addr, rkey };
            one.qp.post_send(&SendWr { wr_id, op, data: SendData::Sges(&sges), flags }).unwrap();
        }
        one.done(most);
    }
    drop([one, other]);
    scene.stop();
}

#[test]
fn guest_sends_to_itself_and_between_two_of_its_queue_pairs() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let ends = [End::new(&guest), End::new(&guest)];
    crate::scene::connect(&ends);
    let [one, other] = ends;
    one.mr.write(0, b"to a neighbour").unwrap();
    other.receive(1, 0, 14);
    one.post(1, SendOp::Send, 0, 14);
    one.done(1);
    other.done(1);
    assert_eq!(other.bytes(0, 14), b"to a neighbour");
    drop((one, other, guest));
    scene.stop();
}
