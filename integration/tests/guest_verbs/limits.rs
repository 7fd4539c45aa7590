//! What a device tells of itself, and how much of it there is.

use paraverbs_verbs::{Access, Gid, LinkLayer, Mtu, PortState, QpCap, QpInit};
use paraverbsd::config::GuestLimits;

use crate::scene::{CAP, Scene, errno};

const EINVAL: i32 = 22;
const ENOMEM: i32 = 12;

#[test]
fn device_and_ports_are_those_of_the_model() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let device = guest.query_device().unwrap();
    assert_eq!((device.vendor_id, device.vendor_part_id, device.phys_port_cnt), (0x02c9, 4099, 1));
    assert!(device.max_qp_wr > 0 && device.max_inline_data > 0, "{device:?}");
    let port = guest.query_port(1).unwrap();
    assert_eq!((port.state, port.link_layer), (PortState::Active, LinkLayer::InfiniBand));
    assert!(port.lid != 0 && port.sm_lid != 0 && port.active_mtu >= Mtu::B256, "{port:?}");
    let gid = guest.query_gid(1, 0).unwrap();
    assert_eq!(gid.0[..8], [0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
    assert_ne!(gid, Gid::default());
    assert_eq!(guest.query_pkey(1, 0).unwrap(), 0xffff);
    for port in [0, 2, 255] {
        assert_eq!(errno(guest.query_port(port)), EINVAL);
    }
    assert_eq!(errno(guest.query_gid(1, 1 << 20)), EINVAL);
    assert_eq!(errno(guest.query_pkey(1, 1 << 20)), EINVAL);
    drop(guest);
    scene.stop();
}

#[test]
fn more_than_the_guest_may_have_is_no_memory() {
    let limits = GuestLimits {
        queue_pairs: Some(2),
        completion_queues: Some(2),
        memory_regions: Some(3),
        protection_domains: Some(1),
        registered_bytes: Some(1 << 20),
        ..GuestLimits::default()
    };
    let scene = Scene::with_limits(limits);
    let guest = scene.open("a");
    let pd = guest.alloc_pd().unwrap();
    assert_eq!(errno(guest.alloc_pd()), ENOMEM);
    let cqs = [guest.create_cq(1, None).unwrap(), guest.create_cq(1, None).unwrap()];
    assert_eq!(errno(guest.create_cq(1, None)), ENOMEM);
    let init = QpInit::new(&cqs[0]);
    let qps = [pd.create_qp(&init).unwrap(), pd.create_qp(&init).unwrap()];
    assert_eq!(errno(pd.create_qp(&init)), ENOMEM);
    assert_eq!(errno(pd.alloc_mr((1 << 20) + 1, Access::ALL)), ENOMEM);
    assert_eq!(errno(pd.alloc_mr(1 << 20, Access::ALL)), ENOMEM, "the rings count");
    assert_eq!(errno(pd.alloc_mr(0, Access::ALL)), EINVAL);
    let mrs: Vec<_> = (0..3).map(|_| pd.alloc_mr(1, Access::ALL).unwrap()).collect();
    assert_eq!(errno(pd.alloc_mr(1, Access::ALL)), ENOMEM);
    // What is given back can be had again.
    let [one, other] = qps;
    one.destroy().unwrap();
    let again = pd.create_qp(&init).unwrap();
    drop((again, other, mrs, cqs, pd, guest));
    scene.stop();
}

#[test]
fn more_than_a_queue_can_hold_is_invalid() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let device = guest.query_device().unwrap();
    for cqe in [0, device.max_cqe + 1, u32::MAX] {
        assert_eq!(errno(guest.create_cq(cqe, None)), EINVAL);
    }
    let cq = guest.create_cq(10, None).unwrap();
    assert!(cq.cqe() >= 10);
    let pd = guest.alloc_pd().unwrap();
    for cap in [
        QpCap { max_send_wr: device.max_qp_wr + 1, ..CAP },
        QpCap { max_recv_wr: u32::MAX, ..CAP },
        QpCap { max_send_sge: device.max_sge + 1, ..CAP },
        QpCap { max_recv_sge: u32::MAX, ..CAP },
        QpCap { max_inline_data: u32::MAX, ..CAP },
    ] {
        assert_eq!(errno(pd.create_qp(&QpInit { cap, ..QpInit::new(&cq) })), EINVAL, "{cap:?}");
    }
    let none = QpCap { max_send_wr: 0, max_recv_wr: 0, max_send_sge: 0, max_recv_sge: 0, max_inline_data: 0 };
    pd.create_qp(&QpInit { cap: none, ..QpInit::new(&cq) }).unwrap().destroy().unwrap();
    drop((cq, pd, guest));
    scene.stop();
}

#[test]
fn memory_is_zeroed_and_bounded() {
    let scene = Scene::new();
    let guest = scene.open("a");
    let pd = guest.alloc_pd().unwrap();
    for bytes in [1, 4096, 5000, 70 << 20] {
        let mr = pd.alloc_mr(bytes, Access::ALL).unwrap();
        assert_eq!(mr.len(), bytes);
        let mut last = [1];
        mr.read(bytes - 1, &mut last).unwrap();
        assert_eq!(last, [0]);
        mr.fill(0, bytes, 0xff).unwrap();
        assert_eq!(mr.load_u8(bytes - 1).unwrap(), 0xff);
        assert_eq!(errno(mr.write(bytes, &[0])), EINVAL);
        assert_eq!(errno(mr.read(usize::MAX, &mut last)), EINVAL);
        assert_eq!(errno(mr.load_u64(4)), EINVAL);
        mr.dereg().unwrap();
    }
    drop((pd, guest));
    scene.stop();
}
