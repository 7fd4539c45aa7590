//! Memory: keys of others, and entries of the protection table that would reach beyond the guest's own.

use anyhow::{Result, ensure};
use mlx4_wire::Number24;
use mlx4_wire::wqe::Opcode;
use virtio_rdma::Reason;

use super::guest::at;
use super::objects::{
    CQ_RING, DATA, LOCAL_PROTECTION, Objects, QP_RING, QP_RING_BYTES, RECORDS, REMOTE_ACCESS, create_cq,
    create_qp, data, reg_mr, remote,
};
use super::rig::{LOOT, Rig, SECRET, SINK, Victim};

/// Whether all of what was stolen is the victim's.
fn is_secret(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == SECRET)
}

/// The attacker writes from the victim's memory to its own. The syndrome, and what is in its memory then.
fn steal_by_lkey(rig: &Rig, victim: &Victim, in_its_domain: bool) -> Result<(Option<u8>, Vec<u8>)> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    if in_its_domain {
        let pdn = victim.objects.pdn;
        let sender = mine.pairs[0].created.qpn.get();
        rig.hook.queue_pair(sender, move |mailbox| mailbox.context.pd = Number24::wrapping(pdn));
    }
    mine.connect(&mut guest)?;
    rig.hook.clear();
    let stolen = data(victim.objects.mr.lkey.get(), at(DATA), LOOT);
    mine.post(&guest, 0, Opcode::RDMA_WRITE, &remote(mine.mr.rkey.get(), at(SINK), stolen))?;
    let done = mine.completion(&guest)?;
    Ok((done, guest.memory.read(SINK, LOOT as usize)?))
}

#[test]
fn foreign_lkey_is_refused_unless_the_queue_pair_has_the_victim_s_domain() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let rejected = rig.counters()?.rejected_lkeys.get();
    let (done, loot) = steal_by_lkey(&rig, &victim, false)?;
    ensure!(done == Some(LOCAL_PROTECTION), "a foreign lkey ended in {done:x?}");
    ensure!(rig.counters()?.rejected_lkeys.get() == rejected + 1);
    ensure!(loot.iter().all(|byte| *byte == 0), "something was stolen");
    let (done, loot) = steal_by_lkey(&rig, &victim, true)?;
    ensure!(done.is_none() && is_secret(&loot), "the domain isn't what protects: {done:x?}");
    victim.is_well()?;
    rig.stop()
}

/// The attacker writes to the victim's memory through its own two queue pairs.
fn write_by_rkey(rig: &Rig, victim: &Victim, in_its_domain: bool) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    if in_its_domain {
        let pdn = victim.objects.pdn;
        let receiver = mine.pairs[1].created.qpn.get();
        rig.hook.queue_pair(receiver, move |mailbox| mailbox.context.pd = Number24::wrapping(pdn));
    }
    mine.connect(&mut guest)?;
    rig.hook.clear();
    let own = data(mine.mr.lkey.get(), at(DATA), LOOT);
    mine.post(&guest, 0, Opcode::RDMA_WRITE, &remote(victim.objects.mr.rkey.get(), at(SINK), own))?;
    mine.completion(&guest)
}

#[test]
fn foreign_rkey_is_refused_unless_the_queue_pair_has_the_victim_s_domain() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let rejected = rig.counters()?.rejected_rkeys.get();
    let done = write_by_rkey(&rig, &victim, false)?;
    ensure!(done == Some(REMOTE_ACCESS), "a foreign rkey ended in {done:x?}");
    ensure!(rig.counters()?.rejected_rkeys.get() == rejected + 1);
    victim.is_well()?;
    let done = write_by_rkey(&rig, &victim, true)?;
    ensure!(done.is_none(), "the domain isn't what protects: {done:x?}");
    ensure!(victim.guest.memory.read(SINK, LOOT as usize)? == [0; LOOT as usize]);
    rig.stop()
}

#[test]
fn domain_of_another_guest_can_not_be_named() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    let mine = Objects::new(&mut guest)?;
    let theirs = &victim.objects;
    for domain in [theirs.pd | 1 << 31, theirs.pdn, theirs.pd + 1] {
        if domain == mine.pd {
            continue;
        }
        guest.refused(&reg_mr(domain, at(DATA), 4096), &[(at(DATA), 4096)], Reason::BAD_HANDLE)?;
        let verb = create_qp(domain, mine.uar, mine.cq.cq.get(), at(RECORDS + 128));
        let ring = [(at(QP_RING + 2 * QP_RING_BYTES), QP_RING_BYTES)];
        guest.refused(&verb, &ring, Reason::BAD_HANDLE)?;
    }
    // Handles are each guest's own: the same number names the attacker's own object, never the victim's.
    let own = guest.must(&reg_mr(mine.pd, at(DATA), 4096), &[(at(DATA), 4096)])?;
    let entry: mlx4_wire::ctx::mpt::MptEntry = rig
        .hook
        .seen()
        .iter()
        .rev()
        .find(|seen| seen.opcode == mlx4_wire::cmd::Opcode::SW2HW_MPT)
        .and_then(super::hook::Seen::read)
        .ok_or_else(|| anyhow::anyhow!("the region wasn't seen"))?;
    ensure!(entry.key.get().rotate_left(8) == own.lkey.get() && entry.pd.pd() == mine.pdn);
    ensure!(entry.pd.pd() != theirs.pdn, "two guests share a domain");
    guest.refused(
        &create_cq(theirs.uar | 1 << 31, 64, at(RECORDS)),
        &[(at(CQ_RING), 4096)],
        Reason::BAD_HANDLE,
    )?;
    victim.is_well()?;
    rig.stop()
}

/// The attacker registers its own memory under the bus address of the victim's, and copies from there.
fn steal_by_bus_address(rig: &Rig, victim: &Victim, physical: bool) -> Result<(Option<u8>, Vec<u8>)> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::connected(&mut guest)?;
    let address = victim.bus(DATA);
    if physical {
        rig.hook.regions(|entry| entry.flags.set_physical(true));
    }
    let trap = guest.must(&reg_mr(mine.pd, address, 4096), &[(at(DATA), 4096)])?;
    rig.hook.clear();
    guest.memory.write(DATA, &[0x11; 4096])?;
    let body = remote(mine.mr.rkey.get(), at(SINK), data(trap.lkey.get(), address, LOOT));
    mine.post(&guest, 0, Opcode::RDMA_WRITE, &body)?;
    Ok((mine.completion(&guest)?, guest.memory.read(SINK, LOOT as usize)?))
}

#[test]
fn region_at_the_victim_s_bus_address_is_the_guest_s_own_memory_unless_it_is_physical() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (done, loot) = steal_by_bus_address(&rig, &victim, false)?;
    ensure!(done.is_none() && loot == [0x11; LOOT as usize], "{done:x?}: not the guest's own memory");
    let (done, loot) = steal_by_bus_address(&rig, &victim, true)?;
    ensure!(done.is_none() && is_secret(&loot), "the bit isn't looked at: {done:x?}");
    victim.is_well()?;
    rig.stop()
}
