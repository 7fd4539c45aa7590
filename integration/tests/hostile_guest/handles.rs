//! What belongs to others: handles, keys, numbers, slots.

use anyhow::{Result, ensure};
use mlx4_wire::wqe::Opcode;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::completion::{DestroyCq, ModifyCq, ResizeCq};
use virtio_rdma::request::datagram::CreateAh;
use virtio_rdma::request::domain::{DeallocPd, DeallocUar};
use virtio_rdma::request::memory::{DeregMr, ReregMr};
use virtio_rdma::request::queue_pair::{DestroyQp, QueryQp};
use virtio_rdma::{Reason, U32, Verb};
use zerocopy::FromZeros;

use super::Case;
use super::guest::{BYTES, Guest, at};
use super::objects::{
    CQ_RING, DATA, LOCAL_PROTECTION, Objects, QP_RING, QP_RING_BYTES, RECORDS, REMOTE_ACCESS, SLOTS,
    create_cq, create_qp, data, lid, reg_mr, remote, ring, transitions,
};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("handles: of another guest", handles_of_another),
    ("handles: of another kind, gone, or none", handles_that_are_none),
    ("keys: of another guest", keys_of_another),
    ("keys: queue pairs of another guest", queue_pairs_of_another),
    ("slots: of nothing", slots_of_nothing),
];

/// Asks for what not every device offers, with a handle that names nothing.
fn unknown<V: Verb>(guest: &mut Guest, verb: &V, segments: &[(u64, u64)]) -> Result<()> {
    let reason = guest.ask(verb, segments, SegmentMode::DIRECT)?.err();
    let expected = [Some(Reason::BAD_HANDLE), Some(Reason::NOT_OFFERED)];
    ensure!(expected.contains(&reason), "{}: {reason:?}", V::NAME);
    Ok(())
}

/// Names these handles in every request that takes one; all must be refused.
fn refused(guest: &mut Guest, theirs: &Objects) -> Result<()> {
    let ring = [(at(CQ_RING), 4096)];
    let bad = Reason::BAD_HANDLE;
    let (pd, uar) = (U32::new(theirs.pd), U32::new(theirs.uar));
    let (cq, qp, mr) = (theirs.cq.cq, theirs.pairs[0].created.qp, theirs.mr.mr);
    guest.refused(&DeallocPd { pd, ..DeallocPd::new_zeroed() }, &[], bad)?;
    guest.refused(&DeallocUar { uar, ..DeallocUar::new_zeroed() }, &[], bad)?;
    guest.refused(&DestroyCq { cq, ..DestroyCq::new_zeroed() }, &[], bad)?;
    unknown(guest, &ModifyCq { cq, ..ModifyCq::new_zeroed() }, &[])?;
    unknown(guest, &ResizeCq { cq, entries: U32::new(128) }, &ring)?;
    guest.refused(&DeregMr { mr, ..DeregMr::new_zeroed() }, &[], bad)?;
    unknown(guest, &ReregMr { mr, ..ReregMr::new_zeroed() }, &[])?;
    guest.refused(&QueryQp { qp, ..QueryQp::new_zeroed() }, &[], bad)?;
    guest.refused(&DestroyQp { qp, ..DestroyQp::new_zeroed() }, &[], bad)?;
    for step in transitions(qp.get(), 1, 1) {
        guest.refused(&step, &[], bad)?;
    }
    guest.refused(&reg_mr(theirs.pd, at(DATA), 4096), &[(at(DATA), 4096)], bad)?;
    guest.refused(&create_cq(theirs.uar, 128, at(RECORDS)), &ring, bad)?;
    unknown(guest, &CreateAh { pd, ..CreateAh::new_zeroed() }, &[])
}

fn handles_of_another(scene: &Scene) -> Result<()> {
    let mut other = scene.vm()?;
    let mut theirs = Objects::connected(&mut other)?;
    let mut guest = scene.guest()?;
    // With nothing of its own every handle is another's.
    refused(&mut guest, &theirs)?;
    // With one object of each kind the HCA's numbers in place of handles are another's.
    let mine = Objects::connected(&mut guest)?;
    ensure!(theirs.pdn != mine.pdn, "two guests have one PD");
    guest.refused(&reg_mr(theirs.pdn, at(DATA), 4096), &[(at(DATA), 4096)], Reason::BAD_HANDLE)?;
    let qpn = theirs.pairs[0].created.qpn;
    guest.refused(&QueryQp { qp: qpn, ..QueryQp::new_zeroed() }, &[], Reason::BAD_HANDLE)?;
    // Any of the others in a queue pair.
    let rings = [(at(QP_RING + 2 * QP_RING_BYTES), QP_RING_BYTES)];
    let (none, record) = (0x00ff_ffff, at(RECORDS + 128));
    for verb in [
        create_qp(none, mine.uar, mine.cq.cq.get(), record),
        create_qp(mine.pd, none, mine.cq.cq.get(), record),
        create_qp(mine.pd, mine.uar, none, record),
    ] {
        guest.refused(&verb, &rings, Reason::BAD_HANDLE)?;
    }
    theirs.works(&other)
}

fn handles_that_are_none(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let mut random = fastrand::Rng::with_seed(scene.seed);
    for _ in 0..50 {
        let handle = match random.u8(0..4) {
            0 => 0,
            1 => u32::MAX,
            2 => random.u32(..) | 1 << 31,
            // The same place, used another time.
            _ => mine.cq.cq.get() ^ 1 << random.u32(24..32),
        };
        let handle = U32::new(handle);
        let verb = QueryQp { qp: handle, ..QueryQp::new_zeroed() };
        guest.refused(&verb, &[], Reason::BAD_HANDLE)?;
        let verb = DestroyCq { cq: handle, ..DestroyCq::new_zeroed() };
        guest.refused(&verb, &[], Reason::BAD_HANDLE)?;
    }
    // Objects in use stay.
    for reason in [
        guest
            .ask(&DeallocPd { pd: U32::new(mine.pd), ..DeallocPd::new_zeroed() }, &[], SegmentMode::DIRECT)?
            .err(),
        guest.ask(&DestroyCq { cq: mine.cq.cq, ..DestroyCq::new_zeroed() }, &[], SegmentMode::DIRECT)?.err(),
        guest
            .ask(
                &DeallocUar { uar: U32::new(mine.uar), ..DeallocUar::new_zeroed() },
                &[],
                SegmentMode::DIRECT,
            )?
            .err(),
    ] {
        ensure!(reason == Some(Reason::IN_USE), "{reason:?}");
    }
    mine.works(&guest)?;
    // All of them gone, and made anew: the old handles stay bad.
    let old = mine;
    for pair in &mine.pairs {
        guest.must(&DestroyQp { qp: pair.created.qp, ..DestroyQp::new_zeroed() }, &[])?;
    }
    guest.must(&DestroyCq { cq: mine.cq.cq, ..DestroyCq::new_zeroed() }, &[])?;
    guest.must(&DeregMr { mr: mine.mr.mr, ..DeregMr::new_zeroed() }, &[])?;
    guest.must(&DeallocUar { uar: U32::new(mine.uar), ..DeallocUar::new_zeroed() }, &[])?;
    guest.must(&DeallocPd { pd: U32::new(mine.pd), ..DeallocPd::new_zeroed() }, &[])?;
    let mut anew = Objects::connected(&mut guest)?;
    refused(&mut guest, &old)?;
    anew.works(&guest)
}

fn keys_of_another(scene: &Scene) -> Result<()> {
    let foreign = scene.foreign;
    let mut guest = scene.guest()?;
    // A foreign key for the source: its memory is not read.
    let cases: [(u32, u32, u64, Option<u8>); 6] = [
        (foreign.rkey, 0, foreign.address, Some(LOCAL_PROTECTION)),
        (foreign.rkey, 0, at(DATA), Some(LOCAL_PROTECTION)),
        (0, foreign.rkey, foreign.address, Some(REMOTE_ACCESS)),
        (0, foreign.rkey, at(DATA), Some(REMOTE_ACCESS)),
        (0, 0, at(BYTES), Some(REMOTE_ACCESS)),
        (0, 0, at(DATA), None),
    ];
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
        for (lkey, rkey, address, expected) in cases {
            let mut mine = Objects::connected(&mut guest)?;
            let own = |key, mine: u32| if key == 0 { mine } else { key };
            let (lkey, rkey) = (own(lkey, mine.mr.lkey.get()), own(rkey, mine.mr.rkey.get()));
            let local = expected == Some(LOCAL_PROTECTION);
            let (near, far) = if local { (address, at(DATA)) } else { (at(DATA), address) };
            mine.post(&guest, 0, opcode, &remote(rkey, far, data(lkey, near, 256)))?;
            let seen = mine.completion(&guest)?;
            ensure!(seen == expected, "{opcode:?} {lkey:#x} {rkey:#x} {address:#x}: {seen:x?}");
            guest.reset()?;
        }
    }
    Ok(())
}

fn queue_pairs_of_another(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let lid = lid(&mut guest)?;
    // Of a queue pair that has another one it can't be the other end.
    let mine = Objects::new(&mut guest)?;
    let [init, rtr, _] = transitions(mine.pairs[0].created.qp.get(), lid, scene.foreign.qpn);
    guest.must(&init, &[])?;
    guest.refused(&rtr, &[], Reason::TAKEN)?;
    scene.others_go_on()?;
    guest.reset()?;
    // It takes itself for the other end of one that isn't there, or no guest's.
    for dest in [0, 1, 0xff_ffff] {
        let mut mine = Objects::new(&mut guest)?;
        mine.pairs[0].connect(&mut guest, lid, dest)?;
        for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
            let local = data(mine.mr.lkey.get(), at(DATA), 256);
            let body = remote(scene.foreign.rkey, scene.foreign.address, local);
            mine.post(&guest, 0, opcode, &body)?;
        }
        let seen = mine.completion(&guest)?;
        ensure!(seen.is_some(), "a write to queue pair {dest:#x} succeeded");
        scene.others_go_on()?;
        guest.reset()?;
    }
    Ok(())
}

fn slots_of_nothing(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let bad = |scene: &Scene| Ok::<_, anyhow::Error>(scene.stats("process")?.bad_doorbells.get());
    let mut random = fastrand::Rng::with_seed(scene.seed);
    let own = [mine.pairs[0].slot, mine.pairs[1].slot];
    let arm = virtio_rdma::doorbell::slot_at(mine.cq.arm.offset.get());
    for slot in (0..SLOTS).filter(|slot| !own.contains(slot) && Some(*slot) != arm) {
        let before = bad(scene)?;
        ring(&guest, slot, random.u64(..))?;
        scene.eventually("a bad doorbell is counted", |scene| Ok(bad(scene)? > before))?;
    }
    // The value in a slot means nothing, whoever's number it is.
    for _ in 0..100 {
        ring(&guest, own[0], random.u64(..))?;
        ring(&guest, arm.unwrap_or(0), random.u64(..))?;
    }
    ring(&guest, own[0], u64::from(scene.foreign.qpn) << 8)?;
    mine.works(&guest)?;
    Ok(())
}
