//! The life of objects: use counts, teardown, quarantine, memory that goes away, loss of the HCA.

use virtio_rdma::event::EventType;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::completion::DestroyCq;
use virtio_rdma::request::datagram::AttachMcast;
use virtio_rdma::request::domain::{AllocPd, DeallocPd, DeallocUar};
use virtio_rdma::request::management::RegisterServiceId;
use virtio_rdma::request::memory::{AllocMw, DeregMr, MwType, ReregFlags, ReregMr};
use virtio_rdma::request::queue_pair::{CreateQp, DestroyQp, QpType, QueryQp};
use virtio_rdma::request::shared_receive::{CreateSrq, SrqType};
use virtio_rdma::{Reason, U16, U32, U64};
use zerocopy::FromZeros;

use super::memory::region;
use super::scene::{MEMORY, Scene, call, create_qp, reg_mr};
use crate::Limits;
use crate::hca::{AsyncKind, EventSink, HcaError, HcaEvent};

fn destroy_qp(qp: u32) -> DestroyQp {
    DestroyQp { qp: U32::new(qp), ..DestroyQp::new_zeroed() }
}

fn destroy_cq(cq: u32) -> DestroyCq {
    DestroyCq { cq: U32::new(cq), ..DestroyCq::new_zeroed() }
}

fn dealloc_pd(pd: u32) -> DeallocPd {
    DeallocPd { pd: U32::new(pd), ..DeallocPd::new_zeroed() }
}

fn dereg_mr(mr: u32) -> DeregMr {
    DeregMr { mr: U32::new(mr), ..DeregMr::new_zeroed() }
}

fn assert_empty(scene: &Scene) {
    let fake = scene.hca.lock();
    assert_eq!((&fake.wrong, fake.alive()), (&vec![], vec![]));
    assert!(fake.maps.is_empty());
}

#[test]
fn object_in_use_is_busy_until_its_users_are_gone() {
    let scene = Scene::new();
    let basics = scene.basics();
    let mr = scene.call(&reg_mr(basics.pd, 0x1234, 0x2000), &[(0x40_0000, 0x3000)]).unwrap().mr.get();
    let uar = DeallocUar { uar: U32::new(basics.uar), ..DeallocUar::new_zeroed() };
    assert_eq!(scene.call(&dealloc_pd(basics.pd), &[]).err(), Some(Reason::IN_USE));
    assert_eq!(scene.call(&destroy_cq(basics.cq), &[]).err(), Some(Reason::IN_USE));
    assert_eq!(scene.call(&uar, &[]).err(), Some(Reason::IN_USE));
    scene.call(&destroy_qp(basics.qp), &[]).unwrap();
    assert_eq!(scene.call(&destroy_qp(basics.qp), &[]).err(), Some(Reason::BAD_HANDLE));
    assert_eq!(scene.call(&dealloc_pd(basics.pd), &[]).err(), Some(Reason::IN_USE));
    scene.call(&dereg_mr(mr), &[]).unwrap();
    scene.call(&dealloc_pd(basics.pd), &[]).unwrap();
    scene.call(&destroy_cq(basics.cq), &[]).unwrap();
    scene.call(&uar, &[]).unwrap();
    assert_eq!(scene.tenant.close(), Default::default());
    assert_empty(&scene);
}

#[test]
fn teardown_takes_users_before_what_they_use_and_unmaps_last() {
    let scene = Scene::new();
    let basics = scene.basics();
    scene.call(&reg_mr(basics.pd, 0, 0x1000), &[(0x40_0000, 0x1000)]).unwrap();
    let mw = AllocMw { pd: U32::new(basics.pd), mw_type: MwType::TYPE_1, ..AllocMw::new_zeroed() };
    scene.call(&mw, &[]).unwrap();
    let srq = CreateSrq {
        pd: U32::new(basics.pd),
        srq_type: SrqType::BASIC,
        log2_wqes: 4,
        log2_stride: 6,
        record: U64::new(0x20_0080),
        ..CreateSrq::new_zeroed()
    };
    scene.call(&srq, &[(0x50_0000, 0x1000)]).unwrap();
    let ud = CreateQp { qp_type: QpType::UD, ..create_qp(basics.pd, basics.cq, basics.uar, 0x20_0044) };
    let ud = scene.call(&ud, &[(0x52_0000, 0x2000)]).unwrap().qp;
    let mut group = AttachMcast { qp: ud, mlid: U16::new(0xc001), ..AttachMcast::new_zeroed() };
    group.mgid[0] = 0xff;
    scene.call(&group, &[]).unwrap();

    let before = scene.hca.lock().log.len();
    assert_eq!(scene.tenant.close().not_given_back, 0);
    let mut log = scene.hca.lock().log[before..].to_vec();
    log.dedup();
    let expected = [
        "destroy qp",
        "detach mcast",
        "destroy qp",
        "destroy srq",
        "destroy cq",
        "destroy mw",
        "destroy mr",
        "destroy uar",
        "destroy pd",
        "unmap",
        "detach",
    ];
    assert_eq!(log, expected);
    assert!(scene.around.areas.lock().unwrap().is_empty());
    assert_empty(&scene);
}

#[test]
fn memory_of_an_object_that_the_hca_keeps_stays_mapped_until_its_reset() {
    let scene = Scene::new();
    let basics = scene.basics();
    scene.hca.lock().faults.insert("destroy qp".into(), (HcaError::TimedOut, 1));
    assert_eq!(scene.call(&destroy_qp(basics.qp), &[]).err(), Some(Reason::COMMAND_TIMEOUT));
    assert_eq!(scene.call(&destroy_qp(basics.qp), &[]).err(), Some(Reason::BAD_HANDLE));
    // What it used can't be given back either.
    assert_eq!(scene.call(&destroy_cq(basics.cq), &[]).err(), Some(Reason::COMMAND_FAILED));
    let report = scene.tenant.close();
    assert_eq!(report.not_given_back, 2);
    assert_ne!(report.bytes_left_mapped, 0);
    assert_eq!(scene.host.quarantined_bytes(), report.bytes_left_mapped);
    scene.hca.lock().forget_all();
    scene.host.after_reset();
    assert_eq!(scene.host.quarantined_bytes(), 0);
    assert_empty(&scene);
}

#[test]
fn creation_that_may_have_happened_keeps_its_memory() {
    let scene = Scene::new();
    let pd = scene.call(&AllocPd {}, &[]).unwrap().pd.get();
    scene.hca.lock().faults.insert("create mr".into(), (HcaError::Failed, 1));
    let failed = scene.call(&reg_mr(pd, 0, 0x1000), &[(0x40_0000, 0x1000)]);
    assert_eq!(failed.err(), Some(Reason::COMMAND_FAILED));
    assert_eq!(scene.tenant.close().bytes_left_mapped, 2 << 20);
    scene.host.after_reset();
    assert_empty(&scene);
}

#[test]
fn pd_that_a_region_may_have_moved_to_is_kept_too() {
    let scene = Scene::new();
    let [old, new] = [0, 1].map(|_| scene.call(&AllocPd {}, &[]).unwrap().pd.get());
    let mr = scene.call(&reg_mr(old, 0, 0x1000), &[(0x40_0000, 0x1000)]).unwrap().mr;
    scene.hca.lock().faults.insert("modify mr".into(), (HcaError::TimedOut, 1));
    let change = ReregMr { mr, change: ReregFlags::PD, pd: U32::new(new), ..ReregMr::new_zeroed() };
    assert_eq!(scene.call(&change, &[]).err(), Some(Reason::COMMAND_TIMEOUT));
    assert_eq!(scene.call(&dealloc_pd(new), &[]).err(), Some(Reason::COMMAND_FAILED));
    scene.call(&dereg_mr(mr.get()), &[]).unwrap();
    assert_eq!(scene.call(&dealloc_pd(old), &[]).err(), Some(Reason::COMMAND_FAILED));
    assert!(!scene.hca.lock().log.contains(&"destroy pd".to_owned()));
    assert_eq!(scene.tenant.close().bytes_left_mapped, 2 << 20);
    assert_eq!(scene.hca.lock().wrong, Vec::<String>::new());
}

#[test]
fn memory_that_may_be_mapped_is_kept_apart_until_the_reset() {
    let scene = Scene::new();
    let pd = scene.call(&AllocPd {}, &[]).unwrap().pd.get();
    let register = || scene.call(&reg_mr(pd, 0, 0x1000), &[(0x40_0000, 0x1000)]).err();
    scene.hca.lock().faults.insert("map".into(), (HcaError::TimedOut, 1));
    assert_eq!(register(), Some(Reason::COMMAND_TIMEOUT));
    assert_eq!(register(), Some(Reason::MAPPING_LIMIT));
    assert_eq!(scene.tenant.close().bytes_left_mapped, 2 << 20);
    scene.host.after_reset();
    assert_empty(&scene);
}

#[test]
fn memory_at_the_place_of_what_the_hca_kept_is_not_mapped_before_the_reset() {
    let scene = Scene::new();
    let pd = scene.call(&AllocPd {}, &[]).unwrap().pd.get();
    let mr = scene.call(&reg_mr(pd, 0, 0x1000), &[(0x40_0000, 0x1000)]).unwrap().mr.get();
    scene.hca.lock().faults.insert("destroy mr".into(), (HcaError::Failed, 1));
    assert_eq!(scene.call(&dereg_mr(mr), &[]).err(), Some(Reason::COMMAND_FAILED));
    scene.tenant.update_memory(vec![region(0, MEMORY, 8 * MEMORY)]).unwrap();
    let pd = scene.call(&AllocPd {}, &[]).unwrap().pd.get();
    let before = scene.hca.lock().log.len();
    let there = scene.call(&reg_mr(pd, 0, 0x1000), &[(0x40_0000, 0x1000)]);
    assert_eq!(there.err(), Some(Reason::MAPPING_LIMIT));
    assert_eq!(scene.hca.lock().log.len(), before);
    scene.call(&reg_mr(pd, 0, 0x1000), &[(0x60_0000, 0x1000)]).unwrap();

    scene.tenant.stop();
    scene.hca.lock().forget_all();
    scene.tenant.device_lost(2);
    assert!(scene.hca.lock().maps.is_empty());
    scene.tenant.close();
}

#[test]
fn memory_that_a_reset_left_mapped_is_unmapped_when_the_hca_is_ready() {
    let scene = Scene::new();
    let pd = scene.call(&AllocPd {}, &[]).unwrap().pd.get();
    scene.call(&reg_mr(pd, 0, 0x1000), &[(0x40_0000, 0x1000)]).unwrap();
    scene.tenant.stop();
    scene.hca.lock().forget_all();
    scene.hca.lock().faults.insert("unmap".into(), (HcaError::Lost, 1));
    scene.tenant.device_lost(2);
    assert_eq!((scene.hca.lock().maps.len(), scene.host.quarantined_bytes()), (1, 0));
    scene.tenant.device_ready().unwrap();
    let at_2 = |verb: &_| call(&scene.tenant, verb, &[(0x40_0000, 0x1000)], SegmentMode::DIRECT, 2);
    let pd = call(&scene.tenant, &AllocPd {}, &[], SegmentMode::DIRECT, 2).unwrap().pd.get();
    at_2(&reg_mr(pd, 0, 0x1000)).unwrap();
    scene.host.after_reset();
    assert_eq!(scene.hca.lock().maps.len(), 1);
    scene.tenant.close();
    assert_empty(&scene);
}

#[test]
fn queue_pair_that_may_be_in_a_group_is_taken_out_of_it() {
    let scene = Scene::new();
    let basics = scene.basics();
    let ud = CreateQp { qp_type: QpType::UD, ..create_qp(basics.pd, basics.cq, basics.uar, 0x20_0044) };
    let qp = scene.call(&ud, &[(0x52_0000, 0x2000)]).unwrap().qp;
    let mut group = AttachMcast { qp, mlid: U16::new(0xc001), ..AttachMcast::new_zeroed() };
    group.mgid[0] = 0xff;
    scene.hca.lock().faults.insert("attach mcast".into(), (HcaError::TimedOut, 1));
    assert_eq!(scene.call(&group, &[]).err(), Some(Reason::COMMAND_TIMEOUT));
    scene.call(&destroy_qp(qp.get()), &[]).unwrap();
    scene.tenant.close();
    assert_empty(&scene);
}

fn register_service_id() -> RegisterServiceId {
    RegisterServiceId {
        service_id: U64::new(0x0106_0001),
        mask: U64::new(u64::MAX),
        ..RegisterServiceId::new_zeroed()
    }
}

#[test]
fn guest_has_its_new_id_after_a_loss_of_the_hca() {
    let scene = Scene::new();
    let before = scene.tenant.guest();
    scene.tenant.stop();
    scene.hca.lock().forget_all();
    scene.tenant.device_lost(2);
    scene.tenant.device_ready().unwrap();
    assert_ne!(scene.tenant.guest(), before);
    call(&scene.tenant, &register_service_id(), &[], SegmentMode::DIRECT, 2).unwrap();
    scene.tenant.device_ready().unwrap();
    assert_eq!(scene.host.owner_of_service_id(0x0106_0001, 1), Some(scene.tenant.guest()));
    scene.tenant.close();
}

#[test]
fn service_ids_of_a_guest_that_was_dropped_are_free() {
    let Scene { host, tenant, .. } = Scene::new();
    call(&tenant, &register_service_id(), &[], SegmentMode::DIRECT, 1).unwrap();
    assert_eq!(host.owner_of_service_id(0x0106_0001, 1), Some(tenant.guest()));
    drop(tenant);
    assert_eq!(host.owner_of_service_id(0x0106_0001, 1), None);
}

#[test]
fn region_with_bound_windows_is_busy_and_keeps_its_memory() {
    let scene = Scene::new();
    let pd = scene.call(&AllocPd {}, &[]).unwrap().pd.get();
    let mr = scene.call(&reg_mr(pd, 0, 0x1000), &[(0x40_0000, 0x1000)]).unwrap();
    scene.hca.lock().bound.insert(mr.lkey.get());
    assert_eq!(scene.call(&dereg_mr(mr.mr.get()), &[]).err(), Some(Reason::IN_USE));
    scene.hca.lock().bound.clear();
    scene.call(&dereg_mr(mr.mr.get()), &[]).unwrap();
    scene.tenant.close();
    assert_empty(&scene);
}

#[test]
fn memory_that_goes_away_takes_its_users_from_the_hca_and_tells_them() {
    let scene = Scene::new();
    let basics = scene.basics();
    let high = scene.call(&reg_mr(basics.pd, 0, 0x1000), &[(1 << 32, 0x1000)]).unwrap().mr.get();
    let before = scene.hca.lock().maps.len();
    scene.tenant.update_memory(vec![region(0, MEMORY, 0), region(1 << 32, MEMORY, MEMORY)]).unwrap();
    assert_eq!(scene.hca.lock().maps.len(), before);

    scene.tenant.update_memory(vec![region(1 << 32, MEMORY, MEMORY)]).unwrap();
    assert_eq!(scene.hca.lock().maps.len(), 1);
    let mut events = Vec::new();
    scene.tenant.events().deliver(|event| {
        events.push((event.event_type, event.handle.get()));
        true
    });
    assert_eq!(events, [(EventType::QP_FATAL, basics.qp), (EventType::CQ_ERR, basics.cq)]);
    let query = QueryQp { qp: U32::new(basics.qp), ..QueryQp::new_zeroed() };
    assert_eq!(scene.call(&query, &[]).err(), Some(Reason::NOT_IN_MEMORY));
    assert_eq!(scene.call(&destroy_qp(basics.qp), &[]).map(|done| done.async_events.get()), Ok(1));
    scene.call(&dereg_mr(high), &[]).unwrap();
    scene.tenant.close();
    assert_empty(&scene);
}

#[test]
fn events_are_counted_until_their_object_is_gone() {
    let scene = Scene::new();
    let basics = scene.basics();
    scene.hca.raise_last("qp", Some(AsyncKind::QpAccessError));
    for _ in 0..3 {
        scene.hca.raise_last("cq", None);
    }
    let mut delivered = Vec::new();
    scene.tenant.events().deliver_completions(0, |event| {
        delivered.push(event.cq.get());
        true
    });
    assert_eq!(delivered, [basics.cq]);
    // The event of the queue pair was not delivered: it doesn't come any more, and doesn't count.
    assert_eq!(scene.call(&destroy_qp(basics.qp), &[]).map(|done| done.async_events.get()), Ok(0));
    scene.tenant.events().deliver(|event| panic!("{event:?} of an object that is gone"));
    let done = scene.call(&destroy_cq(basics.cq), &[]).unwrap();
    assert_eq!((done.completion_events.get(), done.async_events.get()), (1, 0));
    scene.tenant.close();
}

#[test]
fn loss_of_the_hca_forgets_everything_and_changes_the_generation() {
    let scene = Scene::new();
    let basics = scene.basics();
    scene.tenant.stop();
    assert_eq!(scene.call(&AllocPd {}, &[]).err(), Some(Reason::STARTING));
    scene.hca.lock().forget_all();
    scene.tenant.device_lost(9);
    assert!(scene.hca.lock().maps.is_empty());
    assert!(scene.around.areas.lock().unwrap().is_empty());
    let at = |generation, pd| call(&scene.tenant, &dealloc_pd(pd), &[], SegmentMode::DIRECT, generation);
    assert!(at(1, basics.pd).is_ok());
    assert_eq!(scene.call(&AllocPd {}, &[]).err(), Some(Reason::STALE_GENERATION));
    scene.tenant.device_ready().unwrap();
    let mut events = Vec::new();
    scene.tenant.events().deliver(|event| {
        events.push((event.event_type, event.generation.get()));
        true
    });
    assert_eq!(events, [(EventType::DEVICE_FATAL, 9), (EventType::DEVICE_READY, 9)]);
    assert_eq!(at(9, basics.pd).err(), Some(Reason::BAD_HANDLE));
    assert!(call(&scene.tenant, &AllocPd {}, &[], SegmentMode::DIRECT, 9).is_ok());
    scene.tenant.close();
    assert_empty(&scene);
}

#[test]
fn events_beyond_the_limit_are_counted_and_the_guest_is_told_how_many() {
    let scene = Scene::with(Limits { events: 2, ..Limits::default() });
    scene.basics();
    for _ in 0..5 {
        scene.hca.raise_last("qp", Some(AsyncKind::CommunicationEstablished));
    }
    let mut events = Vec::new();
    scene.tenant.events().deliver(|event| {
        events.push((event.event_type, event.lost.get()));
        true
    });
    assert_eq!(events, [(EventType::COMM_EST, 3), (EventType::COMM_EST, 0)]);
    scene.tenant.close();
}

#[test]
fn events_that_the_hca_has_lost_are_told_as_one_more_that_was_lost() {
    let scene = Scene::new();
    scene.basics();
    let delivered = || {
        let mut events = Vec::new();
        scene.tenant.events().deliver(|event| {
            events.push((event.event_type, event.lost.get()));
            true
        });
        events
    };
    scene.tenant.events().raise(HcaEvent::Lost);
    assert_eq!(delivered(), [(EventType::EVENTS_LOST, 1)]);
    scene.tenant.events().raise(HcaEvent::Lost);
    scene.hca.raise_last("qp", Some(AsyncKind::CommunicationEstablished));
    assert_eq!(delivered(), [(EventType::COMM_EST, 1)]);
    assert_eq!(scene.tenant.stats().async_events_lost.get(), 2);
    assert_eq!(delivered(), []);
    scene.tenant.close();
}

#[test]
fn renewed_guest_has_lost_everything_and_is_told_with_its_new_generation() {
    let scene = Scene::new();
    scene.basics();
    assert_eq!(scene.tenant.renew(7).not_given_back, 0);
    assert!(scene.hca.lock().alive().is_empty());
    let mut events = Vec::new();
    scene.tenant.events().deliver(|event| {
        events.push((event.event_type, event.generation.get()));
        true
    });
    assert_eq!(events, [(EventType::DEVICE_FATAL, 7), (EventType::DEVICE_READY, 7)]);
    assert_eq!(scene.call(&AllocPd {}, &[]).err(), Some(Reason::STALE_GENERATION));
    assert_eq!(scene.tenant.stats().objects.get(), 0);
}
