//! Reliable connections through the driver on the model.

mod common;

use common::end::{End, request, sent};
use common::{Pair, eventually};
use mlx4::{Access, Attributes, Error};
use mlx4_queue::request::{Data, Operation, Remote};
use mlx4_queue::{Completed, Notify, Payload};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::QpState;
use mlx4_wire::wqe::Opcode;

#[test]
fn ping_pong_between_two_hcas_leaves_nothing_behind() {
    let pair = Pair::new(0x0002_c903_0001_0000);
    let [ping, pong] = End::connected(&pair);
    for round in 0..200u32 {
        pong.qp.post_receive([(round.into(), &[pong.memory.piece(0, 4096)][..])]).unwrap();
        ping.qp.post_receive([(round.into(), &[ping.memory.piece(8192, 4096)][..])]).unwrap();
        let message: Vec<u8> = (0..=250u8).cycle().skip(round as usize).take(3000).collect();
        ping.memory.write(0, &message).unwrap();
        let pieces = [ping.memory.piece(0, 1000), ping.memory.piece(1000, 2000)];
        ping.qp.post_send(&[request(1, Operation::SendImm([1, 2, 3, 4]), Data::Pieces(&pieces))]).unwrap();
        sent(&ping, 1);
        let arrived = pong.completion();
        let Completed::Received(received) = arrived.outcome else { panic!("{arrived:?}") };
        assert_eq!((arrived.wr_id, received.bytes), (u64::from(round), 3000));
        assert_eq!(received.payload, Payload::Immediate([1, 2, 3, 4]));
        pong.qp
            .post_send(&[request(2, Operation::Send, Data::Pieces(&[pong.memory.piece(0, 3000)]))])
            .unwrap();
        sent(&pong, 2);
        assert_eq!(ping.completion().wr_id, u64::from(round));
        let mut back = vec![0; 3000];
        ping.memory.read(8192, &mut back).unwrap();
        assert_eq!(back, message);
    }
    ping.destroy();
    pong.destroy();
    pair.close();
}

#[test]
fn write_read_and_atomics_reach_the_other_memory() {
    let pair = Pair::new(0x0002_c903_0002_0000);
    let [near, far] = End::connected(&pair);
    let rkey = far.memory.region().rkey();
    let at = |offset| Remote { address: far.memory.address(offset), rkey };

    let text = b"written inline through a reliable connection, over several chunks of 64 bytes: yes";
    let inline: [&[u8]; 2] = [&text[..40], &text[40..]];
    near.qp.post_send(&[request(1, Operation::Write(at(100)), Data::Inline(&inline))]).unwrap();
    sent(&near, 1);
    let mut found = vec![0; text.len()];
    far.memory.read(100, &mut found).unwrap();
    assert_eq!(found, text);

    near.memory.write(0, &[0xab; 100_000]).unwrap();
    let data = [near.memory.piece(0, 100_000)];
    near.qp.post_send(&[request(2, Operation::Write(at(4096)), Data::Pieces(&data))]).unwrap();
    sent(&near, 2);
    let into = [near.memory.piece(200_000, 100_000)];
    near.qp.post_send(&[request(3, Operation::Read(at(4096)), Data::Pieces(&into))]).unwrap();
    assert_eq!(sent(&near, 3), 100_000);
    let mut back = vec![0; 100_000];
    near.memory.read(200_000, &mut back).unwrap();
    assert_eq!(back, [0xab; 100_000]);

    far.memory.write(8, &5u64.to_ne_bytes()).unwrap();
    let old = [near.memory.piece(0, 8)];
    let add = Operation::FetchAdd { remote: at(8), add: 10 };
    let swap = Operation::CompareSwap { remote: at(8), compare: 15, swap: 77 };
    near.qp.post_send(&[request(4, add, Data::Pieces(&old)), request(5, swap, Data::Pieces(&old))]).unwrap();
    sent(&near, 4);
    sent(&near, 5);
    let mut value = [0; 8];
    far.memory.read(8, &mut value).unwrap();
    assert_eq!(u64::from_ne_bytes(value), 77);
    near.memory.read(0, &mut value).unwrap();
    assert_eq!(u64::from_ne_bytes(value), 15);
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn masked_atomics_change_the_bits_of_their_masks_only() {
    let pair = Pair::new(0x0002_c903_0008_0000);
    let [near, far] = End::connected(&pair);
    let remote = Remote { address: far.memory.address(8), rkey: far.memory.region().rkey() };
    let value = || {
        let mut value = [0; 8];
        far.memory.read(8, &mut value).unwrap();
        u64::from_ne_bytes(value)
    };
    let old = [near.memory.piece(0, 8)];
    let fetched = |id, operation| {
        near.qp.post_send(&[request(id, operation, Data::Pieces(&old))]).unwrap();
        assert_eq!(sent(&near, id), 8);
        let mut value = [0; 8];
        near.memory.read(0, &mut value).unwrap();
        u64::from_ne_bytes(value)
    };
    let swap = |compare| Operation::MaskedCompareSwap {
        remote,
        compare,
        swap: u64::MAX,
        compare_mask: 0xff00,
        swap_mask: 0xff,
    };
    far.memory.write(8, &0x1234_5600u64.to_ne_bytes()).unwrap();
    assert_eq!((fetched(1, swap(0x57ff)), value()), (0x1234_5600, 0x1234_5600));
    assert_eq!((fetched(2, swap(0x56ff)), value()), (0x1234_5600, 0x1234_56ff));
    // Two numbers of 32 bits: nothing is carried from the lower to the upper.
    far.memory.write(8, &0x0000_0001_ffff_ffffu64.to_ne_bytes()).unwrap();
    let add = Operation::MaskedFetchAdd { remote, add: 0x0000_0002_0000_0003, boundary: 0x8000_0000 };
    assert_eq!((fetched(3, add), value()), (0x0000_0001_ffff_ffff, 0x0000_0003_0000_0002));
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn armed_queue_notifies_once_and_again_after_it_is_armed() {
    let pair = Pair::new(0x0002_c903_0003_0000);
    let [near, far] = End::connected(&pair);
    let notified = || near.notified.load(std::sync::atomic::Ordering::SeqCst);
    let nop = |id| near.qp.post_send(&[request(id, Operation::Nop, Data::Pieces(&[]))]).unwrap();
    near.cq.arm(Notify::Next);
    nop(1);
    nop(2);
    sent(&near, 1);
    sent(&near, 2);
    eventually("a notification", || (notified() == 1).then_some(()));
    near.cq.arm(Notify::Next);
    nop(3);
    eventually("another notification", || (notified() == 2).then_some(()));
    // One that is there already notifies at once.
    near.cq.arm(Notify::Next);
    eventually("a notification of what was there", || (notified() == 3).then_some(()));
    sent(&near, 3);
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn wrong_rkey_fails_and_flushes_and_the_queue_pair_starts_again() {
    let pair = Pair::new(0x0002_c903_0004_0000);
    let [near, far] = End::connected(&pair);
    let remote = Remote { address: far.memory.address(0), rkey: far.memory.region().rkey() ^ 1 };
    let data = [near.memory.piece(0, 8)];
    let write = |id| request(id, Operation::Write(remote), Data::Pieces(&data));
    near.qp.post_send(&[write(1), write(2)]).unwrap();
    let failed = |id, wanted| {
        let completion = near.completion();
        let Completed::Failed { send: true, syndrome, .. } = completion.outcome else {
            panic!("{completion:?}")
        };
        assert_eq!((completion.wr_id, syndrome), (id, wanted));
    };
    failed(1, Syndrome::REMOTE_ACCESS_ERR);
    failed(2, Syndrome::WR_FLUSH_ERR);
    assert_eq!(near.qp.query().unwrap().state, QpState::ERR);
    // The driver has taken it to RTS and learns where it is when a transition fails.
    let error = near.qp.modify(QpState::SQD, &Attributes::default()).unwrap_err();
    assert!(matches!(error, Error::Transition { from: "ERR", to: "SQD" }), "{error}");
    for end in [&near, &far] {
        end.qp.modify(QpState::RST, &Attributes::default()).unwrap();
    }
    near.connect(pair.lids[1], far.qp.number());
    far.connect(pair.lids[0], near.qp.number());
    let good = Remote { rkey: far.memory.region().rkey(), ..remote };
    near.qp.post_send(&[request(3, Operation::Write(good), Data::Pieces(&data))]).unwrap();
    sent(&near, 3);
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn query_tells_what_was_modified() {
    let pair = Pair::new(0x0002_c903_0005_0000);
    let [near, far] = End::connected(&pair);
    let status = near.qp.query().unwrap();
    assert_eq!(status.state, QpState::RTS);
    assert_eq!((status.remote_qpn, status.path.dlid), (far.qp.number(), pair.lids[1]));
    assert_eq!((status.retry_count, status.rnr_retry, status.min_rnr_timer), (7, 7, 12));
    assert_eq!((status.requester_reads, status.responder_reads, status.timeout), (4, 4, 14));
    assert!(status.access.remote_read && status.access.remote_atomic && status.access.remote_write);
    near.qp.modify(QpState::SQD, &Attributes { drained_event: true, ..Attributes::default() }).unwrap();
    let qpn = near.qp.number();
    pair.hosts[0].wait_for(mlx4::Event::Qp { qpn, event: mlx4::QpEventKind::SendDrained });
    let changed = Attributes { min_rnr_timer: Some(3), ..Attributes::default() };
    near.qp.modify(QpState::SQD, &changed).unwrap();
    near.qp.modify(QpState::RTS, &Attributes::default()).unwrap();
    assert_eq!(near.qp.query().unwrap().min_rnr_timer, 3);
    near.qp.post_send(&[request(1, Operation::Nop, Data::Pieces(&[]))]).unwrap();
    let completion = near.completion();
    assert!(matches!(completion.outcome, Completed::Sent { opcode: Opcode::NOP, .. }), "{completion:?}");
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn transitions_from_a_state_to_itself_change_what_they_are_given() {
    let pair = Pair::new(0x0002_c903_0006_0000);
    let [near, far] = End::connected(&pair);
    near.qp.modify(QpState::RST, &Attributes::default()).unwrap();
    let init = |port, access| Attributes {
        port: Some(port),
        pkey_index: Some(0),
        access: Some(access),
        ..Attributes::default()
    };
    near.qp.modify(QpState::INIT, &init(1, Access::LOCAL)).unwrap();
    assert!(near.qp.modify(QpState::INIT, &init(2, Access::ALL)).is_err(), "there is no port 2");
    near.qp.modify(QpState::INIT, &init(1, Access::ALL)).unwrap();
    near.qp.modify(QpState::RST, &Attributes::default()).unwrap();
    near.connect(pair.lids[1], far.qp.number());
    assert!(near.qp.query().unwrap().access.remote_write);
    let changed = Attributes { access: Some(Access::LOCAL), min_rnr_timer: Some(5), ..Attributes::default() };
    near.qp.modify(QpState::RTS, &changed).unwrap();
    let status = near.qp.query().unwrap();
    assert_eq!((status.access, status.min_rnr_timer), (Access::LOCAL, 5));
    near.qp.modify(QpState::ERR, &Attributes::default()).unwrap();
    assert_eq!(near.qp.query().unwrap().state, QpState::ERR);
    near.destroy();
    far.destroy();
    pair.close();
}

#[test]
fn every_posted_request_is_flushed_in_error() {
    let pair = Pair::new(0x0002_c903_0007_0000);
    let [near, far] = End::connected(&pair);
    near.qp.modify(QpState::ERR, &Attributes::default()).unwrap();
    for id in 0..10 {
        near.qp.post_send(&[request(id, Operation::Nop, Data::Pieces(&[]))]).unwrap();
        near.qp.post_receive([(100 + id, &[near.memory.piece(0, 64)][..])]).unwrap();
    }
    let mut ids: Vec<u64> = (0..20)
        .map(|_| {
            let completion = near.completion();
            let Completed::Failed { syndrome, .. } = completion.outcome else { panic!("{completion:?}") };
            assert_eq!(syndrome, Syndrome::WR_FLUSH_ERR);
            completion.wr_id
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..10).chain(100..110).collect::<Vec<_>>());
    near.destroy();
    far.destroy();
    pair.close();
}
