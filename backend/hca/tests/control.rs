//! The verbs of control, one by one.

mod common;

use common::guest::{
    ADDRESS, ALL, Bare, CQ_RING, DATA, Guest, MEMORY, PAGE, QP_COOKIE, QP_RING, RECORDS, geometry,
    transitions,
};
use common::rings::{data, datagram, remote};
use common::{Rig, Told, config, wait_for};
use mlx4_pci::PciDevice;
use mlx4_wire::wqe::Opcode;
use paraverbs_tenant::hca::*;

#[test]
fn device_tells_what_it_is_and_only_what_it_can_do() {
    let rig = Rig::new(0x0002_c903_0081_0000, config());
    let info = rig.hca.device();
    assert_eq!(info.node_guid, 0x0002_c903_0081_0000u64.to_be_bytes());
    assert_eq!(info.sys_image_guid, 0x0002_c903_0081_0003u64.to_be_bytes());
    assert_eq!((info.vendor_id, info.part_id, info.ports), (0x02c9, 4099, 1));
    assert_eq!(info.firmware, (2, 42, 5700));
    assert_eq!((info.atomics, info.masked_atomics), (AtomicSupport::Hca, AtomicSupport::Hca));
    let Features { uc, ud, multicast, srq, modify_mr, resize_cq, moderate_cq, path_migration, .. } =
        info.features;
    assert_eq!([uc, ud, multicast, srq, modify_mr, resize_cq, moderate_cq], [true; 7]);
    assert!(!path_migration);
    let caps = rig.hca.driver(|driver| driver.capabilities().clone()).unwrap();
    let Features { xrc, mw_type1, mw_type2, .. } = info.features;
    assert_eq!([xrc, mw_type1, mw_type2], [caps.xrcds.is_some(), caps.has_windows, caps.has_windows_2b]);
    assert_eq!((info.max_xrcd != 0, info.max_mw != 0), (xrc, mw_type1 || mw_type2));
    assert_eq!(info.max_lso_bytes != 0, caps.log2_max_lso != 0);
    assert_eq!((info.max_qp_wr, info.max_sge, info.max_srq_sge), (16_351, 32, 31));
    assert_eq!((info.max_cq, info.max_qp), ((1 << 10) - 128, (1 << 16) - 72));
    let QueueFormat::Mlx4(format) = info.queue_format;
    assert_eq!(u32::from(format.cqe_bytes), if caps.has_wide_cqes { 64 } else { 32 });
    assert_eq!((format.max_send_wqe_bytes, format.max_inline_bytes), (1008, 912));
    assert_eq!((format.headroom_bytes, format.headroom_wqes), (2048, 1));
    rig.close();
}

#[test]
fn port_is_told_as_the_subnet_manager_has_set_it() {
    let rig = Rig::new(0x0002_c903_0082_0000, config());
    let port = rig.active();
    assert_eq!((port.physical_state, port.max_mtu, port.link_layer), (5, 5, LinkLayer::InfiniBand));
    assert!(port.lid != 0 && port.sm_lid != 0 && port.active_mtu != 0);
    assert_eq!((port.gids, port.pkeys, port.max_message_bytes), (128, 128, 1 << 30));
    let gid = rig.hca.query_gid(1, 0).unwrap();
    assert_eq!(gid.0[8..], 0x0002_c903_0082_0001u64.to_be_bytes());
    assert_eq!(rig.hca.query_gid(1, 127), Ok(Gid::default()));
    assert_eq!(rig.hca.query_pkey(1, 0), Ok(0xffff));
    assert_eq!(rig.hca.query_pkey(1, 127), Ok(0));
    for port in [0, 2, 255] {
        assert_eq!(rig.hca.query_port(port), Err(HcaError::Refused));
    }
    assert_eq!(rig.hca.query_gid(1, 128), Err(HcaError::Refused));
    assert_eq!(rig.hca.query_pkey(1, 128), Err(HcaError::Refused));
    rig.close();
}

#[test]
fn object_in_use_is_busy_and_an_unknown_one_refused() {
    let rig = Rig::new(0x0002_c903_0083_0000, config());
    let hca = &rig.hca;
    let guest = Guest::new(hca, 0);
    assert_eq!(hca.dealloc_pd(guest.pd), Err(HcaError::Busy));
    assert_eq!(hca.dealloc_uar(guest.uar), Err(HcaError::Busy));
    assert_eq!(hca.destroy_cq(guest.cq.id), Err(HcaError::Busy));
    assert_eq!(hca.dealloc_pd(PdId(guest.pd.0 + 1)), Err(HcaError::Refused));
    assert_eq!(hca.dealloc_uar(UarId(0)), Err(HcaError::Refused));
    assert_eq!(hca.destroy_cq(CqId(u32::MAX)), Err(HcaError::Refused));
    assert_eq!(hca.destroy_qp(QpId(guest.qp.id.0 ^ 1 << 24)), Err(HcaError::Refused));
    assert_eq!(hca.destroy_mr(MrId(77)), Err(HcaError::Refused));
    assert_eq!(hca.destroy_srq(SrqId(77)), Err(HcaError::Refused));
    assert_eq!(hca.query_qp(QpId(1)), Err(HcaError::Refused));
    assert_eq!(hca.alloc_pd(GuestId(guest.bare.id.0 + 1)), Err(HcaError::Refused));
    assert_eq!(hca.alloc_uar(GuestId(0)), Err(HcaError::Refused));
    guest.destroy();
    rig.close();
}

#[test]
fn what_neither_card_nor_driver_has_is_unsupported() {
    let rig = Rig::of_a_plain_card(0x0002_c903_0084_0000, config());
    let hca = &rig.hca;
    let info = hca.device();
    let Features { xrc, mw_type1, mw_type2, .. } = info.features;
    assert_eq!([xrc, mw_type1, mw_type2], [false; 3]);
    assert_eq!((info.max_xrcd, info.max_mw, info.max_lso_bytes), (0, 0, 0));
    let bare = Bare::new(hca, 0);
    let pd = hca.alloc_pd(bare.id).unwrap().id;
    assert_eq!(hca.alloc_xrcd(bare.id), Err(HcaError::Unsupported));
    assert_eq!(hca.dealloc_xrcd(XrcdId(1)), Err(HcaError::Refused));
    assert_eq!(hca.alloc_mw(pd, MwKind::Type1), Err(HcaError::Unsupported));
    assert_eq!(hca.dealloc_mw(MwId(1)), Err(HcaError::Refused));
    for kind in [QpKind::XrcSend, QpKind::XrcRecv] {
        let geometry = QpGeometry { kind, send: None, receive: None, max_inline: 0 };
        assert_eq!(hca.create_qp(&bare.nothing(geometry)), Err(HcaError::Unsupported));
    }
    let ud = QpGeometry { kind: QpKind::Ud, ..geometry(QpKind::Ud, false) };
    assert_eq!(hca.create_qp(&QpSpec { lso: true, ..bare.nothing(ud) }), Err(HcaError::Unsupported));
    let windows = RegionAccess { mw_bind: true, ..ALL };
    assert_eq!(bare.mr(pd, windows).map(|_| ()), Err(HcaError::Unsupported));
    hca.dealloc_pd(pd).unwrap();
    bare.leave();
    rig.close();
}

#[test]
fn uars_are_behind_those_of_event_queues_and_each_is_one_guest_s() {
    let rig = Rig::new(0x0002_c903_0085_0000, config());
    let guests = [Bare::new(&rig.hca, 0), Bare::new(&rig.hca, 1)];
    let uars: Vec<UarId> = (0..20).map(|n: usize| rig.hca.alloc_uar(guests[n % 2].id).unwrap()).collect();
    let mut pages: Vec<u32> = uars.iter().map(|uar| uar.0 & 0xff_ffff).collect();
    assert!(pages.iter().all(|page| *page >= 128));
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), 20);
    uars.into_iter().for_each(|uar| rig.hca.dealloc_uar(uar).unwrap());
    guests.into_iter().for_each(Bare::leave);
    rig.close();
}

#[test]
fn memory_is_mapped_in_guests_windows_only_and_once() {
    let rig = Rig::new(0x0002_c903_0086_0000, config());
    let bare = Bare::new(&rig.hca, 0);
    assert_eq!(bare.map(), Err(HcaError::Refused), "it is mapped already");
    assert_eq!(rig.hca.unmap(Iova(bare.window), PAGE as u64), Err(HcaError::Refused));
    assert_eq!(rig.hca.unmap(Iova(bare.window + PAGE as u64), PAGE as u64), Err(HcaError::Refused));
    rig.hca.unmap(Iova(bare.window), MEMORY as u64).unwrap();
    // The driver's own addresses.
    let own = Bare { window: rig.device.dma().geometry().ranges[0].start() + (1 << 30), ..bare };
    assert_eq!(own.map(), Err(HcaError::Refused));
    let nowhere = Bare { window: u64::MAX - 0xfff, ..own };
    assert_eq!(nowhere.map(), Err(HcaError::Refused));
    let elsewhere = Bare { window: rig.hca.dma().ranges[0].start, ..nowhere };
    elsewhere.map().unwrap();
    elsewhere.leave();
    rig.close();
}

#[test]
fn region_is_changed_in_rights_memory_and_domain() {
    let rig = Rig::new(0x0002_c903_0087_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    let hca = &rig.hca;
    // Other memory, at another address.
    let start = 0x7000_0000u64;
    let pages = [far.bare.piece(DATA + 0x1_0000, 2 * PAGE), far.bare.piece(DATA, PAGE)];
    let memory = Some((start, 3 * PAGE as u64, &pages[..]));
    let keys = hca.modify_mr(far.mr, &MrChange { pd: None, access: None, memory }).unwrap();
    near.write(0, b"moved");
    near.post(Opcode::RDMA_WRITE, &[remote(keys.rkey, start + 2 * PAGE as u64), near.data(0, 5)].concat());
    near.sent();
    assert_eq!(far.read(0, 5), b"moved");
    // A domain that isn't the connection's, and no rights.
    let other = hca.alloc_pd(far.bare.id).unwrap().id;
    let access = Some(RegionAccess::default());
    let moved = hca.modify_mr(far.mr, &MrChange { pd: Some(other), access, memory: None }).unwrap();
    assert_ne!(moved, keys);
    assert_eq!(hca.dealloc_pd(other), Err(HcaError::Busy));
    near.post(Opcode::RDMA_WRITE, &[remote(moved.rkey, start), near.data(0, 5)].concat());
    assert!(near.completion().syndrome.is_some());
    // What can't be changes nothing.
    let short = Some((start, 4 * PAGE as u64, &pages[..]));
    let refused = hca.modify_mr(far.mr, &MrChange { pd: None, access: None, memory: short });
    assert_eq!(refused, Err(HcaError::Refused));
    assert_eq!(hca.dealloc_pd(other), Err(HcaError::Busy));
    let back = MrChange { pd: Some(far.pd), access: None, memory: None };
    hca.modify_mr(far.mr, &back).unwrap();
    hca.dealloc_pd(other).unwrap();
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn queue_pair_is_changed_from_the_state_that_it_is_in() {
    let rig = Rig::new(0x0002_c903_0088_0000, config());
    let lid = rig.active().lid;
    let (hca, guest) = (&rig.hca, Guest::new(&rig.hca, 0));
    let [init, rtr, rts] = transitions(lid, guest.qp.number);
    let state = || hca.query_qp(guest.qp.id).unwrap().state;
    assert_eq!(state(), QpState::Reset);
    assert_eq!(hca.modify_qp(guest.qp.id, &rtr), Err(HcaError::Refused));
    hca.modify_qp(guest.qp.id, &init).unwrap();
    assert_eq!(hca.modify_qp(guest.qp.id, &init), Err(HcaError::Refused));
    assert_eq!(hca.modify_qp(guest.qp.id, &QpModify { path: None, ..rtr }), Err(HcaError::Refused));
    hca.modify_qp(guest.qp.id, &rtr).unwrap();
    hca.modify_qp(guest.qp.id, &rts).unwrap();
    let now = hca.query_qp(guest.qp.id).unwrap();
    assert_eq!((now.state, now.port, now.dest_qpn), (QpState::Rts, 1, guest.qp.number));
    assert_eq!((now.path, now.path_mtu), (rtr.path, 5));
    assert_eq!((now.timeout, now.retry_count, now.rnr_retry, now.min_rnr_timer), (14, 7, 7, 12));
    assert_eq!((now.max_rd_atomic, now.max_dest_rd_atomic), (4, 4));
    assert_eq!((now.access, now.alternate, now.migration), (ALL.remote, None, Migration::Migrated));
    let armed = QpModify { migration: Some(Migration::Armed), ..QpModify::state(QpState::Rts, QpState::Rts) };
    assert_eq!(hca.modify_qp(guest.qp.id, &armed), Err(HcaError::Unsupported));

    // Draining is told to whom it concerns.
    let drain = QpModify { sqd_event: Some(true), ..QpModify::state(QpState::Rts, QpState::Sqd) };
    hca.modify_qp(guest.qp.id, &drain).unwrap();
    let kind = AsyncKind::SendQueueDrained;
    wait_for(&guest.bare.told, Told::Event(HcaEvent::Object { cookie: QP_COOKIE, kind, syndrome: 0 }));
    assert_eq!(
        hca.modify_qp(guest.qp.id, &QpModify::state(QpState::Rts, QpState::Rts)),
        Err(HcaError::Refused)
    );
    hca.modify_qp(guest.qp.id, &QpModify::state(QpState::Sqd, QpState::Rts)).unwrap();
    // From any state, whatever it was assumed to be.
    hca.modify_qp(guest.qp.id, &QpModify::state(QpState::Init, QpState::Err)).unwrap();
    assert_eq!(state(), QpState::Err);
    hca.modify_qp(guest.qp.id, &QpModify::state(QpState::Rts, QpState::Reset)).unwrap();
    assert_eq!((state(), hca.query_qp(guest.qp.id).unwrap().port), (QpState::Reset, 0));
    guest.destroy();
    rig.close();
}

#[test]
fn queue_pair_in_send_error_starts_again_from_there_only() {
    let rig = Rig::new(0x0002_c903_008e_0000, config());
    let lid = rig.active().lid;
    let hca = &rig.hca;
    let mut guest = Guest::of_datagrams(hca, 0);
    guest.start(1);
    let path = Path { port: 1, dlid: lid, sl: 0, src_path_bits: 0, static_rate: 0, grh: None, dmac: [0; 6] };
    let vector = hca.address_vector(guest.pd, &path).unwrap().0;
    let body = [datagram(&vector, guest.qp.number, 1), data(guest.keys.lkey ^ 1, ADDRESS, 8)].concat();
    guest.post(Opcode::SEND, &body);
    assert!(guest.completion().syndrome.is_some());
    assert_eq!(hca.query_qp(guest.qp.id).unwrap().state, QpState::Sqe);
    let to_rts = |from| hca.modify_qp(guest.qp.id, &QpModify::state(from, QpState::Rts));
    assert_eq!(to_rts(QpState::Rts), Err(HcaError::Refused));
    assert_eq!(to_rts(QpState::Sqd), Err(HcaError::Refused));
    assert_eq!(to_rts(QpState::Sqe), Ok(()));
    assert_eq!(to_rts(QpState::Sqe), Err(HcaError::Refused));
    let good = [datagram(&vector, guest.qp.number, 1), guest.data(0, 8)].concat();
    guest.post(Opcode::SEND, &good);
    guest.sent();
    guest.destroy();
    rig.close();
}

#[test]
fn shared_receive_queue_is_armed_and_tells_its_limit() {
    let rig = Rig::new(0x0002_c903_0089_0000, config());
    let hca = &rig.hca;
    let bare = Bare::new(hca, 0);
    let pd = hca.alloc_pd(bare.id).unwrap().id;
    let geometry = SrqGeometry { log2_wqes: 6, log2_stride: 6, max_wr: 63, max_sge: 3 };
    let layout = hca.srq_layout(&geometry).unwrap();
    assert_eq!(layout, RingLayout { ring_bytes: 4096, record_bytes: 4, written: false });
    let ring = [bare.piece(QP_RING, PAGE)];
    let spec = SrqSpec {
        guest: bare.id,
        cookie: Cookie(5),
        pd,
        kind: SrqKind::Basic,
        geometry,
        memory: RingMemory { ring: &ring, record: Some(bare.at(RECORDS)) },
    };
    let unknown = SrqKind::Xrc { xrcd: XrcdId(1), cq: CqId(1) };
    assert!(hca.create_srq(&SrqSpec { kind: unknown, ..spec }).is_err());
    let srq = hca.create_srq(&spec).unwrap().id;
    assert_eq!(hca.query_srq(srq), Ok(SrqState { limit: 0 }));
    hca.arm_srq(srq, 16).unwrap();
    assert_eq!(hca.query_srq(srq), Ok(SrqState { limit: 16 }));
    for limit in [64, 1 << 16] {
        assert_eq!(hca.arm_srq(srq, limit), Err(HcaError::Refused));
    }
    assert_eq!(hca.dealloc_pd(pd), Err(HcaError::Busy));
    hca.destroy_srq(srq).unwrap();
    hca.dealloc_pd(pd).unwrap();
    bare.leave();
    rig.close();
}

#[test]
fn ring_must_have_the_length_and_the_record_of_its_layout() {
    let rig = Rig::new(0x0002_c903_008a_0000, config());
    let hca = &rig.hca;
    let bare = Bare::new(hca, 0);
    let uar = hca.alloc_uar(bare.id).unwrap();
    let cq = |ring: &[Piece], record, guest| {
        let geometry = CqGeometry { entries: 64 };
        let memory = RingMemory { ring, record };
        hca.create_cq(&CqSpec {
            guest,
            cookie: Cookie(1),
            uar,
            geometry,
            memory,
            timestamp: false,
            ignore_overrun: true,
        })
    };
    let (good, record) = ([bare.piece(CQ_RING, PAGE)], Some(bare.at(RECORDS)));
    assert_eq!(cq(&[bare.piece(CQ_RING, 2 * PAGE)], record, bare.id), Err(HcaError::Refused));
    assert_eq!(cq(&[], record, bare.id), Err(HcaError::Refused));
    assert_eq!(cq(&good, None, bare.id), Err(HcaError::Geometry));
    assert_eq!(cq(&good, Some(bare.at(RECORDS + 4)), bare.id), Err(HcaError::Refused));
    assert_eq!(cq(&good, record, GuestId(0)), Err(HcaError::Refused));
    let made = cq(&good, record, bare.id).unwrap();
    assert_eq!(made.number, made.id.0 & 0xff_ffff);
    hca.destroy_cq(made.id).unwrap();
    hca.dealloc_uar(uar).unwrap();
    bare.leave();
    rig.close();
}

#[test]
fn address_vector_has_port_domain_and_path() {
    let rig = Rig::new(0x0002_c903_008b_0000, config());
    let bare = Bare::new(&rig.hca, 0);
    let pd = rig.hca.alloc_pd(bare.id).unwrap();
    let grh =
        Grh { dgid: Gid([7; 16]), sgid_index: 2, flow_label: 0x1_2345, hop_limit: 9, traffic_class: 0xab };
    let path =
        Path { port: 1, dlid: 0x0a0b, sl: 5, src_path_bits: 1, static_rate: 0, grh: Some(grh), dmac: [0; 6] };
    let vector = rig.hca.address_vector(pd.id, &path).unwrap().0;
    let domain = pd.number.to_be_bytes();
    let wanted = [[1, domain[1], domain[2], domain[3]], [0, 0x81, 0x0a, 0x0b], [0, 2, 0, 9]].concat();
    assert_eq!(vector[..12], wanted);
    assert_eq!(vector[12..16], [0x5a, 0xb1, 0x23, 0x45]);
    assert_eq!((&vector[16..32], &vector[32..]), (&[7; 16][..], &[0; 16][..]));
    assert_eq!(rig.hca.address_vector(pd.id, &Path { port: 2, ..path }), Err(HcaError::Refused));
    assert_eq!(rig.hca.address_vector(PdId(0), &path), Err(HcaError::Refused));
    rig.hca.dealloc_pd(pd.id).unwrap();
    bare.leave();
    rig.close();
}

#[test]
fn region_must_be_held_by_its_pieces() {
    let rig = Rig::new(0x0002_c903_008d_0000, config());
    let bare = Bare::new(&rig.hca, 0);
    let pd = rig.hca.alloc_pd(bare.id).unwrap().id;
    let spec = |start, length, pages: &[Piece]| {
        rig.hca.create_mr(&MrSpec { pd, access: ALL, start, length, pages }).map(|(mr, _)| mr)
    };
    let page = [bare.piece(DATA, PAGE)];
    assert_eq!(spec(ADDRESS, PAGE as u64 + 1, &page), Err(HcaError::Refused));
    assert_eq!(spec(ADDRESS, 0, &page), Err(HcaError::Refused));
    assert_eq!(spec(u64::MAX, 2, &page), Err(HcaError::Refused));
    let mr = spec(ADDRESS + 0x123, 0x100, &page).unwrap();
    rig.hca.destroy_mr(mr).unwrap();
    assert_eq!(rig.hca.destroy_mr(mr), Err(HcaError::Refused));
    rig.hca.dealloc_pd(pd).unwrap();
    bare.leave();
    rig.close();
}
