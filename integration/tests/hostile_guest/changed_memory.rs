//! Memory that goes away, in the middle of everything; memory that isn't accepted.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_rdma::Reason;
use virtio_rdma::event::{AsyncEvent, EventType};
use virtio_rdma::queue::{CONTROL, EVENT, FIRST_KICK};
use virtio_rdma::request::completion::DestroyCq;
use virtio_rdma::request::memory::DeregMr;
use virtio_rdma::request::query::QueryDevice;
use virtio_rdma::request::queue_pair::{DestroyQp, QueryQp};
use zerocopy::{FromBytes, FromZeros};

use super::Case;
use super::guest::{BASE, BYTES, Guest, USER, at, region};
use super::memory::{Memory, Seals};
use super::objects::{
    AREA, CQ_RING, DATA, DATA_BYTES, LOCAL_PROTECTION, Objects, QP_RING, RECORDS, REMOTE_ACCESS, SPARE, data,
    reg_mr, remote,
};
use super::queue::{Descriptor, WRITE};
use super::scene::Scene;
use mlx4_wire::wqe::Opcode;

pub(crate) const CASES: &[Case] = &[
    ("memory: not sealed", not_sealed),
    ("memory: truncated, then a request", |scene| truncated(scene, Touch::Request)),
    ("memory: truncated under the relay", |scene| truncated(scene, Touch::Doorbell)),
    ("memory: truncated in its own traffic", |scene| truncated(scene, Touch::Traffic)),
    ("memory: truncated, and gone", |scene| truncated(scene, Touch::Nothing)),
    ("memory: truncated and long again", truncated_and_back),
    ("memory: holes", holes),
    ("memory: a region goes that objects use", region_goes),
    ("memory: the same table again", same_table),
    ("memory: tables and files that are none", refused_tables),
    ("memory: more regions than may be", too_many_regions),
];

/// Whether the daemon refuses the memory and hangs up.
fn refuses(guest: Guest, regions: &[VhostUserMemoryRegionInfo]) -> Result<()> {
    let taken = guest.frontend.set_mem_table(regions);
    ensure!(taken.is_err(), "a table of {} regions was taken", regions.len());
    guest.expect_cut_off()
}

fn not_sealed(scene: &Scene) -> Result<()> {
    let guest = Guest::bare(&scene.path("process"), Seals::None)?;
    let region = guest.region();
    refuses(guest, &[region])?;
    // A VMM's memory needs none.
    scene.vm()?.must(&QueryDevice {}, &[])?;
    Ok(())
}

/// How truncated memory is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touch {
    Request,
    Doorbell,
    Traffic,
    Nothing,
}

fn truncated(scene: &Scene, touch: Touch) -> Result<()> {
    for bytes in [0, AREA, AREA + 4096, CQ_RING, DATA + DATA_BYTES / 4] {
        let mut guest = scene.vm()?;
        let mut mine = Objects::connected(&mut guest)?;
        mine.works(&guest)?;
        let keys = mine.mr;
        if touch == Touch::Traffic {
            for _ in 0..8 {
                let half = u32::try_from(DATA_BYTES / 2)?;
                mine.write(&guest, keys.lkey.get(), keys.rkey.get(), half)?;
            }
        }
        if touch == Touch::Doorbell {
            // The relay is in the area all the time: all slots are rung.
            guest.memory.write(AREA + 0x200, &[0xff; 512])?;
            guest.memory.write(AREA + 0x80, &[0xff; 8])?;
            guest.kick(FIRST_KICK);
        }
        ftruncate(guest.memory.file(), bytes)?;
        match touch {
            // Only what lies behind the end is missing.
            Touch::Request if bytes == 0 => {
                guest.kick(CONTROL);
                guest.expect_cut_off()?;
            }
            Touch::Doorbell if bytes <= AREA => {
                guest.kick(FIRST_KICK);
                guest.expect_cut_off()?;
            }
            Touch::Traffic if bytes <= AREA => guest.expect_cut_off()?,
            _ => {
                guest.kick(FIRST_KICK);
                guest.kick(CONTROL);
            }
        }
        drop(guest);
        scene.others_go_on()?;
    }
    Ok(())
}

fn truncated_and_back(scene: &Scene) -> Result<()> {
    let mut guest = scene.vm()?;
    let mut mine = Objects::connected(&mut guest)?;
    mine.works(&guest)?;
    ftruncate(guest.memory.file(), 0)?;
    ftruncate(guest.memory.file(), BYTES)?;
    // All is zero now: an index that jumps back, rings without requests.
    guest.kick(CONTROL);
    guest.kick(FIRST_KICK);
    let _posted = mine.write(&guest, mine.mr.lkey.get(), mine.mr.rkey.get(), 4096);
    scene.others_go_on()
}

fn holes(scene: &Scene) -> Result<()> {
    let punch = |guest: &Guest, offset, bytes| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(guest.memory.file(), flags, offset, bytes)
    };
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    // Data is zero then, and the keys are what they were.
    punch(&guest, DATA, DATA_BYTES)?;
    mine.works(&guest)?;
    for (offset, bytes) in [(AREA, 0x2000), (RECORDS, 4096), (CQ_RING, 4096), (QP_RING, 0x4000), (0, BYTES)] {
        mine.write(&guest, mine.mr.lkey.get(), mine.mr.rkey.get(), u32::try_from(DATA_BYTES / 2)?)?;
        punch(&guest, offset, bytes)?;
        guest.kick(CONTROL);
        guest.kick(FIRST_KICK);
        scene.others_go_on()?;
    }
    Ok(())
}

/// Waits for the next asynchronous event.
fn event(guest: &mut Guest) -> Result<AsyncEvent> {
    let (head, length) = guest.used(EVENT)?;
    ensure!(length == 32, "an event of {length} bytes");
    let bytes = guest.memory.read(SPARE + 32 * u64::from(head), 32)?;
    AsyncEvent::read_from_bytes(&bytes).ok().context("an event")
}

fn region_goes(scene: &Scene) -> Result<()> {
    const ELSEWHERE: u64 = BASE + (1 << 30);
    const USER_ELSEWHERE: u64 = USER + (1 << 30);
    for by_table in [false, true] {
        let mut guest = scene.guest()?;
        let more = Memory::new(BYTES, Seals::Shrink)?;
        let there = region(&more, ELSEWHERE, USER_ELSEWHERE);
        guest.frontend.add_mem_region(&there)?;
        for index in 0..8u16 {
            let buffer = Descriptor::new(at(SPARE + 32 * u64::from(index)), 32, WRITE, 0);
            guest.queues[usize::from(EVENT)].describe(&guest.memory, index, buffer)?;
            guest.offer(EVENT, index)?;
        }
        let mut mine = Objects::connected(&mut guest)?;
        mine.works(&guest)?;
        let length = 1 << 20;
        let mr = guest.must(&reg_mr(mine.pd, ELSEWHERE, length), &[(ELSEWHERE, length)])?;
        let ring = ELSEWHERE + 0x20_0000;
        let verb = super::objects::create_qp(mine.pd, mine.uar, mine.cq.cq.get(), ring + 0x4000);
        let lost = guest.must(&verb, &[(ring, 0x2000)])?;
        let verb = super::objects::create_cq(mine.uar, 64, ring + 0x5000);
        let lost_cq = guest.must(&verb, &[(ring + 0x8000, 4096)])?;
        let copy = |mine: &mut Objects, guest: &Guest, local: u64, lkey: u32, far: u64, rkey: u32| {
            mine.post(guest, 0, Opcode::RDMA_WRITE, &remote(rkey, far, data(lkey, local, 512)))?;
            mine.completion(guest)
        };
        let (own, key) = (mine.mr, mr.rkey.get());
        let done = copy(&mut mine, &guest, at(DATA), own.lkey.get(), ELSEWHERE, key)?;
        ensure!(done.is_none(), "a write there ended in {done:x?}");

        if by_table {
            guest.frontend.set_mem_table(&[guest.region()])?;
        } else {
            guest.frontend.remove_mem_region(&there)?;
        }
        let mut events = vec![event(&mut guest)?, event(&mut guest)?];
        events.sort_by_key(|event| event.event_type.0);
        let seen: Vec<_> = events.iter().map(|event| (event.event_type, event.handle)).collect();
        ensure!(
            seen == [(EventType::CQ_ERR, lost_cq.cq), (EventType::QP_FATAL, lost.qp)],
            "events: {events:?}"
        );
        guest.refused(&QueryQp { qp: lost.qp, ..QueryQp::new_zeroed() }, &[], Reason::NOT_IN_MEMORY)?;
        let again = reg_mr(mine.pd, ELSEWHERE, length);
        guest.refused(&again, &[(ELSEWHERE, length)], Reason::NOT_IN_MEMORY)?;
        // Its keys are dead, at either end; the others live.
        mine.works(&guest)?;
        let done = copy(&mut mine, &guest, at(DATA), own.lkey.get(), ELSEWHERE, key)?;
        ensure!(done == Some(REMOTE_ACCESS), "a write by a dead key ended in {done:x?}");
        guest.must(&DestroyQp { qp: lost.qp, ..DestroyQp::new_zeroed() }, &[])?;
        guest.must(&DestroyCq { cq: lost_cq.cq, ..DestroyCq::new_zeroed() }, &[])?;
        guest.must(&DeregMr { mr: mr.mr, ..DeregMr::new_zeroed() }, &[])?;
        guest.refused(&DeregMr { mr: mr.mr, ..DeregMr::new_zeroed() }, &[], Reason::BAD_HANDLE)?;
        guest.reset()?;
        // What it all needs goes: queues, area, rings. Whatever comes then, nobody else notices.
        let mut mine = Objects::connected(&mut guest)?;
        mine.write(&guest, mine.mr.lkey.get(), LOCAL_PROTECTION.into(), 4096)?;
        let first = guest.region();
        guest.frontend.remove_mem_region(&first)?;
        guest.kick(CONTROL);
        guest.kick(FIRST_KICK);
        scene.eventually("nothing of it is registered", |scene| {
            Ok(scene.stats("process")?.mapped_bytes.get() == 0)
        })?;
    }
    Ok(())
}

fn same_table(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    for _ in 0..20 {
        guest.frontend.set_mem_table(&[guest.region()])?;
        mine.works(&guest)?;
    }
    // The same file elsewhere, or another part of it, is other memory.
    let mut moved = guest.region();
    moved.memory_size = BYTES / 2;
    guest.frontend.set_mem_table(&[moved])?;
    guest.kick(CONTROL);
    let stats = scene.stats("process")?;
    ensure!(stats.mapped_bytes.get() == 0, "{} bytes stay mapped", stats.mapped_bytes);
    ensure!(stats.async_events.get() == 0, "nobody took {} events", stats.async_events);
    Ok(())
}

fn refused_tables(scene: &Scene) -> Result<()> {
    let bare = || Guest::bare(&scene.path("vm"), Seals::None);
    let file = File::create_new(scene.folder().join("regular"))?;
    file.set_len(BYTES)?;
    let read_write = File::options().read(true).write(true).open(scene.folder().join("regular"))?;
    let folder = File::open(scene.folder())?;
    let zero = File::options().read(true).write(true).open("/dev/zero")?;
    let memfd = Memory::new(BYTES, Seals::None)?;
    let read_only = File::open(format!("/proc/self/fd/{}", memfd.file().as_raw_fd()))?;
    for other in [&file, &read_write, &folder, &zero, &read_only] {
        let guest = bare()?;
        let region = VhostUserMemoryRegionInfo { mmap_handle: other.as_raw_fd(), ..guest.region() };
        refuses(guest, &[region])?;
    }
    let guest = bare()?;
    let good = guest.region();
    drop(guest);
    let cases = [
        // Longer than the file; behind its end; at no page's start; around the end of everything.
        VhostUserMemoryRegionInfo { memory_size: BYTES + 4096, ..good },
        VhostUserMemoryRegionInfo { memory_size: 1 << 46, ..good },
        VhostUserMemoryRegionInfo { mmap_offset: BYTES, ..good },
        VhostUserMemoryRegionInfo { mmap_offset: 4096, ..good },
        VhostUserMemoryRegionInfo { mmap_offset: 17, memory_size: 4096, ..good },
        VhostUserMemoryRegionInfo { memory_size: u64::MAX, ..good },
        VhostUserMemoryRegionInfo { guest_phys_addr: u64::MAX - 4096, ..good },
        VhostUserMemoryRegionInfo { guest_phys_addr: !0xfff, memory_size: 4096, ..good },
        VhostUserMemoryRegionInfo { guest_phys_addr: 1 << 40, ..good },
        VhostUserMemoryRegionInfo { guest_phys_addr: 8, ..good },
        VhostUserMemoryRegionInfo { memory_size: 4097, ..good },
        VhostUserMemoryRegionInfo { userspace_addr: u64::MAX - 4096, ..good },
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let guest = bare()?;
        let handle = guest.memory.file().as_raw_fd();
        refuses(guest, &[VhostUserMemoryRegionInfo { mmap_handle: handle, ..case }])
            .with_context(|| format!("table {number}"))?;
    }
    // Two regions, of which one lies over the other.
    for distance in [0, 4096, BYTES - 4096] {
        let guest = bare()?;
        let (one, memory) = (guest.region(), guest.memory.share()?);
        let other = region(&memory, BASE + distance, USER + (1 << 30));
        refuses(guest, &[one, other])?;
        let mut guest = scene.vm()?;
        let added = guest.frontend.add_mem_region(&region(&memory, BASE + distance, USER + (1 << 30)));
        ensure!(added.is_err(), "a region over another was added");
        guest.expect_cut_off()?;
    }
    // One that isn't there is removed.
    let mut guest = scene.vm()?;
    let other = region(&memfd, BASE + (1 << 30), USER);
    if guest.frontend.remove_mem_region(&other).is_ok() {
        bail!("a region that isn't there was removed");
    }
    Ok(())
}

fn too_many_regions(scene: &Scene) -> Result<()> {
    // Limits::regions of a guest.
    const MOST: u64 = 509;
    let guest = scene.guest()?;
    let small = Memory::new(4096, Seals::Shrink)?;
    for number in 1..=MOST {
        let distance = number << 20;
        let added = guest.frontend.clone().add_mem_region(&region(
            &small,
            BASE + (1 << 30) + distance,
            USER + (1 << 30) + distance,
        ));
        ensure!(added.is_ok() == (number < MOST), "region {number}: {added:?}");
    }
    guest.expect_cut_off()
}
