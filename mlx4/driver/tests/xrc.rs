//! Extended reliable connections through the driver on the model.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::end::{End, failed, request, sent};
use common::{Pair, eventually};
use mlx4::{Access, Attributes, CompletionQueue, Error, Hca, Path, Qp, SharedReceiveQueue, XRC_TARGET, Xrcd};
use mlx4_queue::geometry::Service;
use mlx4_queue::request::{Data, Operation, Remote};
use mlx4_queue::{Completed, Completion};
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::qp::{Mtu, QpState};

const PSN: u32 = 0x1000;

fn init() -> Attributes {
    Attributes { port: Some(1), pkey_index: Some(0), access: Some(Access::ALL), ..Attributes::default() }
}

fn rtr(lid: u16, qpn: u32) -> Attributes {
    Attributes {
        path: Some(Path::local(1, lid, 0)),
        mtu: Some(Mtu::MTU_1024),
        remote_qpn: Some(qpn),
        receive_psn: Some(PSN),
        ..Attributes::default()
    }
}

fn rts() -> Attributes {
    Attributes { send_psn: Some(PSN), timeout: Some(14), ..Attributes::default() }
}

/// Takes an initiator to RTS.
fn start(end: &End, lid: u16, qpn: u32) {
    end.qp.modify(QpState::INIT, &init()).unwrap();
    end.qp.modify(QpState::RTR, &rtr(lid, qpn)).unwrap();
    let requester =
        Attributes { retry_count: Some(7), rnr_retry: Some(7), requester_reads: Some(4), ..rts() };
    end.qp.modify(QpState::RTS, &requester).unwrap();
}

/// Takes a target to RTS.
fn answer(target: &Qp, lid: u16, qpn: u32) {
    target.modify(QpState::INIT, &init()).unwrap();
    let responder = Attributes { responder_reads: Some(4), min_rnr_timer: Some(12), ..rtr(lid, qpn) };
    target.modify(QpState::RTR, &responder).unwrap();
    target.modify(QpState::RTS, &rts()).unwrap();
}

/// A shared receive queue of a domain, with a completion queue of its own.
struct Receiver {
    cq: CompletionQueue,
    srq: SharedReceiveQueue,
}

impl Receiver {
    fn new(hca: &Hca, far: &End, xrcd: &Xrcd) -> Self {
        let cq = hca.completion_queue(64, &far.uar, 0, || {}).unwrap();
        let srq = hca.xrc_receive_queue((&far.pd, xrcd), &cq, 16, 1).unwrap();
        Self { cq, srq }
    }

    fn number(&self) -> u32 {
        self.srq.object().number()
    }

    fn completion(&self) -> Completion {
        eventually("a completion", || {
            let mut found = None;
            self.cq.poll(1, |completion| found = Some(completion)).unwrap();
            found
        })
    }

    fn destroy(self) {
        self.srq.destroy().unwrap();
        self.cq.destroy().unwrap();
    }
}

#[test]
fn messages_of_one_connection_go_to_the_queue_that_each_of_them_names() {
    let pair = Pair::new(0x0002_c903_00d1_0000);
    let near = End::new(&pair.hosts[0].hca, Service::Xrc);
    let hca = &pair.hosts[1].hca;
    let far = End::new(hca, Service::Rc);
    let xrcd = hca.xrcd().unwrap();
    let target = hca.xrc_target(&xrcd).unwrap();
    assert_ne!(target.number() & XRC_TARGET, 0);
    let receivers = [0, 1].map(|_| Receiver::new(hca, &far, &xrcd));
    start(&near, pair.lids[1], target.number());
    answer(&target, pair.lids[0], near.qp.number());
    for (receiver, offset) in receivers.iter().zip([0, 4096]) {
        receiver.srq.post(offset as u64, &[far.memory.piece(offset, 4096)]).unwrap();
    }
    for (receiver, offset) in receivers.iter().zip([0usize, 4096]).rev() {
        let send = request(1, Operation::Send, Data::Inline(&[b"which?"]));
        near.qp.post_xrc(&[send], receiver.number()).unwrap();
        sent(&near, 1);
        let completion = receiver.completion();
        let Completed::Received(received) = completion.outcome else { panic!("{completion:?}") };
        assert_eq!((completion.wr_id, received.bytes), (offset as u64, 6));
        assert_eq!((completion.qpn, received.source_qpn), (target.number(), receiver.number()));
        let mut there = [0; 6];
        far.memory.read(offset, &mut there).unwrap();
        assert_eq!(&there, b"which?");
    }
    // Memory of the domain of the named queue is reached.
    let remote = Remote { address: far.memory.address(8192), rkey: far.memory.region().rkey() };
    near.memory.write(0, b"written").unwrap();
    let data = [near.memory.piece(0, 8)];
    near.qp
        .post_xrc(&[request(2, Operation::Write(remote), Data::Pieces(&data))], receivers[0].number())
        .unwrap();
    sent(&near, 2);
    let into = [near.memory.piece(64, 8)];
    near.qp
        .post_xrc(&[request(3, Operation::Read(remote), Data::Pieces(&into))], receivers[1].number())
        .unwrap();
    assert_eq!(sent(&near, 3), 8);
    let mut back = [0; 7];
    near.memory.read(64, &mut back).unwrap();
    assert_eq!(&back, b"written");
    target.destroy().unwrap();
    receivers.into_iter().for_each(Receiver::destroy);
    xrcd.destroy().unwrap();
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn queue_of_another_domain_is_refused() {
    let pair = Pair::new(0x0002_c903_00d2_0000);
    let near = End::new(&pair.hosts[0].hca, Service::Xrc);
    let hca = &pair.hosts[1].hca;
    let far = End::new(hca, Service::Rc);
    let domains = [0, 1].map(|_| hca.xrcd().unwrap());
    assert_ne!(domains[0].number(), domains[1].number());
    let target = hca.xrc_target(&domains[0]).unwrap();
    let other = Receiver::new(hca, &far, &domains[1]);
    other.srq.post(1, &[far.memory.piece(0, 64)]).unwrap();
    start(&near, pair.lids[1], target.number());
    answer(&target, pair.lids[0], near.qp.number());
    let send = request(1, Operation::Send, Data::Inline(&[b"wrong"]));
    near.qp.post_xrc(&[send], other.number()).unwrap();
    assert_eq!(failed(&near, 1), Syndrome::REMOTE_INVAL_REQ_ERR);
    assert_eq!(other.cq.poll(1, |_| {}).unwrap(), 0);
    target.destroy().unwrap();
    other.destroy();
    domains.into_iter().for_each(|xrcd| xrcd.destroy().unwrap());
    [near, far].into_iter().for_each(End::destroy);
    pair.close();
}

#[test]
fn domain_ends_after_what_is_in_it() {
    let pair = Pair::new(0x0002_c903_00d3_0000);
    let hca = &pair.hosts[0].hca;
    let xrcd = hca.xrcd().unwrap();
    let target = hca.xrc_target(&xrcd).unwrap();
    let requester = Attributes { retry_count: Some(7), ..rts() };
    target.modify(QpState::INIT, &init()).unwrap();
    let responder = Attributes { responder_reads: Some(1), min_rnr_timer: Some(1), ..rtr(1, 2) };
    target.modify(QpState::RTR, &responder).unwrap();
    let error = target.modify(QpState::RTS, &requester).unwrap_err();
    assert!(matches!(error, Error::Attribute { attribute: "retry count", .. }), "{error}");
    assert_eq!(target.query().unwrap().state, QpState::RTR);
    target.destroy().unwrap();
    xrcd.destroy().unwrap();
    let xrcd = hca.xrcd().unwrap();
    let target = hca.xrc_target(&xrcd).unwrap();
    let xrcd = xrcd.destroy_unused().unwrap().expect("a queue pair is in it");
    target.destroy().unwrap();
    assert!(xrcd.destroy_unused().unwrap().is_none());
    // Who doesn't want it back has lost it, and what the device has of it.
    let xrcd = hca.xrcd().unwrap();
    let _target = hca.xrc_target(&xrcd).unwrap();
    assert!(matches!(xrcd.destroy(), Err(Error::Used("XRC domain"))));
    assert!(pair.hosts.into_iter().map(|host| host.hca.close()).filter(Result::is_err).count() == 1);
}
