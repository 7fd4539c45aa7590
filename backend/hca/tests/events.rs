//! Events go to the guest whose object they name, and to nobody else.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use common::guest::{CQ_COOKIE, Guest, PAGE, QP_COOKIE, RECORDS};
use common::{Rig, Told, config, wait_for};
use mlx4_model::hca::Fault;
use mlx4_wire::eqe::{
    CqErrorEvent, CqErrorSyndrome, Eqe, EventType, PortChangeEvent, PortChangeSubtype, QpEvent, SrqEvent,
};
use paraverbs_tenant::hca::*;
use zerocopy::IntoBytes;

/// Offset of the type of an entry, and of its owner byte.
const TYPE: usize = 1;
const OWNER: usize = 0x1f;
const SRQ_COOKIE: Cookie = Cookie(0x5c);
/// Where the SRQ's ring is.
const SRQ_RING: usize = 0x2_0000;

/// Puts other events in the place of those of drained send queues.
#[derive(Debug, Default)]
struct Forger(Mutex<VecDeque<Eqe>>);

impl Fault for Forger {
    fn event(&self, eqe: &mut [u8]) {
        if eqe[TYPE] == EventType::SQ_DRAINED.0
            && let Some(forged) = self.0.lock().unwrap().pop_front()
        {
            eqe[..OWNER].copy_from_slice(&forged.as_bytes()[..OWNER]);
        }
    }
}

/// Makes the HCA tell that a send queue is drained.
fn drain(guest: &Guest) {
    let drain = QpModify { sqd_event: Some(true), ..QpModify::state(QpState::Rts, QpState::Sqd) };
    let hca = &guest.bare.hca;
    hca.modify_qp(guest.qp.id, &drain).unwrap();
    let drained = || !hca.query_qp(guest.qp.id).unwrap().draining;
    common::eventually("the end of draining", || drained().then_some(()));
    hca.modify_qp(guest.qp.id, &QpModify::state(QpState::Sqd, QpState::Rts)).unwrap();
}

fn srq(guest: &Guest) -> Created<SrqId> {
    let ring = [guest.bare.piece(SRQ_RING, PAGE)];
    let spec = SrqSpec {
        guest: guest.bare.id,
        cookie: SRQ_COOKIE,
        pd: guest.pd,
        kind: SrqKind::Basic,
        geometry: SrqGeometry { log2_wqes: 6, log2_stride: 6, max_wr: 63, max_sge: 3 },
        memory: RingMemory { ring: &ring, record: Some(guest.bare.at(RECORDS + 16)) },
    };
    guest.bare.hca.create_srq(&spec).unwrap()
}

#[test]
fn every_event_reaches_the_owner_of_its_object_and_nobody_else() {
    let rig = Rig::new(0x0002_c903_0091_0000, config());
    let lid = rig.active().lid;
    let guests = Guest::pair(&rig.hca, lid);
    let [trigger, owner] = &guests;
    let srq = srq(owner);
    let (qpn, cqn, srqn) = (owner.qp.number, owner.cq.number, srq.number);
    let of_qp = |kind| Eqe::new(kind, 0, QpEvent::new(qpn));
    let of_cq = |syndrome| Eqe::new(EventType::CQ_ERROR, 0, CqErrorEvent::new(cqn, syndrome));
    let of_srq = |kind| Eqe::new(kind, 0, SrqEvent::new(srqn));
    let cases = [
        (of_qp(EventType::COMMUNICATION_ESTABLISHED), QP_COOKIE, AsyncKind::CommunicationEstablished, 0),
        (of_qp(EventType::PATH_MIGRATED), QP_COOKIE, AsyncKind::PathMigrated, 0),
        (of_qp(EventType::PATH_MIGRATION_FAILED), QP_COOKIE, AsyncKind::PathMigrationError, 0),
        (of_qp(EventType::WQ_CATASTROPHIC), QP_COOKIE, AsyncKind::QpFatal, 0),
        (of_qp(EventType::WQ_INVALID_REQUEST), QP_COOKIE, AsyncKind::QpRequestError, 0),
        (of_qp(EventType::WQ_ACCESS_ERROR), QP_COOKIE, AsyncKind::QpAccessError, 0),
        (of_qp(EventType::SRQ_QP_LAST_WQE), QP_COOKIE, AsyncKind::LastWqeReached, 0),
        (of_cq(CqErrorSyndrome::OVERRUN), CQ_COOKIE, AsyncKind::CqError, 1),
        (of_cq(CqErrorSyndrome::ACCESS_VIOLATION), CQ_COOKIE, AsyncKind::CqError, 2),
        (of_srq(EventType::SRQ_LIMIT), SRQ_COOKIE, AsyncKind::SrqLimitReached, 0),
        (of_srq(EventType::SRQ_CATASTROPHIC), SRQ_COOKIE, AsyncKind::SrqError, 0),
    ];
    let forger = Arc::new(Forger::default());
    rig.device.hca().inject(Arc::<Forger>::clone(&forger));
    while trigger.bare.told.try_recv().is_ok() {}
    for (eqe, cookie, kind, syndrome) in cases {
        forger.0.lock().unwrap().push_back(eqe);
        drain(trigger);
        wait_for(&owner.bare.told, Told::Event(HcaEvent::Object { cookie, kind, syndrome }));
    }
    // An event of an object that no guest has reaches nobody; the next one shows that it is over.
    forger.0.lock().unwrap().push_back(Eqe::new(EventType::WQ_CATASTROPHIC, 0, QpEvent::new(qpn + 77)));
    drain(trigger);
    drain(trigger);
    let kind = AsyncKind::SendQueueDrained;
    let drained = Told::Event(HcaEvent::Object { cookie: QP_COOKIE, kind, syndrome: 0 });
    assert_eq!(trigger.bare.told.recv_timeout(common::PATIENCE), Ok(drained));
    assert!(owner.bare.told.try_recv().is_err());
    rig.hca.destroy_srq(srq.id).unwrap();
    guests.into_iter().for_each(Guest::destroy);
    rig.close();
}

#[test]
fn port_events_reach_every_guest_until_he_leaves() {
    let rig = Rig::new(0x0002_c903_0092_0000, config());
    let lid = rig.active().lid;
    let guests = Guest::pair(&rig.hca, lid);
    let gone = common::guest::Bare::new(&rig.hca, 2);
    let forger = Arc::new(Forger::default());
    rig.device.hca().inject(Arc::<Forger>::clone(&forger));
    let change = |subtype: PortChangeSubtype| {
        forger.0.lock().unwrap().push_back(Eqe::new(
            EventType::PORT_CHANGE,
            subtype.0,
            PortChangeEvent::new(1),
        ));
        drain(&guests[0]);
    };
    let told = |change| Told::Event(HcaEvent::Port { port: 1, change });
    change(PortChangeSubtype::DOWN);
    let all = [&guests[0].bare, &guests[1].bare, &gone];
    all.iter().for_each(|guest| wait_for(&guest.told, told(PortChange::Down)));
    rig.hca.detach(gone.id);
    while gone.told.try_recv().is_ok() {}
    change(PortChangeSubtype::ACTIVE);
    guests.iter().for_each(|guest| wait_for(&guest.bare.told, told(PortChange::Active)));
    assert!(gone.told.try_recv().is_err());
    gone.leave();
    guests.into_iter().for_each(Guest::destroy);
    rig.close();
}

#[test]
fn queue_that_overruns_is_told_to_its_owner() {
    let rig = Rig::new(0x0002_c903_0093_0000, config());
    let lid = rig.active().lid;
    let [mut near, far] = Guest::pair(&rig.hca, lid);
    // More completions than the ring's 128 entries, none of them taken.
    for executed in [40, 80, 120, 128] {
        for _ in 0..40 {
            near.send.post(&near.bare.memory, mlx4_wire::wqe::Opcode::NOP, &[]);
        }
        near.ring();
        let counters = rig.device.hca().counters();
        common::eventually("execution", || (counters.send_wqes.get() >= executed).then_some(()));
    }
    let wanted = HcaEvent::Object { cookie: CQ_COOKIE, kind: AsyncKind::CqError, syndrome: 1 };
    wait_for(&near.bare.told, Told::Event(wanted));
    assert!(far.bare.told.try_iter().all(|told| told != Told::Event(wanted)));
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn nothing_comes_after_an_object_s_destruction() {
    let rig = Rig::new(0x0002_c903_0094_0000, config());
    let lid = rig.active().lid;
    for _ in 0..20 {
        let [mut near, far] = Guest::pair(&rig.hca, lid);
        near.arm();
        near.post(mlx4_wire::wqe::Opcode::NOP, &[]);
        rig.hca.destroy_qp(near.qp.id).unwrap();
        rig.hca.destroy_cq(near.cq.id).unwrap();
        while near.bare.told.try_recv().is_ok() {}
        // Whatever was on its way comes before this guest's own.
        let mut far = far;
        far.arm();
        far.post(mlx4_wire::wqe::Opcode::NOP, &[]);
        wait_for(&far.bare.told, Told::Completion(CQ_COOKIE));
        assert!(near.bare.told.try_recv().is_err());
        rig.hca.destroy_mr(near.mr).unwrap();
        rig.hca.dealloc_uar(near.uar).unwrap();
        rig.hca.dealloc_pd(near.pd).unwrap();
        near.bare.leave();
        far.destroy();
    }
    rig.close();
}
