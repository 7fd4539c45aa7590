//! Addresses and lengths: outside memory, wrapping, unaligned, straddling, huge.

use anyhow::{Result, ensure};
use vhost::vhost_user::VhostUserFrontend;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::completion::ResizeCq;
use virtio_rdma::request::domain::AllocPd;
use virtio_rdma::request::queue_pair::CreateQp;
use virtio_rdma::{Reason, U32};

use super::Case;
use super::guest::{BASE, BYTES, Guest, USER, at, region};
use super::memory::{Memory, Seals};
use super::objects::{
    AREA, CQ_ENTRIES, CQ_RING, DATA, Objects, QP_RING, QP_RING_BYTES, RECORDS, SPARE, alloc_uar, create_cq,
    create_qp, reg_mr,
};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("addresses: segments of regions", segments),
    ("addresses: lists of segments", lists),
    ("addresses: rings", rings),
    ("addresses: doorbell records", records),
    ("addresses: doorbell areas", areas),
];

const DIRECT: SegmentMode = SegmentMode::DIRECT;
const INDIRECT: SegmentMode = SegmentMode::INDIRECT;
const PAGE: u64 = 4096;
const END: u64 = BASE + BYTES;

/// A guest whose memory has a second region right behind the first.
fn two_regions(scene: &Scene) -> Result<Guest> {
    let mut guest = scene.guest()?;
    let more = Memory::new(BYTES, Seals::Shrink)?;
    guest.frontend.add_mem_region(&region(&more, END, USER + BYTES))?;
    Ok(guest)
}

fn segments(scene: &Scene) -> Result<()> {
    let mut guest = two_regions(scene)?;
    let pd = guest.must(&AllocPd {}, &[])?.pd.get();
    let page = |address| [(address, PAGE)];
    let half = 1u64 << 63;
    for address in [0, BASE - PAGE, END + BYTES, 1 << 40, half, (1 << 52) - PAGE] {
        guest.refused(&reg_mr(pd, 0, PAGE), &page(address), Reason::NOT_IN_MEMORY)?;
    }
    // It ends behind memory, or in the next region.
    guest.refused(&reg_mr(pd, 0, 2 * PAGE), &[(END - PAGE, 2 * PAGE)], Reason::NOT_IN_MEMORY)?;
    guest.refused(&reg_mr(pd, 0, 2 * PAGE), &[(END + BYTES - PAGE, 2 * PAGE)], Reason::NOT_IN_MEMORY)?;
    guest.must(&reg_mr(pd, 0, 2 * PAGE), &[(END - PAGE, PAGE), (END, PAGE)])?;
    for bad in [
        (at(SPARE) + 1, PAGE),
        (at(SPARE) + 2048, PAGE),
        (at(SPARE), PAGE + 1),
        (at(SPARE), 0),
        (u64::MAX - PAGE + 1, PAGE),
        (!0xfff, 2 * PAGE),
        (at(SPARE), 0u64.wrapping_sub(PAGE)),
    ] {
        guest.refused(&reg_mr(pd, 0, PAGE), &[bad], Reason::BAD_SEGMENT)?;
    }
    let sums: [(_, _, &[_]); 7] = [
        (0, PAGE, &[]),
        (0, 0, &page(at(SPARE))),
        (0, PAGE + 1, &page(at(SPARE))),
        (1, PAGE, &page(at(SPARE))),
        (0, PAGE, &[(at(SPARE), 2 * PAGE)]),
        (0, PAGE, &[(0, half), (0, half)]),
        (0, PAGE, &[(0, half), (0, half), (at(SPARE), PAGE)]),
    ];
    for (iova, length, list) in sums {
        guest.refused(&reg_mr(pd, iova, length), list, Reason::BAD_SEGMENT_SUM)?;
    }
    for (iova, length) in [(0, half), (0, u64::MAX), (u64::MAX, 1), (half, half), (u64::MAX - 1, u64::MAX)] {
        for list in [&page(at(SPARE))[..], &[(0, half)], &[(at(SPARE), length & !0xfff)]] {
            let reason = guest.ask(&reg_mr(pd, iova, length), list, DIRECT)?.err();
            let reasons = [
                Reason::BEYOND_CAPABILITY,
                Reason::BAD_SEGMENT_SUM,
                Reason::BAD_SEGMENT,
                Reason::NOT_IN_MEMORY,
            ];
            ensure!(
                reason.is_some_and(|reason| reasons.contains(&reason)),
                "{iova:#x} {length:#x}: {reason:?}"
            );
        }
    }
    let stats = scene.stats("process")?;
    ensure!(stats.registered_bytes.get() == 2 * PAGE, "{} bytes are registered", stats.registered_bytes);
    Ok(())
}

fn lists(scene: &Scene) -> Result<()> {
    let mut guest = two_regions(scene)?;
    let pd = guest.must(&AllocPd {}, &[])?.pd.get();
    let verb = reg_mr(pd, 0, PAGE);
    let segment = |address: u64, length: u64| [address.to_le_bytes(), length.to_le_bytes()].concat();
    let mut refused = |list: &[(u64, u64)], reason| guest.refused_as(&verb, list, INDIRECT, reason);
    refused(&[], Reason::BAD_LENGTH)?;
    for bad in [(at(SPARE) + 8, 16), (at(SPARE), 0), (at(SPARE), 8), (at(SPARE), 24), (!15, 16)] {
        refused(&[bad], Reason::BAD_SEGMENT)?;
    }
    // 2^32 entries and more are claimed.
    for bytes in [16 << 32, (16 << 32) + 16, 1 << 63, !0xffff_ffff] {
        refused(&[(16, bytes)], Reason::TOO_MANY_SEGMENTS)?;
    }
    refused(&[(0, 1 << 63), (0, 1 << 63)], Reason::TOO_MANY_SEGMENTS)?;
    refused(&[(at(0), 4 << 20); 4000], Reason::TOO_MANY_SEGMENTS)?;
    for outside in [0, END + BYTES, END + BYTES - 16, END - 16, 1 << 40] {
        refused(&[(outside, 32)], Reason::NOT_IN_MEMORY)?;
    }
    for (entry, reason) in [
        (segment(0, PAGE), Reason::NOT_IN_MEMORY),
        (segment(at(SPARE) + 1, PAGE), Reason::BAD_SEGMENT),
        (segment(!0xfff, PAGE), Reason::BAD_SEGMENT),
        (segment(at(SPARE), 2 * PAGE), Reason::BAD_SEGMENT_SUM),
        (segment(END - PAGE, 2 * PAGE), Reason::BAD_SEGMENT_SUM),
    ] {
        guest.memory.write(SPARE, &entry)?;
        guest.refused_as(&verb, &[(at(SPARE), 16)], INDIRECT, reason)?;
    }
    // As many as may be, each of which is wrong in the end; and a list that is itself what is registered.
    let most = u64::from(guest.config()?.max_segments.get());
    for index in 0..most {
        guest.memory.write(SPARE + 16 * index, &segment(at(DATA), PAGE))?;
    }
    let long = reg_mr(pd, 0, most * PAGE);
    guest.refused_as(&long, &[(at(SPARE), 16 * (most + 1))], INDIRECT, Reason::TOO_MANY_SEGMENTS)?;
    let carried_out = guest.ask(&long, &[(at(SPARE), 16 * most)], INDIRECT)?;
    ensure!(!matches!(carried_out, Err(Reason::NOT_IN_MEMORY)), "{carried_out:?}");
    guest.memory.write(SPARE, &segment(at(SPARE), PAGE))?;
    let own = guest.ask(&verb, &[(at(SPARE), 16)], INDIRECT)?;
    ensure!(own.is_ok(), "{own:?}");
    Ok(())
}

fn rings(scene: &Scene) -> Result<()> {
    let mut guest = two_regions(scene)?;
    let mut mine = Objects::connected(&mut guest)?;
    let good = [(at(CQ_RING), PAGE)];
    for entries in [0, 1, 3, 127, 129, 1 << 22, 1 << 23, 1 << 31, u32::MAX] {
        let reason = guest.ask(&create_cq(mine.uar, entries, at(RECORDS) + 256), &good, DIRECT)?.err();
        let reasons = [Reason::BAD_GEOMETRY, Reason::BEYOND_CAPABILITY, Reason::BAD_SEGMENT_SUM];
        ensure!(reason.is_some_and(|reason| reasons.contains(&reason)), "{entries} entries: {reason:?}");
    }
    let places: &[(&[(u64, u64)], Reason)] = &[
        (&[], Reason::BAD_SEGMENT_SUM),
        (&[(0, PAGE)], Reason::NOT_IN_MEMORY),
        (&[(END + BYTES, PAGE)], Reason::NOT_IN_MEMORY),
        (&[(END - PAGE, 2 * PAGE)], Reason::BAD_SEGMENT_SUM),
        (&[(at(CQ_RING) + 64, PAGE)], Reason::BAD_SEGMENT),
        (&[(!0xfff, PAGE)], Reason::BAD_SEGMENT),
        (&[(at(CQ_RING), 1 << 63)], Reason::BAD_SEGMENT_SUM),
    ];
    for (place, reason) in places {
        guest.refused(&create_cq(mine.uar, CQ_ENTRIES, at(RECORDS) + 256), place, *reason)?;
        let resize = ResizeCq { cq: mine.cq.cq, entries: U32::new(CQ_ENTRIES) };
        let seen = guest.ask(&resize, place, DIRECT)?.err();
        ensure!(seen == Some(*reason) || seen == Some(Reason::NOT_OFFERED), "{place:x?}: {seen:?}");
    }
    let verb = create_qp(mine.pd, mine.uar, mine.cq.cq.get(), at(RECORDS) + 256);
    guest.refused(&verb, &[(0, QP_RING_BYTES)], Reason::NOT_IN_MEMORY)?;
    guest.refused(&verb, &[(END - PAGE, QP_RING_BYTES)], Reason::NOT_IN_MEMORY)?;
    guest.refused(&verb, &[(at(QP_RING), PAGE)], Reason::BAD_SEGMENT_SUM)?;
    let mut random = fastrand::Rng::with_seed(scene.seed);
    for _ in 0..200 {
        // Any numbers: none makes a ring of two pages that is larger than that.
        let any = |random: &mut fastrand::Rng| if random.bool() { random.u8(..) } else { random.u8(4..8) };
        let verb = CreateQp {
            log2_send_wqes: any(&mut random),
            log2_send_stride: any(&mut random),
            log2_recv_wqes: any(&mut random),
            log2_recv_stride: any(&mut random),
            ..verb
        };
        if guest.ask(&verb, &[(at(QP_RING + QP_RING_BYTES * 4), QP_RING_BYTES)], DIRECT)?.is_ok() {
            let size = |wqes: u8, stride: u8| if stride == 0 { 0 } else { 1u64 << (wqes + stride) };
            let bytes = size(verb.log2_send_wqes, verb.log2_send_stride)
                + size(verb.log2_recv_wqes, verb.log2_recv_stride);
            ensure!(bytes.next_multiple_of(PAGE) == QP_RING_BYTES, "{verb:?} in {QP_RING_BYTES} bytes");
        }
    }
    mine.works(&guest)
}

fn records(scene: &Scene) -> Result<()> {
    let mut guest = two_regions(scene)?;
    let mut mine = Objects::connected(&mut guest)?;
    let places = [
        (0, Reason::NOT_IN_MEMORY),
        (BASE - 8, Reason::NOT_IN_MEMORY),
        (END + BYTES, Reason::NOT_IN_MEMORY),
        (!7, Reason::NOT_IN_MEMORY),
        (at(RECORDS) + 257, Reason::MISALIGNED),
        (at(RECORDS) + 258, Reason::MISALIGNED),
        (u64::MAX, Reason::MISALIGNED),
        (END - 2, Reason::MISALIGNED),
    ];
    for (place, reason) in places {
        guest.refused(&create_cq(mine.uar, CQ_ENTRIES, place), &[(at(CQ_RING), PAGE)], reason)?;
        let verb = create_qp(mine.pd, mine.uar, mine.cq.cq.get(), place);
        guest.refused(&verb, &[(at(QP_RING + 4 * QP_RING_BYTES), QP_RING_BYTES)], reason)?;
    }
    let half = at(RECORDS) + 260;
    guest.refused(&create_cq(mine.uar, CQ_ENTRIES, half), &[(at(CQ_RING), PAGE)], Reason::MISALIGNED)?;
    mine.works(&guest)
}

fn areas(scene: &Scene) -> Result<()> {
    let mut guest = two_regions(scene)?;
    let mut mine = Objects::connected(&mut guest)?;
    let cases = [
        (at(SPARE), 0, Reason::BEYOND_CAPABILITY),
        (at(SPARE), 4097, Reason::BEYOND_CAPABILITY),
        (at(SPARE), u32::MAX, Reason::BEYOND_CAPABILITY),
        (at(SPARE), 1 << 29, Reason::BEYOND_CAPABILITY),
        (at(SPARE) + 8, 64, Reason::MISALIGNED),
        (u64::MAX, 64, Reason::MISALIGNED),
        (0, 64, Reason::NOT_IN_MEMORY),
        (END - PAGE, 64, Reason::NOT_IN_MEMORY),
        (END + BYTES - PAGE, 1, Reason::NOT_IN_MEMORY),
        (END + BYTES, 64, Reason::NOT_IN_MEMORY),
        (!0xfff, 64, Reason::NOT_IN_MEMORY),
        (1 << 63, 4096, Reason::NOT_IN_MEMORY),
    ];
    for (area, slots, reason) in cases {
        guest.refused(&alloc_uar(area, slots), &[], reason)?;
    }
    // The same area a second time, and over the rings of a queue: it harms itself only.
    guest.memory.zero(AREA, 4096)?;
    guest.must(&alloc_uar(at(AREA), 64), &[])?;
    guest.must(&alloc_uar(at(AREA), 4096), &[])?;
    guest.must(&alloc_uar(at(CQ_RING) + 0x1000, 4096), &[])?;
    mine.works(&guest)
}
