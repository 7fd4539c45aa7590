//! What verbs refuse, and what the HCA does.

use paraverbs_verbs::{
    Access, QpAttr, QpInit, QpState, RecvWr, RtrAttr, RtsAttr, SendData, SendFlags, SendOp, SendWr, WcStatus,
};

use crate::scene::{CAP, End, MEMORY, Scene, completion, connect, errno};

const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const ENOMEM: i32 = 12;

#[test]
fn wrong_rkey_is_a_remote_access_error_and_both_ends_start_again() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let remote_addr = other.mr.addr();
    other.receive(9, 0, 8);
    one.post(1, SendOp::Write { remote_addr, rkey: other.mr.rkey() ^ 1 }, 0, 8);
    one.post(2, SendOp::Send, 0, 8);
    one.failed(1, WcStatus::RemAccessErr);
    one.failed(2, WcStatus::WrFlushErr);
    other.failed(9, WcStatus::WrFlushErr);
    for end in &ends {
        assert_eq!(end.qp.query().unwrap().qp_state, Some(QpState::Err));
        end.qp.modify(&QpAttr::state(QpState::Reset)).unwrap();
        assert_eq!(end.qp.query().unwrap().qp_state, Some(QpState::Reset));
    }
    connect(&ends);
    one.post(3, SendOp::Write { remote_addr, rkey: other.mr.rkey() }, 0, 8);
    one.done(3);
    drop(ends);
    scene.stop();
}

#[test]
fn bytes_outside_the_region_are_protection_errors() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, _] = &ends;
    one.post(1, SendOp::Send, MEMORY - 4, 8);
    one.failed(1, WcStatus::LocProtErr);
    drop(ends);

    let ends = scene.connection();
    let [one, other] = &ends;
    let (remote_addr, rkey) = (other.mr.addr() + MEMORY as u64 - 4, other.mr.rkey());
    one.post(1, SendOp::Read { remote_addr, rkey }, 0, 8);
    one.failed(1, WcStatus::RemAccessErr);
    drop(ends);
    scene.stop();
}

#[test]
fn rights_of_memory_and_queue_pair_both_count() {
    const RIGHTS: [Access; 3] = [Access::REMOTE_READ, Access::REMOTE_WRITE, Access::REMOTE_ATOMIC];
    let scene = Scene::new();
    let guests = scene.guests();
    for right in RIGHTS {
        let others = RIGHTS.into_iter().filter(|other| *other != right);
        let others = others.fold(Access::LOCAL_WRITE, |all, other| all | other);
        for (of_memory, of_qp, status) in [
            (Access::ALL, Access::ALL, WcStatus::Success),
            (others, Access::ALL, WcStatus::RemAccessErr),
            (Access::ALL, others, WcStatus::RemInvReqErr),
        ] {
            let ends = guests.each_ref().map(End::new);
            let [one, other] = &ends;
            one.connect(other);
            other.connect_with(one, of_qp);
            let mr = other.pd.alloc_mr(4096, of_memory).unwrap();
            let (remote_addr, rkey) = (mr.addr(), mr.rkey());
            let op = match right {
                Access::REMOTE_READ => SendOp::Read { remote_addr, rkey },
                Access::REMOTE_WRITE => SendOp::Write { remote_addr, rkey },
                _ => SendOp::FetchAdd { remote_addr, rkey, add: 1 },
            };
            one.post(1, op, 0, 8);
            let wc = completion(&one.cq);
            assert_eq!((wc.wr_id, wc.status), (1, status), "{right:?}: {of_memory:?}, {of_qp:?}");
        }
    }
    let pd = guests[1].alloc_pd().unwrap();
    assert_eq!(errno(pd.alloc_mr(4096, Access::REMOTE_WRITE)), EINVAL);
    drop((pd, guests));
    scene.stop();
}

#[test]
fn reads_for_which_the_other_end_has_no_place_end_the_connection() {
    let scene = Scene::new();
    let guests = scene.guests();
    for (under_way, ends_in) in [(1, WcStatus::Success), (4, WcStatus::RemInvReqErr)] {
        let ends = guests.each_ref().map(End::new);
        let [one, other] = &ends;
        other.qp.to_init(1, Access::ALL).unwrap();
        other.qp.to_rtr(RtrAttr { max_dest_rd_atomic: 1, ..one.rtr() }).unwrap();
        one.qp.to_init(1, Access::ALL).unwrap();
        one.qp.to_rtr(other.rtr()).unwrap();
        one.qp.to_rts(RtsAttr { max_rd_atomic: under_way, ..one.rts() }).unwrap();
        let (op, sges) =
            (SendOp::Read { remote_addr: other.mr.addr(), rkey: other.mr.rkey() }, [one.mr.sge(0, 8)]);
        let read = |wr_id| SendWr { wr_id, op, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
        // With one doorbell.
        one.qp.post_send_list(&[read(1), read(2), read(3)]).unwrap();
        one.done(1);
        let wc = completion(&one.cq);
        assert_eq!((wc.wr_id, wc.status), (2, ends_in), "{under_way} under way");
        let last = if under_way == 1 { WcStatus::Success } else { WcStatus::WrFlushErr };
        let wc = completion(&one.cq);
        assert_eq!((wc.wr_id, wc.status), (3, last), "{under_way} under way");
    }
    drop(guests);
    scene.stop();
}

#[test]
fn message_longer_than_its_receive_is_a_length_error_there_and_an_invalid_request_here() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    other.receive(1, 0, 100);
    other.receive(2, 0, 100);
    one.post(1, SendOp::Send, 0, 101);
    other.failed(1, WcStatus::LocLenErr);
    one.failed(1, WcStatus::RemInvReqErr);
    other.failed(2, WcStatus::WrFlushErr);
    drop(ends);
    scene.stop();
}

#[test]
fn keys_of_another_domain_are_good_for_nothing() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let foreign = one.guest.alloc_pd().unwrap();
    let mr = foreign.alloc_mr(4096, Access::ALL).unwrap();
    // Its number may be right, and it is the same guest's.
    let sges = [mr.sge(0, 8)];
    let wr = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    one.qp.post_send(&wr).unwrap();
    one.failed(1, WcStatus::LocProtErr);
    let ends_again = [End::new(&one.guest), End::new(&other.guest)];
    connect(&ends_again);
    let other = &ends_again[1];
    other.post(2, SendOp::Write { remote_addr: mr.addr(), rkey: mr.rkey() }, 0, 8);
    other.failed(2, WcStatus::RemAccessErr);
    drop((ends, ends_again, mr, foreign));
    scene.stop();
}

#[test]
fn read_into_memory_that_may_not_be_written_is_a_protection_error() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let mr = one.pd.alloc_mr(64, Access::NONE).unwrap();
    let sges = [mr.sge(0, 8)];
    let op = SendOp::Read { remote_addr: other.mr.addr(), rkey: other.mr.rkey() };
    let wr = SendWr { wr_id: 1, op, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    one.qp.post_send(&wr).unwrap();
    one.failed(1, WcStatus::LocProtErr);
    drop((ends, mr));
    scene.stop();
}

#[test]
fn message_without_a_receive_ends_in_rnr_when_its_retries_are_used_up() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    one.post(1, SendOp::Send, 0, 8);
    // The retries have no end until the receive is there.
    other.receive(5, 0, 8);
    one.done(1);
    other.done(5);

    let ends_again = [End::new(&one.guest), End::new(&other.guest)];
    let [one, other] = &ends_again;
    other.connect(one);
    let rtr = other.rtr();
    one.qp.to_init(1, Access::ALL).unwrap();
    one.qp.to_rtr(rtr).unwrap();
    one.qp.to_rts(RtsAttr { rnr_retry: 1, ..one.rts() }).unwrap();
    one.post(1, SendOp::Send, 0, 8);
    one.failed(1, WcStatus::RnrRetryExcErr);
    drop((ends, ends_again));
    scene.stop();
}

#[test]
fn peer_that_is_not_there_is_a_transport_error() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = ends;
    drop(other);
    one.post(1, SendOp::Send, 0, 8);
    one.failed(1, WcStatus::RetryExcErr);
    drop(one);
    scene.stop();
}

#[test]
fn state_that_does_not_allow_it_refuses_posts() {
    let scene = Scene::new();
    let end = End::new(&scene.open("a"));
    let sges = [end.mr.sge(0, 8)];
    let send = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    let recv = RecvWr { wr_id: 1, sges: &sges };
    assert_eq!(errno(end.qp.post_send(&send)), EINVAL);
    assert_eq!(errno(end.qp.post_recv(&recv)), EINVAL);
    end.qp.to_init(1, Access::ALL).unwrap();
    assert_eq!(errno(end.qp.post_send(&send)), EINVAL);
    end.qp.post_recv(&recv).unwrap();
    end.qp.modify(&QpAttr::state(QpState::Err)).unwrap();
    end.failed(1, WcStatus::WrFlushErr);
    end.qp.post_send(&send).unwrap();
    end.failed(1, WcStatus::WrFlushErr);
    drop(end);
    scene.stop();
}

#[test]
fn transitions_that_are_none_change_nothing() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| End::new(&guest));
    assert_eq!(errno(one.qp.modify(&QpAttr::state(QpState::Rts))), EINVAL);
    assert_eq!(errno(one.qp.modify(&QpAttr::state(QpState::Init))), EINVAL, "attributes are missing");
    assert_eq!(errno(one.qp.to_init(3, Access::ALL)), EINVAL, "there is no port 3");
    assert_eq!(one.qp.query().unwrap().qp_state, Some(QpState::Reset));
    one.qp.to_init(1, Access::REMOTE_READ).unwrap();
    assert_eq!(errno(one.qp.to_rts(one.rts())), EINVAL);
    assert_eq!(one.qp.query().unwrap().qp_state, Some(QpState::Init));
    one.qp.to_rtr(other.rtr()).unwrap();
    one.qp.to_rts(one.rts()).unwrap();
    let rts = one.qp.query().unwrap();
    assert_eq!((rts.qp_state, rts.dest_qp_num), (Some(QpState::Rts), Some(other.qp.qpn())));
    assert_eq!((rts.qp_access_flags, rts.port_num), (Some(Access::REMOTE_READ), Some(1)));
    assert_eq!((rts.timeout, rts.retry_cnt, rts.rnr_retry), (Some(14), Some(7), Some(7)));
    drop((one, other));
    scene.stop();
}

#[test]
fn lists_are_posted_up_to_the_bad_request() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, other] = &ends;
    let (few, many) = ([one.mr.sge(0, 1)], [one.mr.sge(0, 1); 40]);
    let send = |wr_id, sges| SendWr {
        wr_id,
        op: SendOp::Send,
        data: SendData::Sges(sges),
        flags: SendFlags::SIGNALED,
    };
    for id in 0..2 {
        other.receive(id, 0, 1);
    }
    let bad = one.qp.post_send_list(&[send(1, &few), send(2, &few), send(3, &many)]).unwrap_err();
    assert_eq!((bad.index, bad.error.errno()), (2, EINVAL));
    one.done(1);
    one.done(2);
    let recv = |wr_id, sges| RecvWr { wr_id, sges };
    let bad = other.qp.post_recv_list(&[recv(1, &few), recv(2, &many), recv(3, &few)]).unwrap_err();
    assert_eq!((bad.index, bad.error.errno()), (1, EINVAL));
    let long = vec![0; one.qp.cap().max_inline_data as usize + 1];
    let inline: [&[u8]; 1] = [&long];
    for (op, data) in [
        (SendOp::Send, SendData::Inline(&inline)),
        (SendOp::Read { remote_addr: 0, rkey: 0 }, SendData::Inline(&[])),
        (SendOp::Send, SendData::Sges(&[one.mr.sge(0, 1 << 31)])),
        (SendOp::FetchAdd { remote_addr: 0, rkey: 0, add: 1 }, SendData::Sges(&few)),
    ] {
        assert_eq!(
            errno(one.qp.post_send(&SendWr { wr_id: 4, op, data, flags: SendFlags::SIGNALED })),
            EINVAL
        );
    }
    drop(ends);
    scene.stop();
}

#[test]
fn full_queues_take_no_more() {
    let scene = Scene::new();
    let ends = scene.connection();
    let [one, _] = &ends;
    let sges = [one.mr.sge(0, 8)];
    let write =
        |wr_id| SendWr { wr_id, op: SendOp::Send, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    let cap = one.qp.cap();
    assert!(cap.max_send_wr >= CAP.max_send_wr && cap.max_recv_wr >= CAP.max_recv_wr, "{cap:?}");
    for id in 0..cap.max_send_wr {
        one.qp.post_send(&write(id.into())).unwrap();
    }
    assert_eq!(errno(one.qp.post_send(&write(0))), ENOMEM);
    for id in 0..cap.max_recv_wr {
        one.receive(id.into(), 0, 8);
    }
    assert_eq!(errno(one.qp.post_recv(&RecvWr { wr_id: 0, sges: &sges })), ENOMEM);
    drop(ends);
    scene.stop();
}

#[test]
fn objects_in_use_end_with_their_last_user() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let End { qp, mr, cq, pd, channel, .. } = End::new(&guest);
    let error = cq.destroy().unwrap_err();
    assert_eq!(error.errno(), EBUSY, "{error}");
    assert_eq!(errno(pd.dealloc()), EBUSY);
    qp.destroy().unwrap();
    mr.dereg().unwrap();
    drop(channel);
    let status = scene.daemon.status();
    let stats = status.guests[0].stats.unwrap();
    assert_eq!((stats.objects.get(), stats.registered_bytes.get()), (0, 0), "{stats:?}");
    drop(guest);
    scene.stop();
}

#[test]
fn objects_of_two_contexts_do_not_mix() {
    let scene = Scene::new();
    let [one, other] = scene.guests().map(|guest| End::new(&guest));
    assert_eq!(errno(one.pd.create_qp(&QpInit::new(&other.cq))), EINVAL);
    assert_eq!(errno(one.guest.create_cq(1, Some(&other.channel))), EINVAL);
    assert_eq!(errno(one.guest.create_comp_channel(8)), EINVAL);
    drop((one, other));
    scene.stop();
}
