//! Extended reliable connections of guests.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::guest::{Guest, PAGE, RECORDS, transitions};
use common::rings::SendRing;
use common::{Rig, config};
use mlx4_wire::wqe::Opcode;
use paraverbs_tenant::hca::*;

/// Where a guest has the rings of an extended connection, and the record of its shared receive queue.
const SRQ_RING: usize = 0x4_0000;
const SEND_RING: usize = 0x5_0000;
const SRQ_RECORD: usize = RECORDS + 16;
/// Slots of either ring, and bytes of a slot of the send queue.
const SLOTS: usize = 64;
const STRIDE: usize = 64;

fn srq(guest: &Guest, xrcd: XrcdId) -> Result<Created<SrqId>, HcaError> {
    let ring = [guest.bare.piece(SRQ_RING, PAGE)];
    guest.bare.hca.create_srq(&SrqSpec {
        guest: guest.bare.id,
        cookie: Cookie(0x54),
        pd: guest.pd,
        kind: SrqKind::Xrc { xrcd, cq: guest.cq.id },
        geometry: SrqGeometry { log2_wqes: 6, log2_stride: 6, max_wr: 63, max_sge: 3 },
        memory: RingMemory { ring: &ring, record: Some(guest.bare.at(SRQ_RECORD)) },
    })
}

/// Posts one request to the shared receive queue: the first slot.
fn post_receive(guest: &Guest) {
    let memory = &guest.bare.memory;
    memory.store_be32(SRQ_RING, 1).unwrap();
    memory.write(SRQ_RING + 16, &guest.data(0x100, 256)).unwrap();
    memory.store_be32(SRQ_RECORD, 1).unwrap();
}

fn target(guest: &Guest, xrcd: XrcdId) -> QpSpec<'static> {
    let geometry = QpGeometry { kind: QpKind::XrcRecv, send: None, receive: None, max_inline: 0 };
    QpSpec { xrcd: Some(xrcd), ..guest.bare.nothing(geometry) }
}

fn initiator(guest: &Guest) -> Created<QpId> {
    let send = QueueGeometry { log2_wqes: 6, log2_stride: 6, max_wr: 31, max_sge: 2 };
    let geometry = QpGeometry { kind: QpKind::XrcSend, send: Some(send), receive: None, max_inline: 0 };
    let ring = [guest.bare.piece(SEND_RING, PAGE)];
    let spec = QpSpec {
        pd: Some(guest.pd),
        uar: Some(guest.uar),
        send_cq: Some(guest.cq.id),
        memory: RingMemory { ring: &ring, record: None },
        ..guest.bare.nothing(geometry)
    };
    guest.bare.hca.create_qp(&spec).unwrap()
}

/// Takes one end to RTS.
fn connect(guest: &Guest, qp: QpId, kind: QpKind, (lid, qpn): (u16, u32)) {
    let [init, rtr, rts] = transitions(lid, qpn);
    let sends = kind == QpKind::XrcSend;
    let rtr = if sends { QpModify { max_dest_rd_atomic: None, min_rnr_timer: None, ..rtr } } else { rtr };
    let rts =
        if sends { rts } else { QpModify { retry_count: None, rnr_retry: None, max_rd_atomic: None, ..rts } };
    [init, rtr, rts].iter().for_each(|modify| guest.bare.hca.modify_qp(qp, modify).unwrap());
}

#[test]
fn message_reaches_the_queue_that_it_names_in_the_domain_of_its_connection() {
    let rig = Rig::new(0x0002_c903_00d8_0000, config());
    let lid = rig.active().lid;
    let hca = &rig.hca;
    let [mut near, mut far] = [Guest::new(hca, 0), Guest::new(hca, 1)];
    let xrcd = hca.alloc_xrcd(far.bare.id).unwrap();
    let queue = srq(&far, xrcd.id).unwrap();
    let target = hca.create_qp(&target(&far, xrcd.id)).unwrap();
    let mut ring = SendRing::new(&near.bare.memory, SEND_RING, SLOTS, STRIDE);
    let sender = initiator(&near);
    connect(&near, sender.id, QpKind::XrcSend, (lid, target.number));
    connect(&far, target.id, QpKind::XrcRecv, (lid, sender.number));
    let told = hca.query_qp(target.id).unwrap();
    assert_eq!((told.state, told.dest_qpn, told.max_dest_rd_atomic), (QpState::Rts, sender.number, 4));
    assert_eq!((told.retry_count, told.max_rd_atomic), (0, 0));
    post_receive(&far);
    near.write(0, b"extended");
    ring.post_to(&near.bare.memory, Opcode::SEND, &near.data(0, 8), queue.number);
    let uar = near.uar;
    let bell = |qp| Doorbell { uar, target: Target::Send(qp) };
    hca.ring(bell(sender.id), u64::MAX);
    let sent = near.completion();
    assert_eq!((sent.is_send, sent.syndrome, sent.qpn), (true, None, sender.number));
    let came = far.completion();
    assert_eq!((came.is_send, came.syndrome, came.bytes), (false, None, 8));
    assert_eq!(came.qpn, target.number);
    assert_eq!(far.read(0x100, 8), b"extended");
    // Nothing of a target is rung.
    hca.ring(bell(target.id), u64::MAX);

    assert_eq!(hca.dealloc_xrcd(xrcd.id), Err(HcaError::Busy));
    assert_eq!(hca.destroy_cq(far.cq.id), Err(HcaError::Busy));
    hca.destroy_qp(target.id).unwrap();
    hca.destroy_qp(sender.id).unwrap();
    assert_eq!(hca.dealloc_xrcd(xrcd.id), Err(HcaError::Busy));
    hca.destroy_srq(queue.id).unwrap();
    hca.dealloc_xrcd(xrcd.id).unwrap();
    assert_eq!(hca.dealloc_xrcd(xrcd.id), Err(HcaError::Refused));
    near.destroy();
    far.destroy();
    rig.close();
}

#[test]
fn queue_of_another_guest_s_domain_is_refused() {
    let rig = Rig::new(0x0002_c903_00d9_0000, config());
    let lid = rig.active().lid;
    let hca = &rig.hca;
    let [mut near, victim] = [Guest::new(hca, 0), Guest::new(hca, 1)];
    let domains = [hca.alloc_xrcd(near.bare.id).unwrap(), hca.alloc_xrcd(victim.bare.id).unwrap()];
    let queue = srq(&victim, domains[1].id).unwrap();
    post_receive(&victim);
    // Both ends are the first guest's; he names the queue of the other.
    let target = hca.create_qp(&target(&near, domains[0].id)).unwrap();
    let mut ring = SendRing::new(&near.bare.memory, SEND_RING, SLOTS, STRIDE);
    let sender = initiator(&near);
    connect(&near, sender.id, QpKind::XrcSend, (lid, target.number));
    connect(&near, target.id, QpKind::XrcRecv, (lid, sender.number));
    ring.post_to(&near.bare.memory, Opcode::SEND, &near.data(0, 8), queue.number);
    hca.ring(Doorbell { uar: near.uar, target: Target::Send(sender.id) }, 0);
    const REMOTE_INVALID_REQUEST: u8 = 0x12;
    assert_eq!(near.completion().syndrome, Some(REMOTE_INVALID_REQUEST));
    assert_eq!(victim.read(0x100, 8), [0; 8]);
    for qp in [target.id, sender.id] {
        hca.destroy_qp(qp).unwrap();
    }
    hca.destroy_srq(queue.id).unwrap();
    domains.iter().for_each(|xrcd| hca.dealloc_xrcd(xrcd.id).unwrap());
    near.destroy();
    victim.destroy();
    rig.close();
}

#[test]
fn ends_have_only_what_belongs_to_them() {
    let rig = Rig::new(0x0002_c903_00da_0000, config());
    let hca = &rig.hca;
    let guest = Guest::new(hca, 0);
    let xrcd = hca.alloc_xrcd(guest.bare.id).unwrap().id;
    let good = target(&guest, xrcd);
    for wrong in [
        QpSpec { xrcd: None, ..good },
        QpSpec { xrcd: Some(XrcdId(xrcd.0 + 1)), ..good },
        QpSpec { pd: Some(guest.pd), ..good },
        QpSpec { uar: Some(guest.uar), ..good },
        QpSpec { send_cq: Some(guest.cq.id), ..good },
        QpSpec { recv_cq: Some(guest.cq.id), ..good },
        QpSpec { guest: GuestId(0), ..good },
    ] {
        assert_eq!(hca.create_qp(&wrong), Err(HcaError::Refused), "{wrong:?}");
    }
    assert_eq!(hca.alloc_xrcd(GuestId(0)), Err(HcaError::Refused));
    assert_eq!(srq(&guest, XrcdId(xrcd.0 + 1)), Err(HcaError::Refused));
    hca.dealloc_xrcd(xrcd).unwrap();
    guest.destroy();
    rig.close();
}
