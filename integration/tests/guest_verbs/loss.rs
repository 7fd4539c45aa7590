//! The device goes away: the HCA fails, or the daemon ends.

use std::time::Duration;

use paraverbs_verbs::{
    Access, AhAttr, Context, EventType, Gid, MwType, QpType, RecvWr, Rereg, SendData, SendFlags, SendOp,
    SendWr, SrqInit, UdDest, Wc,
};

use crate::scene::{End, PATIENCE, Scene, connect, errno};

const EIO: i32 = 5;
const ENOENT: i32 = 2;

/// Takes events until the one that tells of the loss.
fn fatal(guest: &Context) {
    loop {
        let event = guest.get_async_event(PATIENCE).unwrap().expect("an event");
        if event.event_type == EventType::DeviceFatal {
            break;
        }
    }
    assert!(guest.is_lost());
    assert_eq!(errno(guest.get_async_event(Duration::ZERO)), EIO);
}

/// Every verb of an end answers EIO, and dropping it does no harm.
fn dead(end: End) {
    let sges = [end.mr.sge(0, 8)];
    let send = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    assert_eq!(errno(end.qp.post_send(&send)), EIO);
    assert_eq!(errno(end.qp.post_recv(&RecvWr { wr_id: 1, sges: &sges })), EIO);
    assert_eq!(errno(end.qp.query()), EIO);
    assert_eq!(errno(end.cq.poll(&mut [Wc::default()])), EIO);
    assert_eq!(errno(end.cq.req_notify(false)), EIO);
    assert_eq!(errno(end.channel.wait(None)), EIO);
    assert_eq!(errno(end.pd.alloc_mr(1, Access::ALL)), EIO);
    assert_eq!(errno(end.guest.query_port(1)), EIO);
    assert_eq!(errno(end.guest.alloc_pd()), EIO);
    // What was in it can still be read.
    assert_eq!(end.bytes(0, 4), b"kept");
    let End { qp, mr, cq, pd, .. } = end;
    qp.destroy().unwrap();
    mr.dereg().unwrap();
    cq.destroy().unwrap();
    pd.dealloc().unwrap();
}

#[test]
fn hca_that_fails_is_lost_and_the_guests_connect_again() {
    let scene = Scene::new();
    for _ in 0..2 {
        let ends = scene.connection();
        for end in &ends {
            end.mr.write(0, b"kept").unwrap();
        }
        std::thread::scope(|threads| {
            let waits = ends.each_ref().map(|end| threads.spawn(|| errno(end.channel.wait(PATIENCE))));
            scene.daemon.model().unwrap().fail_firmware(1);
            assert_eq!(waits.map(|wait| wait.join().unwrap()), [EIO; 2]);
        });
        for end in ends {
            fatal(&end.guest);
            dead(end);
        }
        let again = crate::scene::eventually("the HCA to work again", || {
            Some([Context::connect(scene.socket("a")).ok()?, Context::connect(scene.socket("b")).ok()?])
        });
        let ends = again.map(|guest| End::new(&guest));
        connect(&ends);
        let [one, other] = &ends;
        other.receive(1, 0, 8);
        one.post(1, SendOp::Send, 0, 8);
        one.done(1);
        other.done(1);
    }
    scene.stop();
}

#[test]
fn objects_of_every_kind_answer_eio_after_a_loss_and_end_quietly() {
    const GROUP: Gid = Gid([0xff, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let scene = Scene::new();
    let guest = scene.open("a");
    let end = End::of_type(&guest, QpType::Ud);
    end.qp.to_datagrams(1, 1).unwrap();
    end.qp.attach_mcast(&GROUP, 0xc001).unwrap();
    let ah = end.pd.create_ah(&end.path()).unwrap();
    let size = SrqInit { max_wr: 3, max_sge: 1 };
    let srq = end.pd.create_srq(&size).unwrap();
    let mw = end.pd.alloc_mw(MwType::Type1).unwrap();
    let domain = guest.open_xrcd().unwrap();
    let xrc_srq = domain.create_srq(&end.pd, &end.cq, &size).unwrap();
    let target = domain.create_recv_qp().unwrap();
    let mut mr = end.pd.alloc_mr(64, Access::ALL).unwrap();
    scene.daemon.model().unwrap().fail_firmware(1);
    fatal(&guest);
    let sges = [mr.sge(0, 8)];
    let recv = RecvWr { wr_id: 1, sges: &sges };
    let send = SendWr { wr_id: 1, op: SendOp::Send, data: SendData::Sges(&sges), flags: SendFlags::SIGNALED };
    let to = UdDest { ah: &ah, remote_qpn: 1, remote_qkey: 1 };
    for failed in [
        errno(end.qp.post_send_ud(&send, &to)),
        errno(end.qp.attach_mcast(&GROUP, 0xc002)),
        errno(end.pd.create_ah(&AhAttr::to_lid(1, 1))),
        errno(srq.post_recv(&recv)),
        errno(srq.arm_limit(1)),
        errno(xrc_srq.query()),
        errno(target.query()),
        errno(end.pd.alloc_mw(MwType::Type1)),
        errno(domain.create_recv_qp()),
        errno(guest.open_xrcd()),
        errno(mr.rereg(&Rereg { access: Some(Access::NONE), ..Rereg::default() })),
        errno(end.cq.resize(1000)),
        errno(end.cq.modify(1, 1)),
    ] {
        assert_eq!(failed, EIO);
    }
    mw.dealloc().unwrap();
    target.destroy().unwrap();
    xrc_srq.destroy().unwrap();
    domain.close().unwrap();
    srq.destroy().unwrap();
    mr.dereg().unwrap();
    drop((ah, end, guest));
    scene.stop();
}

#[test]
fn daemon_that_ends_takes_the_device_along() {
    let scene = Scene::new();
    let ends = scene.connection();
    for end in &ends {
        end.mr.write(0, b"kept").unwrap();
    }
    let socket = scene.socket("a");
    let Scene { daemon, .. } = scene;
    daemon.stop().unwrap();
    for end in ends {
        fatal(&end.guest);
        dead(end);
    }
    assert_eq!(errno(Context::connect(socket)), ENOENT);
}

#[test]
fn socket_is_one_guest_s_at_a_time_and_free_again_after_it() {
    let scene = Scene::new();
    let first = scene.open("a");
    let error = Context::connect(scene.socket("a")).unwrap_err().to_string();
    assert!(error.contains("another guest may have the socket"), "{error}");
    drop(first);
    drop(scene.open("a"));
    scene.stop();
}
