//! A guest that wants what isn't its own.

use virtio_rdma::config::Capabilities;
use virtio_rdma::memory::Segment;
use virtio_rdma::request::datagram::{AttachMcast, CreateAh};
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::management::{RegisterServiceId, UnregisterServiceId};
use virtio_rdma::request::memory::AccessFlags;
use virtio_rdma::request::query::{Mtu, QueryPkey, QueryStats};
use virtio_rdma::request::queue_pair::{
    CreateQp, DestroyQp, ModifyQp, QpAttrMask as Mask, QpAttributes, QpState, QpType, QueryQp,
};
use virtio_rdma::request::{HEADER_BYTES, ReplyHeader, SegmentMode};
use virtio_rdma::{Reason, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::scene::{MEMORY, Scene, alloc_uar, call, create_cq, create_qp, guest, reg_mr};
use crate::hca::{HcaError, QpId, Target};
use crate::{GuestConfig, GuestMemory, Limits, MemoryError, Tenant};

fn to_init(qp: u32, pkey_index: u16) -> ModifyQp {
    let attributes = QpAttributes {
        qp_state: QpState::INIT,
        port_num: 1,
        pkey_index: U16::new(pkey_index),
        ..QpAttributes::new_zeroed()
    };
    ModifyQp {
        qp: U32::new(qp),
        attr_mask: Mask::STATE | Mask::PKEY_INDEX | Mask::PORT | Mask::ACCESS_FLAGS,
        attributes,
    }
}

#[test]
fn handles_of_another_guest_name_nothing() {
    let scene = Scene::new();
    let basics = scene.basics();
    let (other, _) = guest(&scene.host, GuestConfig::default());
    let query = QueryQp { qp: U32::new(basics.qp), ..QueryQp::new_zeroed() };
    assert_eq!(call(&other, &query, &[], SegmentMode::DIRECT, 1).err(), Some(Reason::BAD_HANDLE));
    let mr = reg_mr(basics.pd, 0, 0x1000);
    let stolen = call(&other, &mr, &[(0x40_0000, 0x1000)], SegmentMode::DIRECT, 1);
    assert_eq!(stolen.err(), Some(Reason::BAD_HANDLE));
    other.close();
    scene.tenant.close();
}

#[test]
fn memory_must_be_the_guests_and_in_one_region() {
    let scene = Scene::new();
    let pd = scene.basics().pd;
    let refused = |length, memory: &[(u64, u64)]| scene.call(&reg_mr(pd, 0, length), memory).err();
    for address in [MEMORY, MEMORY - 0x1000, (1 << 32) - 0x1000, 1 << 40, u64::MAX << 12] {
        let reason = refused(0x2000, &[(address, 0x2000)]);
        let wraps = address == u64::MAX << 12;
        assert_eq!(
            reason,
            Some(if wraps { Reason::BAD_SEGMENT } else { Reason::NOT_IN_MEMORY }),
            "{address:#x}"
        );
    }
    assert_eq!(refused(0x1000, &[(0, 0x2000)]), Some(Reason::BAD_SEGMENT_SUM));
    assert_eq!(refused(0x1000, &[(8, 0x1000)]), Some(Reason::BAD_SEGMENT));
    assert_eq!(refused(u64::MAX, &[(0, 0x1000)]), Some(Reason::BEYOND_CAPABILITY));
    let writer = AccessFlags::REMOTE_WRITE;
    let mr = virtio_rdma::request::memory::RegMr { access: writer, ..reg_mr(pd, 0, 0x1000) };
    assert_eq!(scene.call(&mr, &[(0, 0x1000)]).err(), Some(Reason::BAD_ACCESS));
    scene.tenant.close();
}

#[test]
fn records_and_areas_must_be_aligned_and_in_memory() {
    let scene = Scene::new();
    let basics = scene.basics();
    let cq = |record| scene.call(&create_cq(basics.uar, record), &[(0x30_0000, 0x1000)]).err();
    assert_eq!(cq(0x20_0004), Some(Reason::MISALIGNED));
    assert_eq!(cq(MEMORY), Some(Reason::NOT_IN_MEMORY));
    let area = |at| scene.call(&alloc_uar(at), &[]).err();
    assert_eq!(area(0x10_0800), Some(Reason::MISALIGNED));
    assert_eq!(area(MEMORY - 0x1000), Some(Reason::NOT_IN_MEMORY));
    let no_queue =
        CreateQp { log2_recv_wqes: 0, log2_recv_stride: 0, ..create_qp(basics.pd, basics.cq, basics.uar, 8) };
    assert_eq!(scene.call(&no_queue, &[(0x30_0000, 0x1000)]).err(), Some(Reason::MISMATCH));
    scene.tenant.close();
}

#[test]
fn limits_end_in_no_memory_and_leave_the_rest_alone() {
    let limits =
        Limits { mrs: 1, registered_bytes: 0x9000, chunks: 3, idle_bytes: 0, slots: 4, ..Limits::default() };
    let scene = Scene::with(limits);
    let basics = scene.basics();
    let mr = |address, bytes| scene.call(&reg_mr(basics.pd, 0, bytes), &[(address, bytes)]);
    assert_eq!(mr(0x40_0000, 0x1_0000).err(), Some(Reason::BYTE_LIMIT));
    assert_eq!(mr(0x3f_f000, 0x4000).err(), None);
    assert_eq!(mr(0x40_0000, 0x1000).err(), Some(Reason::OBJECT_LIMIT));
    let cq = |record| scene.call(&create_cq(basics.uar, record), &[(0x21_0000, 0x1000)]);
    assert!(cq(0x20_0100).is_ok());
    scene.hca.lock().max_maps = 0;
    let far = scene.call(&create_cq(basics.uar, 0x20_0108), &[(1 << 32, 0x1000)]);
    assert_eq!(far.err(), Some(Reason::MAPPING_LIMIT));
    assert!(cq(0x20_0108).is_ok());
    assert_eq!(cq(0x20_0110).err(), Some(Reason::BYTE_LIMIT));
    scene.tenant.close();
    assert_eq!(scene.hca.lock().wrong, Vec::<String>::new());
}

#[test]
fn privileged_and_malformed_attributes_do_not_reach_the_hca() {
    let scene = Scene::new();
    let basics = scene.basics();
    let ud = CreateQp { qp_type: QpType::UD, ..create_qp(basics.pd, basics.cq, basics.uar, 0x20_0080) };
    let ud = scene.call(&ud, &[(0x30_0000, 0x2000)]).unwrap().qp.get();
    let mut init = to_init(ud, 0);
    init.attr_mask = Mask::STATE | Mask::PKEY_INDEX | Mask::PORT | Mask::QKEY;
    init.attributes.qkey = U32::new(0x8001_0000);
    assert_eq!(scene.call(&init, &[]).err(), Some(Reason::PRIVILEGED_QKEY));
    init.attributes.qkey = U32::new(0x1111);
    init.attributes.port_num = 3;
    assert_eq!(scene.call(&init, &[]).err(), Some(Reason::BAD_PORT));
    init.attributes.port_num = 1;
    assert_eq!(scene.call(&init, &[]).err(), None);
    let raw = CreateQp { qp_type: QpType(8), ..create_qp(basics.pd, basics.cq, basics.uar, 0x20_0080) };
    assert_eq!(scene.call(&raw, &[(0x32_0000, 0x2000)]).err(), Some(Reason::BAD_TYPE));
    let mut ah = CreateAh { pd: U32::new(basics.pd), ..CreateAh::new_zeroed() };
    (ah.attributes.port_num, ah.attributes.dlid) = (1, U16::new(0xffff));
    assert_eq!(scene.call(&ah, &[]).err(), Some(Reason::BAD_ATTRIBUTE));
    let modified = scene.hca.lock().modified.clone();
    assert_eq!(modified.iter().map(|modify| modify.qkey).collect::<Vec<_>>(), [Some(0x1111)]);
    scene.tenant.close();
}

#[test]
fn partitions_are_a_table_of_the_guests_own() {
    let scene = Scene::new();
    let partitions = Some(vec![0x8001, 0x8002]);
    let (tenant, _) = guest(&scene.host, GuestConfig { partitions, ..GuestConfig::default() });
    let ask = |index| {
        let query = QueryPkey { port: 1, index: U32::new(index), ..QueryPkey::new_zeroed() };
        call(&tenant, &query, &[], SegmentMode::DIRECT, 1).map(|entry| entry.pkey.get())
    };
    assert_eq!([ask(0), ask(1), ask(2), ask(4)], [Ok(0x8001), Ok(0x8002), Ok(0), Err(Reason::BAD_INDEX)]);
    let one = |verb: &AllocPd| call(&tenant, verb, &[], SegmentMode::DIRECT, 1).unwrap().pd.get();
    let pd = one(&AllocPd {});
    let uar = call(&tenant, &alloc_uar(0x1000), &[], SegmentMode::DIRECT, 1).unwrap().uar.get();
    let cq = call(&tenant, &create_cq(uar, 0x8000), &[(0x9000, 0x1000)], SegmentMode::DIRECT, 1).unwrap();
    let qp = create_qp(pd, cq.cq.get(), uar, 0x8040);
    let qp = call(&tenant, &qp, &[(0xa000, 0x2000)], SegmentMode::DIRECT, 1).unwrap().qp.get();
    assert_eq!(call(&tenant, &to_init(qp, 2), &[], SegmentMode::DIRECT, 1).err(), Some(Reason::BAD_INDEX));
    call(&tenant, &to_init(qp, 1), &[], SegmentMode::DIRECT, 1).unwrap();
    assert_eq!(scene.hca.lock().modified.last().and_then(|modify| modify.pkey_index), Some(3));
    tenant.close();
    scene.tenant.close();
}

/// A guest with one partition, which is at index 1 of port 1 and at index 2 of port 2, and its queue pair.
fn guest_of_a_partition(scene: &Scene) -> (Tenant, u32) {
    let config = GuestConfig { partitions: Some(vec![0x8001]), ..GuestConfig::default() };
    let (tenant, _) = guest(&scene.host, config);
    let pd = call(&tenant, &AllocPd {}, &[], SegmentMode::DIRECT, 1).unwrap().pd.get();
    let uar = call(&tenant, &alloc_uar(0x1000), &[], SegmentMode::DIRECT, 1).unwrap().uar.get();
    let cq = call(&tenant, &create_cq(uar, 0x8000), &[(0x9000, 0x1000)], SegmentMode::DIRECT, 1).unwrap();
    let qp = create_qp(pd, cq.cq.get(), uar, 0x8040);
    let qp = call(&tenant, &qp, &[(0xa000, 0x2000)], SegmentMode::DIRECT, 1).unwrap().qp.get();
    (tenant, qp)
}

fn modify(qp: u32, mask: Mask, port: u8, qp_state: QpState) -> ModifyQp {
    let mut attributes =
        QpAttributes { qp_state, port_num: port, path_mtu: Mtu::B1024, ..FromZeros::new_zeroed() };
    (attributes.ah_attr.port_num, attributes.ah_attr.dlid) = (port, U16::new(2));
    (attributes.alt_ah_attr, attributes.alt_port_num) = (attributes.ah_attr, port);
    ModifyQp { qp: U32::new(qp), attr_mask: mask | Mask::STATE, attributes }
}

const TO_RTR: Mask = Mask::AV
    .union(Mask::PATH_MTU)
    .union(Mask::DEST_QPN)
    .union(Mask::RQ_PSN)
    .union(Mask::MAX_DEST_RD_ATOMIC)
    .union(Mask::MIN_RNR_TIMER);
const TO_RTS: Mask = Mask::SQ_PSN
    .union(Mask::TIMEOUT)
    .union(Mask::RETRY_CNT)
    .union(Mask::RNR_RETRY)
    .union(Mask::MAX_QP_RD_ATOMIC);

#[test]
fn pkey_of_one_port_is_not_taken_along_to_another() {
    let scene = Scene::new();
    let (tenant, qp) = guest_of_a_partition(&scene);
    let ask = |mask, port, state| {
        call(&tenant, &modify(qp, mask, port, state), &[], SegmentMode::DIRECT, 1).map(|_| ())
    };
    let last = || scene.hca.lock().modified.last().map(|modify| (modify.port, modify.pkey_index)).unwrap();
    let refused = Err(Reason::BAD_ATTRIBUTE_MASK);
    ask(Mask::PORT | Mask::PKEY_INDEX | Mask::ACCESS_FLAGS, 1, QpState::INIT).unwrap();
    assert_eq!(last(), (Some(1), Some(1)));
    assert_eq!(ask(Mask::PORT, 2, QpState::INIT), refused);
    ask(Mask::PORT | Mask::PKEY_INDEX, 2, QpState::INIT).unwrap();
    assert_eq!(last(), (Some(2), Some(2)));
    ask(TO_RTR, 2, QpState::RTR).unwrap();
    ask(TO_RTS, 2, QpState::RTS).unwrap();
    ask(Mask::NONE, 2, QpState::SQD).unwrap();
    assert_eq!(ask(Mask::PORT | Mask::AV, 1, QpState::SQD), refused);
    assert_eq!(ask(Mask::PORT | Mask::PKEY_INDEX, 1, QpState::SQD), refused);
    ask(Mask::PORT | Mask::PKEY_INDEX | Mask::AV, 1, QpState::SQD).unwrap();
    assert_eq!(last(), (Some(1), Some(1)));
    ask(Mask::PKEY_INDEX, 1, QpState::SQD).unwrap();

    // From now on the HCA may move it to port 2.
    ask(Mask::ALT_PATH, 2, QpState::SQD).unwrap();
    assert_eq!(ask(Mask::PKEY_INDEX, 1, QpState::SQD), refused);
    assert_eq!(ask(Mask::AV, 1, QpState::SQD), refused);
    ask(Mask::PORT | Mask::PKEY_INDEX | Mask::AV, 2, QpState::SQD).unwrap();
    assert_eq!(last(), (Some(2), Some(2)));
    tenant.close();
    scene.tenant.close();
}

#[test]
fn port_is_unknown_after_a_change_that_may_have_happened() {
    let scene = Scene::new();
    let (tenant, qp) = guest_of_a_partition(&scene);
    let ask = |mask, port| {
        call(&tenant, &modify(qp, mask, port, QpState::INIT), &[], SegmentMode::DIRECT, 1).map(|_| ())
    };
    ask(Mask::PORT | Mask::PKEY_INDEX | Mask::ACCESS_FLAGS, 1).unwrap();
    scene.hca.lock().faults.insert("modify qp".into(), (HcaError::Failed, 1));
    assert_eq!(ask(Mask::PORT | Mask::PKEY_INDEX, 2), Err(Reason::COMMAND_FAILED));
    assert_eq!(ask(Mask::PKEY_INDEX, 1), Err(Reason::BAD_PORT));
    ask(Mask::PORT | Mask::PKEY_INDEX, 1).unwrap();
    ask(Mask::PKEY_INDEX, 1).unwrap();
    tenant.close();
    scene.tenant.close();
}

#[test]
fn guest_without_a_gid_for_them_is_offered_no_datagrams() {
    let scene = Scene::new();
    let of = |own| guest(&scene.host, GuestConfig { own_gids: Some(own), ..GuestConfig::default() }).0;
    let with_gids = of(vec![1]);
    assert!(with_gids.config_space().capabilities.contains(Capabilities::UD | Capabilities::OWN_GIDS));
    with_gids.close();
    let tenant = of(Vec::new());
    let offered = tenant.config_space().capabilities;
    assert!(!offered.intersects(Capabilities::UD | Capabilities::MULTICAST));
    assert!(offered.contains(Capabilities::OWN_GIDS));
    let ud = CreateQp { qp_type: QpType::UD, ..create_qp(1, 1, 1, 0x8000) };
    let refused = call(&tenant, &ud, &[(0x9000, 0x2000)], SegmentMode::DIRECT, 1);
    assert_eq!(refused.err(), Some(Reason::NOT_OFFERED));
    tenant.close();
    scene.tenant.close();
}

#[test]
fn guest_takes_only_its_share_of_a_multicast_group() {
    let scene = Scene::with(Limits { mcast_members: 1, ..Limits::default() });
    let basics = scene.basics();
    let datagrams = |record, ring| {
        let ud = CreateQp { qp_type: QpType::UD, ..create_qp(basics.pd, basics.cq, basics.uar, record) };
        scene.call(&ud, &[(ring, 0x2000)]).unwrap().qp
    };
    let attach = |qp, group| {
        let mut attach = AttachMcast { qp, mlid: U16::new(0xc001), ..AttachMcast::new_zeroed() };
        (attach.mgid[0], attach.mgid[15]) = (0xff, group);
        scene.call(&attach, &[]).map(|_| ())
    };
    let (one, two) = (datagrams(0x20_0080, 0x30_0000), datagrams(0x20_0084, 0x31_0000));
    attach(one, 1).unwrap();
    assert_eq!(attach(two, 1), Err(Reason::OBJECT_LIMIT));
    attach(one, 1).unwrap();
    attach(two, 2).unwrap();
    scene.tenant.close();
}

#[test]
fn service_ids_are_counted_one_by_one() {
    let scene = Scene::with(Limits { service_ids: 6, ..Limits::default() });
    let register = |service_id, mask| {
        let (service_id, mask) = (U64::new(service_id), U64::new(mask));
        let register = RegisterServiceId { service_id, mask, ..RegisterServiceId::new_zeroed() };
        scene.call(&register, &[]).map(|done| done.registration)
    };
    assert_eq!(register(0x0106_0000, !0xffff), Err(Reason::OBJECT_LIMIT));
    assert_eq!(register(0x0106_0000, !0x1_ffff), Err(Reason::BAD_ATTRIBUTE));
    let four = register(0x0106_0000, !3).unwrap();
    register(0x0106_0008, !1).unwrap();
    assert_eq!(register(0x0106_0010, !0), Err(Reason::OBJECT_LIMIT));
    let unregister = UnregisterServiceId { registration: four, ..UnregisterServiceId::new_zeroed() };
    scene.call(&unregister, &[]).unwrap();
    register(0x0106_0010, !3).unwrap();
    scene.tenant.close();
    assert_eq!(scene.host.owner_of_service_id(0x0106_0010, 1), None);
}

#[test]
fn list_of_segments_is_read_from_guest_memory() {
    let scene = Scene::new();
    let pd = scene.basics().pd;
    let list = [(0x60_0000, 0x1000), (1 << 32, 0x2000)]
        .map(|(address, length)| Segment { address: U64::new(address), length: U64::new(length) });
    let region = super::memory::region(0, MEMORY, 0);
    scene.around.write(&region, 0x5000, list.as_bytes()).unwrap();
    let ask = |piece| call(&scene.tenant, &reg_mr(pd, 0, 0x3000), &[piece], SegmentMode::INDIRECT, 1).err();
    assert_eq!(ask((0x5000, 32)), None);
    assert_eq!(ask((0x5000, 16)), Some(Reason::BAD_SEGMENT_SUM));
    assert_eq!(ask((MEMORY, 32)), Some(Reason::NOT_IN_MEMORY));
    assert_eq!(ask((0, 1 << 40)), Some(Reason::TOO_MANY_SEGMENTS));
    scene.tenant.close();
}

#[test]
fn doorbell_rings_what_the_table_says_while_it_lives() {
    let scene = Scene::new();
    scene.basics();
    let table = scene.around.areas.lock().unwrap()[0].table.clone();
    for slot in [0, 1, 2, u32::MAX] {
        table.ring(&*scene.hca, slot, u64::from(slot) << 8 | 0xff);
    }
    let rung: Vec<_> = scene.hca.lock().rung.iter().map(|(doorbell, _)| doorbell.target).collect();
    assert!(matches!(rung[..], [Target::Arm(_), Target::Send(QpId(_))]));
    let stats = scene.call(&QueryStats {}, &[]).unwrap();
    assert_eq!((stats.send_doorbells.get(), stats.arm_doorbells.get(), stats.bad_doorbells.get()), (1, 1, 2));
    scene.tenant.close();
    table.ring(&*scene.hca, 1, 0);
    assert_eq!(scene.hca.lock().rung.len(), 2);
}

#[test]
fn bits_that_an_object_left_in_its_slot_ring_the_next_one_on_the_guests_own_page() {
    let scene = Scene::new();
    let basics = scene.basics();
    let table = scene.around.areas.lock().unwrap()[0].table.clone();
    let slot =
        (0..4).find(|slot| matches!(table.get(*slot).map(|found| found.target), Some(Target::Send(_))));
    let before = table.get(slot.unwrap()).unwrap();
    scene.call(&DestroyQp { qp: U32::new(basics.qp), ..DestroyQp::new_zeroed() }, &[]).unwrap();
    table.ring(&*scene.hca, slot.unwrap(), u64::MAX);
    assert_eq!(scene.hca.lock().rung, []);
    let qp = create_qp(basics.pd, basics.cq, basics.uar, 0x20_0040);
    scene.call(&qp, &[(0x22_0000, 0x2000)]).unwrap();
    table.ring(&*scene.hca, slot.unwrap(), u64::MAX);
    let rung: Vec<_> = scene.hca.lock().rung.iter().map(|(doorbell, _)| *doorbell).collect();
    assert_eq!(rung, table.get(slot.unwrap()).as_slice());
    assert_eq!(rung[0].uar, before.uar);
    assert_ne!(rung[0].target, before.target);
    scene.tenant.close();
}

#[test]
fn window_ends_where_it_ends() {
    let scene = Scene::new();
    let beyond = scene.tenant.update_memory(vec![super::memory::region(1 << 40, 0x1000, 0)]);
    assert!(matches!(beyond, Err(MemoryError::BeyondWindow { .. })));
    assert!(scene.call(&alloc_uar(0x1000), &[]).is_ok());
    scene.tenant.close();
}

#[test]
fn reply_without_room_carries_nothing_out() {
    let scene = Scene::new();
    let mut request = [0; 64];
    let length =
        virtio_rdma::request::encode(&mut request, &AllocPd {}, &[], SegmentMode::DIRECT, 3, 1).unwrap();
    let mut reply = [0; HEADER_BYTES + 7];
    assert_eq!(scene.tenant.handle(&request[..length], &mut reply), Some(HEADER_BYTES));
    let header = ReplyHeader::ref_from_prefix(&reply).unwrap().0;
    assert_eq!((header.reason, header.cookie.get()), (Reason::REPLY_TOO_SHORT, 3));
    assert_eq!(scene.tenant.handle(&request[..length], &mut [0; HEADER_BYTES - 1]), None);
    assert_eq!(scene.hca.lock().alive(), []);
    scene.tenant.close();
}
