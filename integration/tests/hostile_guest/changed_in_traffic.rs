//! Memory that changes in the middle of traffic: the guest's own, and that of a peer who did nothing wrong.

use anyhow::{Result, ensure};
use mlx4_wire::wqe::Opcode;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_rdma::Reason;
use virtio_rdma::request::query::QueryDevice;

use super::Case;
use super::guest::{BASE, BYTES, Guest, USER, at, region};
use super::memory::{Memory, Seals};
use super::objects::{DATA, DATA_BYTES, Objects, data, lid, reg_mr, remote};
use super::scene::Scene;

pub(crate) const CASES: &[Case] = &[
    ("in traffic: the same table, again and again", same_table),
    ("in traffic: regions that come and go", other_regions),
    ("in traffic: the region that it is in goes", region_goes),
    ("in traffic: holes", holes),
    ("in traffic: a peer whose memory is truncated", |scene| peer(scene, Harm::Truncated)),
    ("in traffic: a peer whose memory has holes", |scene| peer(scene, Harm::Punched)),
    ("in traffic: a peer whose memory is taken away", |scene| peer(scene, Harm::Removed)),
    ("in traffic: a peer that goes", |scene| peer(scene, Harm::Gone)),
];

/// Requests that are under way at once.
const DEPTH: usize = 16;
/// Memory of its own, elsewhere.
const ELSEWHERE: u64 = BASE + (1 << 30);
const USER_ELSEWHERE: u64 = USER + (1 << 30);

/// Half of the registered memory.
fn half() -> Result<u32> {
    Ok(u32::try_from(DATA_BYTES / 2)?)
}

/// Posts as many large writes to itself as the queue has room for.
fn keep_busy(guest: &Guest, mine: &mut Objects) -> Result<()> {
    for _ in 0..DEPTH {
        mine.write(guest, mine.mr.lkey.get(), mine.mr.rkey.get(), half()?)?;
    }
    Ok(())
}

/// All of these writes succeed.
fn all_succeed(guest: &Guest, mine: &mut Objects) -> Result<()> {
    for number in 0..DEPTH {
        let done = mine.completion(guest)?;
        ensure!(done.is_none(), "write {number} ended in {done:x?}");
    }
    Ok(())
}

fn same_table(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    for _ in 0..5 {
        keep_busy(&guest, &mut mine)?;
        for _ in 0..4 {
            guest.frontend.set_mem_table(&[guest.region()])?;
        }
        all_succeed(&guest, &mut mine)?;
    }
    scene.others_go_on()
}

fn other_regions(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let more = Memory::new(BYTES, Seals::Shrink)?;
    let there = region(&more, ELSEWHERE, USER_ELSEWHERE);
    for round in 0..6 {
        keep_busy(&guest, &mut mine)?;
        guest.frontend.add_mem_region(&there)?;
        if round % 2 == 0 {
            guest.must(&reg_mr(mine.pd, ELSEWHERE, 1 << 20), &[(ELSEWHERE, 1 << 20)])?;
        }
        guest.frontend.remove_mem_region(&there)?;
        all_succeed(&guest, &mut mine)?;
    }
    guest.refused(&reg_mr(mine.pd, ELSEWHERE, 4096), &[(ELSEWHERE, 4096)], Reason::NOT_IN_MEMORY)?;
    scene.others_go_on()
}

fn region_goes(scene: &Scene) -> Result<()> {
    for opcode in [Opcode::RDMA_WRITE, Opcode::RDMA_READ] {
        let mut guest = scene.guest()?;
        let mut mine = Objects::connected(&mut guest)?;
        let more = Memory::new(BYTES, Seals::Shrink)?;
        let there = region(&more, ELSEWHERE, USER_ELSEWHERE);
        guest.frontend.add_mem_region(&there)?;
        let far = guest.must(&reg_mr(mine.pd, ELSEWHERE, BYTES / 2), &[(ELSEWHERE, BYTES / 2)])?;
        for _ in 0..DEPTH {
            let local = data(mine.mr.lkey.get(), at(DATA), half()?);
            mine.post(&guest, 0, opcode, &remote(far.rkey.get(), ELSEWHERE, local))?;
        }
        guest.frontend.remove_mem_region(&there)?;
        // Some are done before it goes, one fails, the rest is flushed: each ends.
        let mut failed = false;
        for number in 0..DEPTH {
            let done = mine.completion(&guest)?;
            ensure!(!failed || done.is_some(), "{opcode:?} {number} succeeded after one that failed");
            failed |= done.is_some();
        }
        // Nothing reaches the memory any more, which is still there.
        more.zero(0, usize::try_from(BYTES)?)?;
        scene.others_go_on()?;
        let left = more.read(0, usize::try_from(BYTES)?)?;
        ensure!(left.iter().all(|byte| *byte == 0), "something was written to memory that is gone");
        guest.reset()?;
        Objects::connected(&mut guest)?.works(&guest)?;
    }
    Ok(())
}

fn holes(scene: &Scene) -> Result<()> {
    let mut guest = scene.guest()?;
    let mut mine = Objects::connected(&mut guest)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for _ in 0..4 {
        keep_busy(&guest, &mut mine)?;
        for step in 0..DATA_BYTES / 0x4_0000 {
            fallocate(guest.memory.file(), flags, DATA + step * 0x4_0000, 0x4_0000)?;
        }
        // There are zeros then, and no faults.
        all_succeed(&guest, &mut mine)?;
    }
    scene.others_go_on()
}

/// What a peer does to its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Truncated,
    Punched,
    Removed,
    Gone,
}

/// Two guests are connected, one of them well-behaved; it writes to the other, who does harm to itself.
fn peer(scene: &Scene, harm: Harm) -> Result<()> {
    let mut good = scene.guest()?;
    let mut bad = scene.vm()?;
    let (mut mine, theirs) = (Objects::new(&mut good)?, Objects::new(&mut bad)?);
    let lid = lid(&mut good)?;
    mine.pairs[0].connect(&mut good, lid, theirs.pairs[0].created.qpn.get())?;
    theirs.pairs[0].connect(&mut bad, lid, mine.pairs[0].created.qpn.get())?;
    for _ in 0..DEPTH {
        mine.write(&good, mine.mr.lkey.get(), theirs.mr.rkey.get(), half()?)?;
    }
    match harm {
        Harm::Truncated => ftruncate(bad.memory.file(), 0)?,
        Harm::Punched => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Its virtqueues stay: zeros there break them, and it is told to reset.
            fallocate(bad.memory.file(), flags, DATA, DATA_BYTES)?;
        }
        Harm::Removed => {
            let all = bad.region();
            bad.frontend.remove_mem_region(&all)?;
        }
        Harm::Gone => drop(bad),
    }
    // Each write ends, somehow, and where nothing is missing it succeeds.
    let mut failed = false;
    for number in 0..DEPTH {
        let done = mine.completion(&good)?;
        ensure!(!failed || done.is_some(), "write {number} succeeded after one that failed");
        failed |= done.is_some();
    }
    ensure!(harm != Harm::Punched || !failed, "a hole isn't zeros");
    // The well-behaved one has lost a connection, and nothing else.
    ensure!(!good.is_cut_off(), "the peer was cut off");
    good.must(&QueryDevice {}, &[])?;
    good.reset()?;
    Objects::connected(&mut good)?.works(&good)?;
    scene.others_go_on()
}
