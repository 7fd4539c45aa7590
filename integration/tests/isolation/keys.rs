//! Work requests about memory keys: invalidate, register, bind. Each is held by the domain and by bits that the daemon
//! leaves clear.

use anyhow::{Result, ensure};
use mlx4_wire::cmd::Opcode as Command;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::mpt::MptStatus;
use mlx4_wire::ctx::mtt::MttEntry;
use mlx4_wire::wqe::{
    BindAccess, BindKind, BindSeg, FastRegisterSeg, LocalInvalidateSeg, Opcode, RegisterAccess,
};
use mlx4_wire::{Number24, U32 as Be32, U64 as Be64};
use virtio_rdma::U32;
use virtio_rdma::request::memory::{AllocMw, MwType};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::{Guest, at};
use super::objects::{DATA, DATA_BYTES, Objects, RECORDS, data, reg_mr, remote};
use super::rig::{LOOT, Rig, SECRET, SINK, Victim};

/// Syndromes: a work request that the queue pair may not post; a key that doesn't allow it.
const LOCAL_OPERATION: u8 = 0x02;
const BIND: u8 = 0x06;

/// Where a list of pages is: in memory that is mapped for the rings.
const PAGE_LIST: u64 = RECORDS + 0x8000;

/// The queue pair is made in the victim's domain.
fn in_domain(rig: &Rig, mine: &Objects, pdn: u32) {
    let qpn = mine.pairs[0].created.qpn.get();
    rig.hook.queue_pair(qpn, move |mailbox| mailbox.context.pd = Number24::wrapping(pdn));
}

/// The attacker invalidates the victim's key. The syndrome.
fn invalidate(rig: &Rig, victim: &Victim, in_its_domain: bool) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    if in_its_domain {
        in_domain(rig, &mine, victim.objects.pdn);
    }
    mine.connect(&mut guest)?;
    rig.hook.clear();
    let mut segment = LocalInvalidateSeg::new_zeroed();
    segment.key = Be32::new(victim.objects.mr.lkey.get());
    mine.post(&guest, 0, Opcode::LOCAL_INVALIDATE, segment.as_bytes())?;
    mine.completion(&guest)
}

#[test]
fn foreign_key_is_not_invalidated_unless_domain_and_region_allow_it() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    for in_its_domain in [false, true] {
        let done = invalidate(&rig, &victim, in_its_domain)?;
        ensure!(done == Some(BIND), "in its domain: {in_its_domain}: {done:x?}");
        victim.is_well()?;
    }
    drop(victim);
    rig.hook.regions(|entry| entry.pd.set_invalidate(true));
    let mut victim = Victim::new(&rig)?;
    rig.hook.clear();
    let done = invalidate(&rig, &victim, false)?;
    ensure!(done == Some(BIND), "the domain isn't looked at: {done:x?}");
    victim.is_well()?;
    let done = invalidate(&rig, &victim, true)?;
    ensure!(done.is_none(), "the bit isn't looked at: {done:x?}");
    ensure!(victim.is_well().is_err(), "the victim's key lives");
    rig.stop()
}

/// What the hook allows of fast registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    Nothing,
    ByQueuePair,
    ByRegionToo,
}

/// The attacker registers the victim's memory, by its bus address, under a key of its own, and copies from there.
fn register(rig: &Rig, victim: &Victim, allowed: Allowed) -> Result<(Option<u8>, Vec<u8>)> {
    const ADDRESS: u64 = 0x7000_0000;
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    if allowed != Allowed::Nothing {
        rig.hook.queue_pair(mine.pairs[0].created.qpn.get(), |mailbox| {
            mailbox.context.requester.set_fast_register(true);
        });
    }
    mine.connect(&mut guest)?;
    if allowed == Allowed::ByRegionToo {
        rig.hook.regions(|entry| {
            entry.flags.set_status(MptStatus::FREE);
            entry.pd.set_fast_register(true);
            entry.mtt_entries = Be32::new(1);
        });
    }
    let region = guest.must(&reg_mr(mine.pd, at(DATA), 4096), &[(at(DATA), 4096)])?;
    rig.hook.clear();
    let cq: CqContext = rig
        .hook
        .last(Command::SW2HW_CQ, mine.cq.cqn.get())
        .ok_or_else(|| anyhow::anyhow!("the CQ wasn't seen"))?;
    let window = cq.record_base() - at(RECORDS);
    guest.memory.write(PAGE_LIST, MttEntry::present(victim.bus(DATA)).as_bytes())?;
    let mut segment = FastRegisterSeg::new_zeroed();
    segment.access = RegisterAccess::new().with_local_read(true);
    segment.key = Be32::new(region.lkey.get());
    segment.page_list = Be64::new(window + at(PAGE_LIST));
    (segment.start, segment.length) = (Be64::new(ADDRESS), Be64::new(4096));
    segment.log2_page = Be32::new(12);
    mine.post(&guest, 0, Opcode::FAST_REGISTER, segment.as_bytes())?;
    let done = mine.completion(&guest)?;
    if done.is_some() {
        return Ok((done, guest.memory.read(SINK, LOOT as usize)?));
    }
    let stolen = data(region.lkey.get(), ADDRESS, LOOT);
    mine.post(&guest, 0, Opcode::RDMA_WRITE, &remote(mine.mr.rkey.get(), at(SINK), stolen))?;
    Ok((mine.completion(&guest)?, guest.memory.read(SINK, LOOT as usize)?))
}

#[test]
fn bus_addresses_can_not_be_registered_by_a_work_request_unless_queue_pair_and_region_allow_it() -> Result<()>
{
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (done, _) = register(&rig, &victim, Allowed::Nothing)?;
    ensure!(done == Some(LOCAL_OPERATION), "{done:x?}");
    let (done, _) = register(&rig, &victim, Allowed::ByQueuePair)?;
    ensure!(done == Some(BIND), "{done:x?}");
    let (done, loot) = register(&rig, &victim, Allowed::ByRegionToo)?;
    ensure!(done.is_none() && loot == [SECRET; LOOT as usize], "the bits aren't looked at: {done:x?}");
    victim.is_well()?;
    rig.stop()
}

/// A window of the attacker's, and a request that binds it to a region of another key.
fn bind(rig: &Rig, guest: &mut Guest, victim: &Victim, in_its_domain: bool) -> Result<Option<u8>> {
    let mut mine = Objects::new(guest)?;
    let pdn = victim.objects.pdn;
    if in_its_domain {
        in_domain(rig, &mine, pdn);
        rig.hook.regions(move |entry| {
            if !entry.flags.region() {
                entry.pd.set_pd(pdn);
            }
        });
    }
    mine.connect(guest)?;
    let verb = AllocMw { pd: U32::new(mine.pd), mw_type: MwType::TYPE_2, ..AllocMw::new_zeroed() };
    let window = guest.must(&verb, &[])?;
    rig.hook.clear();
    let mut segment = BindSeg::new_zeroed();
    segment.access = BindAccess::new().with_remote_read(true);
    segment.kind = BindKind::new().with_type_2(true);
    segment.new_rkey = Be32::new(window.rkey.get());
    segment.lkey = Be32::new(victim.objects.mr.lkey.get());
    (segment.start, segment.length) = (Be64::new(at(DATA)), Be64::new(DATA_BYTES));
    mine.post(guest, 0, Opcode::BIND_MW, segment.as_bytes())?;
    mine.completion(guest)
}

#[test]
fn window_is_not_bound_to_a_foreign_region_unless_domains_and_region_allow_it() -> Result<()> {
    let rig = Rig::start()?;
    // Any region may have windows, as if its owner had asked for it.
    rig.hook.regions(|entry| entry.flags.set_bind(true));
    let mut victim = Victim::new(&rig)?;
    rig.hook.clear();
    let mut guest = rig.attacker()?;
    let done = bind(&rig, &mut guest, &victim, false)?;
    ensure!(done == Some(BIND), "{done:x?}");
    victim.is_well()?;
    drop(guest);
    let mut guest = rig.attacker()?;
    let done = bind(&rig, &mut guest, &victim, true)?;
    ensure!(done.is_none(), "the domain isn't what protects: {done:x?}");
    drop(guest);
    victim.is_well()?;
    // A region that nobody gave the right: not even in its own domain.
    drop(victim);
    let victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    let done = bind(&rig, &mut guest, &victim, true)?;
    ensure!(done == Some(BIND), "the region's bit isn't looked at: {done:x?}");
    rig.stop()
}
