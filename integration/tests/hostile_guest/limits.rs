//! What a guest may have: one more of everything.

use anyhow::{Context as _, Result, ensure};
use virtio_rdma::request::completion::DestroyCq;
use virtio_rdma::request::datagram::{AttachMcast, DetachMcast};
use virtio_rdma::request::domain::{AllocPd, DeallocPd};
use virtio_rdma::request::management::RegisterServiceId;
use virtio_rdma::request::memory::{AllocMw, DeregMr, MwType};
use virtio_rdma::request::query::QueryDevice;
use virtio_rdma::request::queue_pair::{CreateQp, QpType};
use virtio_rdma::{Reason, Status, U16, U32, U64, Verb};
use zerocopy::FromZeros;

use super::Case;
use super::guest::{Guest, at};
use super::memory::Seals;
use super::objects::{
    AREA, CQ_RING, DATA, Objects, Pair, QP_RING, QP_RING_BYTES, RECORDS, SPARE, alloc_uar, create_cq,
    create_qp, create_srq, reg_mr,
};
use super::scene::Scene;

pub(crate) const CASES: &[Case] =
    &[("limits: of a guest that may have two of each", few_objects), ("limits: of multicast groups", groups)];

/// Makes two of what there may be two of, and tries a third.
fn two_of_each<V: Verb>(guest: &mut Guest, verb: &V, segments: &[(u64, u64)]) -> Result<()> {
    guest.must(verb, segments)?;
    guest.must(verb, segments)?;
    guest.refused(verb, segments, Reason::OBJECT_LIMIT)
}

fn few_objects(scene: &Scene) -> Result<()> {
    let mut guest = Guest::connect(&scene.path("small"), Seals::None)?;
    let uar = guest.must(&alloc_uar(at(AREA), 3), &[])?.uar.get();
    guest.must(&alloc_uar(at(SPARE), 64), &[])?;
    guest.refused(&alloc_uar(at(SPARE) + 0x10000, 64), &[], Reason::OBJECT_LIMIT)?;
    let pd = guest.must(&AllocPd {}, &[])?.pd;
    let second = guest.must(&AllocPd {}, &[])?.pd;
    guest.refused(&AllocPd {}, &[], Reason::OBJECT_LIMIT)?;
    guest.must(&DeallocPd { pd: second, ..DeallocPd::new_zeroed() }, &[])?;
    guest.must(&AllocPd {}, &[])?;

    let (pd, page) = (pd.get(), [(at(DATA), 4096)]);
    let mr = guest.must(&reg_mr(pd, 0, 4096), &page)?.mr;
    guest.must(&reg_mr(pd, 0, 4096), &page)?;
    guest.refused(&reg_mr(pd, 0, 4096), &page, Reason::OBJECT_LIMIT)?;
    guest.must(&DeregMr { mr, ..DeregMr::new_zeroed() }, &[])?;
    let most = guest.config()?.max_registered_bytes.get();
    let too_much = [(at(0), most)];
    guest.refused(&reg_mr(pd, 0, most), &too_much, Reason::BYTE_LIMIT)?;
    guest.must(&reg_mr(pd, 0, most - 4096), &[(at(0), most - 4096)])?;
    guest.refused(&create_cq(uar, 64, at(RECORDS)), &[(at(CQ_RING), 4096)], Reason::BYTE_LIMIT)?;
    drop(guest);

    let mut guest = Guest::connect(&scene.path("small"), Seals::None)?;
    let uar = guest.must(&alloc_uar(at(AREA), 3), &[])?.uar.get();
    let pd = guest.must(&AllocPd {}, &[])?.pd.get();
    let ring = [(at(CQ_RING), 4096)];
    let cq = guest.must(&create_cq(uar, 64, at(RECORDS)), &ring)?;
    let other = guest.must(&create_cq(uar, 64, at(RECORDS) + 8), &ring)?;
    guest.refused(&create_cq(uar, 64, at(RECORDS) + 16), &ring, Reason::OBJECT_LIMIT)?;
    Pair::new(&mut guest, pd, uar, cq.cq.get(), 0)?;
    // Three objects have the area's three slots.
    let rings = [(at(QP_RING) + QP_RING_BYTES, QP_RING_BYTES)];
    let verb = create_qp(pd, uar, cq.cq.get(), at(RECORDS) + 128);
    guest.refused(&verb, &rings, Reason::SLOT_LIMIT)?;
    guest.must(&DestroyCq { cq: other.cq, ..DestroyCq::new_zeroed() }, &[])?;
    guest.must(&verb, &rings)?;
    guest.refused(&verb, &rings, Reason::OBJECT_LIMIT)?;
    let all =
        RegisterServiceId { service_id: U64::ZERO, mask: U64::new(!0xff), ..RegisterServiceId::new_zeroed() };
    guest.must(&all, &[])?;
    let more = RegisterServiceId { service_id: U64::new(0x100), ..all };
    guest.refused(&more, &[], Reason::OBJECT_LIMIT)?;
    two_of_each(
        &mut guest,
        &AllocMw { pd: U32::new(pd), mw_type: MwType::TYPE_2, ..AllocMw::new_zeroed() },
        &[],
    )?;
    two_of_each(&mut guest, &create_srq(pd, at(RECORDS) + 192), &[(at(SPARE), 4096)])?;
    for reason in [Reason::OBJECT_LIMIT, Reason::BYTE_LIMIT, Reason::SLOT_LIMIT] {
        ensure!(reason.status() == Status::NO_MEMORY && reason.status().errno() == 12, "{reason}");
    }
    Ok(())
}

/// A queue pair of datagrams, whose queues nobody uses.
fn datagrams(guest: &mut Guest, mine: &Objects) -> Result<U32> {
    let record = at(RECORDS) + 0x100;
    let connected = create_qp(mine.pd, mine.uar, mine.cq.cq.get(), record);
    let verb = CreateQp { qp_type: QpType::UD, log2_send_stride: 7, ..connected };
    Ok(guest.must(&verb, &[(at(SPARE), 3 * 4096)])?.qp)
}

/// A request to be in the `n`th group.
fn attach(qp: U32, n: u16) -> AttachMcast {
    let mut mgid = [0; 16];
    (mgid[0], mgid[1]) = (0xff, 0x12);
    mgid[14..].copy_from_slice(&n.to_be_bytes());
    AttachMcast { qp, mlid: U16::new(0xc000 + n), mgid, ..AttachMcast::new_zeroed() }
}

/// A guest has its share of the places of a group and no more, so that another one finds some; and so many attachments.
fn groups(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mine = Objects::new(&mut guest)?;
    let device = guest.must(&QueryDevice {}, &[])?;
    let (share, most) = (device.max_mcast_qp_attach.get(), device.max_total_mcast_qp_attach.get());
    ensure!(share > 1 && most > share, "{share} of a group, {most} of all");
    let mut members = Vec::new();
    for _ in 0..share {
        let qp = datagrams(&mut guest, &mine)?;
        guest.must(&attach(qp, 0), &[])?;
        members.push(qp);
    }
    let beyond = datagrams(&mut guest, &mine)?;
    guest.refused(&attach(beyond, 0), &[], Reason::OBJECT_LIMIT).context("a group's share")?;
    // Who is in it already asks for nothing more.
    guest.must(&attach(members[0], 0), &[])?;
    let mut other = scene.vm()?;
    let theirs = Objects::new(&mut other)?;
    let qp = datagrams(&mut other, &theirs)?;
    other.must(&attach(qp, 0), &[]).context("another guest's share")?;

    let groups = u16::try_from(most - share)?;
    for n in 1..=groups {
        guest.must(&attach(beyond, n), &[])?;
    }
    guest.refused(&attach(beyond, groups + 1), &[], Reason::OBJECT_LIMIT).context("all attachments")?;
    let AttachMcast { mlid, mgid, .. } = attach(beyond, 1);
    guest.must(&DetachMcast { qp: beyond, mlid, mgid, ..DetachMcast::new_zeroed() }, &[])?;
    guest.must(&attach(beyond, groups + 1), &[])?;
    guest.refused(&attach(beyond, 1), &[], Reason::OBJECT_LIMIT)
}
