//! Unreliable connections through the driver on the model.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::Pair;
use common::end::{End, request, sent};
use mlx4::{Access, Attributes, Error, Path};
use mlx4_queue::geometry::Service;
use mlx4_queue::request::{Data, Operation, PostError, Remote, Sge};
use mlx4_queue::{Completed, Payload};
use mlx4_wire::ctx::qp::{Mtu, QpState};

fn init() -> Attributes {
    Attributes { port: Some(1), pkey_index: Some(0), access: Some(Access::ALL), ..Attributes::default() }
}

fn rtr(lid: u16, qpn: u32) -> Attributes {
    Attributes {
        path: Some(Path::local(1, lid, 0)),
        mtu: Some(Mtu::MTU_1024),
        remote_qpn: Some(qpn),
        receive_psn: Some(0x1000),
        ..Attributes::default()
    }
}

fn rts() -> Attributes {
    Attributes { send_psn: Some(0x1000), ..Attributes::default() }
}

fn connected(pair: &Pair) -> [End; 2] {
    let ends = [0, 1].map(|host: usize| End::new(&pair.hosts[host].hca, Service::Uc));
    for (here, there) in [(0, 1), (1, 0)] {
        let qp = &ends[here].qp;
        qp.modify(QpState::INIT, &init()).unwrap();
        qp.modify(QpState::RTR, &rtr(pair.lids[there], ends[there].qp.number())).unwrap();
        qp.modify(QpState::RTS, &rts()).unwrap();
    }
    ends
}

#[test]
fn sends_and_writes_arrive_in_order_with_their_immediates() {
    let pair = Pair::new(0x0002_c903_0031_0000);
    let [near, far] = connected(&pair);
    let bytes: Vec<u8> = (0..=250u8).cycle().take(9000).collect();
    near.memory.write(0, &bytes).unwrap();
    let data = [near.memory.piece(0, 9000)];
    let remote = Remote { address: far.memory.address(0x2_0000), rkey: far.memory.region().rkey() };
    for id in 0..3 {
        far.qp.post_receive([(id, &[far.memory.piece(0, 16_384)][..])]).unwrap();
    }
    near.qp
        .post_send(&[
            request(1, Operation::SendImm([1, 2, 3, 4]), Data::Pieces(&data)),
            request(2, Operation::Write(remote), Data::Pieces(&data)),
            request(3, Operation::WriteImm(remote, [5, 6, 7, 8]), Data::Pieces(&data)),
            request(4, Operation::Send, Data::Inline(&[b"last"])),
        ])
        .unwrap();
    for id in 1..5 {
        sent(&near, id);
    }
    let wanted = [
        (0, 9000, false, Payload::Immediate([1, 2, 3, 4])),
        (1, 9000, true, Payload::Immediate([5, 6, 7, 8])),
        (2, 4, false, Payload::Plain),
    ];
    for wanted in wanted {
        let completion = far.completion();
        let Completed::Received(received) = completion.outcome else { panic!("{completion:?}") };
        assert_eq!((completion.wr_id, received.bytes, received.write, received.payload), wanted);
    }
    let mut back = vec![0; 9000];
    far.memory.read(0x2_0000, &mut back).unwrap();
    assert_eq!(back, bytes);
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn message_without_a_receive_is_lost_and_the_next_arrives() {
    let pair = Pair::new(0x0002_c903_0032_0000);
    let [near, far] = connected(&pair);
    near.qp.post_send(&[request(1, Operation::Send, Data::Inline(&[b"nobody"]))]).unwrap();
    sent(&near, 1);
    // It has arrived, and is lost, before the next is sent: a write behind it has.
    let remote = Remote { address: far.memory.address(0x1000), rkey: far.memory.region().rkey() };
    near.qp.post_send(&[request(2, Operation::Write(remote), Data::Inline(&[b"mark"]))]).unwrap();
    common::eventually("the mark", || {
        let mut mark = [0; 4];
        far.memory.read(0x1000, &mut mark).unwrap();
        (&mark == b"mark").then_some(())
    });
    sent(&near, 2);
    far.qp.post_receive([(7, &[far.memory.piece(0, 64)][..])]).unwrap();
    near.qp.post_send(&[request(3, Operation::Send, Data::Inline(&[b"you"]))]).unwrap();
    sent(&near, 3);
    let completion = far.completion();
    assert!(matches!(completion.outcome, Completed::Received(received) if received.bytes == 3));
    assert_eq!(far.qp.query().unwrap().state, QpState::RTS);
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn queue_pair_takes_neither_what_is_reliable_nor_reads() {
    let pair = Pair::new(0x0002_c903_0033_0000);
    let end = End::new(&pair.hosts[0].hca, Service::Uc);
    end.qp.modify(QpState::INIT, &init()).unwrap();
    let reliable = Attributes { min_rnr_timer: Some(1), ..rtr(pair.lids[0], end.qp.number()) };
    let error = end.qp.modify(QpState::RTR, &reliable).unwrap_err();
    assert!(matches!(error, Error::Attribute { attribute: "minimum RNR timer", .. }), "{error}");
    end.qp.modify(QpState::RTR, &rtr(pair.lids[0], end.qp.number())).unwrap();
    let error = end.qp.modify(QpState::RTS, &Attributes { timeout: Some(1), ..rts() }).unwrap_err();
    assert!(matches!(error, Error::Attribute { attribute: "timeout", .. }), "{error}");
    end.qp.modify(QpState::RTS, &rts()).unwrap();
    let data = [end.memory.piece(0, 8)];
    let remote = Remote { address: 0, rkey: 0 };
    for operation in [Operation::Read(remote), Operation::FetchAdd { remote, add: 1 }] {
        let refused = end.qp.post_send(&[request(1, operation, Data::Pieces(&data))]);
        assert_eq!(refused, Err(PostError::Operation));
    }
    end.destroy();
    pair.close();
}

#[test]
fn send_queue_in_error_is_started_again() {
    let pair = Pair::new(0x0002_c903_0034_0000);
    let [near, far] = connected(&pair);
    let bad = [Sge { lkey: near.memory.region().lkey() ^ 1, ..near.memory.piece(0, 8) }];
    near.qp.post_send(&[request(1, Operation::Send, Data::Pieces(&bad))]).unwrap();
    let completion = near.completion();
    assert!(matches!(completion.outcome, Completed::Failed { send: true, .. }), "{completion:?}");
    assert_eq!(near.qp.query().unwrap().state, QpState::SQER);
    near.qp.modify(QpState::RTS, &Attributes::default()).unwrap();
    assert_eq!(near.qp.query().unwrap().state, QpState::RTS);
    near.qp.post_send(&[request(2, Operation::Nop, Data::Pieces(&[]))]).unwrap();
    sent(&near, 2);
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}
