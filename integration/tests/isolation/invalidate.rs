//! Sends that ask the receiver's HCA to invalidate a key. The receiving queue pair's domain and the region's own bit
//! hold it, and the daemon leaves that bit clear.

use anyhow::{Result, ensure};
use mlx4_wire::Number24;
use mlx4_wire::wqe::{DataSeg, Opcode};
use zerocopy::IntoBytes;

use super::guest::{Guest, at};
use super::objects::{DATA, Objects, Pair, RECORDS, REMOTE_ACCESS, data, lid, remote, ring};
use super::rig::{LOOT, Rig, SINK, Victim};

/// The syndrome of a receive whose sender asked for what can't be.
const REMOTE_INVALID: u8 = 0x12;
/// Where the receive queue of a queue pair is in its ring, and the records of both.
const RECEIVES: u64 = 64 * 64;
const QP_RECORDS: u64 = RECORDS + 64;

/// A receive without room: none is needed, so no key is named.
fn expect_nothing(guest: &Guest, pair: &Pair, n: u64) -> Result<()> {
    guest.memory.write(pair.ring + RECEIVES, DataSeg::TERMINATOR.as_bytes())?;
    guest.memory.write(QP_RECORDS + 8 * n, &1u32.to_be_bytes())
}

/// Sends nothing but a key that the other end shall invalidate.
fn send_with_invalidate(guest: &Guest, mine: &mut Objects, key: u32) -> Result<()> {
    mine.pairs[0].post_with(guest, Opcode::SEND_INVALIDATE, key, &[])?;
    ring(guest, mine.pairs[0].slot, 0)
}

/// The attacker sends the victim's key to a queue pair of its own. What comes of the receive.
fn to_an_accomplice(rig: &Rig, victim: &Victim, in_its_domain: bool) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    if in_its_domain {
        let pdn = victim.objects.pdn;
        rig.hook.queue_pair(mine.pairs[1].created.qpn.get(), move |mailbox| {
            mailbox.context.pd = Number24::wrapping(pdn);
        });
    }
    mine.connect(&mut guest)?;
    rig.hook.clear();
    expect_nothing(&guest, &mine.pairs[1], 1)?;
    send_with_invalidate(&guest, &mut mine, victim.objects.mr.lkey.get())?;
    // The receive's comes first: of a refusal the sender isn't told.
    mine.completion(&guest)
}

#[test]
fn key_of_a_third_guest_is_not_invalidated_by_a_send_unless_domain_and_region_allow_it() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    for in_its_domain in [false, true] {
        let done = to_an_accomplice(&rig, &victim, in_its_domain)?;
        ensure!(done == Some(REMOTE_INVALID), "in its domain: {in_its_domain}: {done:x?}");
        victim.is_well()?;
    }
    drop(victim);
    rig.hook.regions(|entry| entry.pd.set_remote_invalidate(true));
    let mut victim = Victim::new(&rig)?;
    rig.hook.clear();
    let done = to_an_accomplice(&rig, &victim, false)?;
    ensure!(done == Some(REMOTE_INVALID), "the domain isn't looked at: {done:x?}");
    victim.is_well()?;
    let done = to_an_accomplice(&rig, &victim, true)?;
    ensure!(done.is_none(), "the bit isn't looked at: {done:x?}");
    ensure!(victim.is_well().is_err(), "the victim's key lives");
    rig.stop()
}

/// A peer names the key of the one that it is connected to. What comes of the victim's receive, and of a write of the
/// peer's to that key thereafter.
fn to_the_victim(rig: &Rig) -> Result<[Option<u8>; 2]> {
    let mut guests = [rig.guest("attacker")?, rig.guest("victim")?];
    let mut objects = Vec::new();
    for guest in &mut guests {
        objects.push(Objects::new(guest)?);
    }
    let lid = lid(&mut guests[0])?;
    for (end, pair) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let to = objects[1 - end].pairs[pair].created.qpn.get();
        objects[end].pairs[pair].connect(&mut guests[end], lid, to)?;
    }
    rig.hook.clear();
    expect_nothing(&guests[1], &objects[1].pairs[0], 0)?;
    let key = objects[1].mr.rkey.get();
    send_with_invalidate(&guests[0], &mut objects[0], key)?;
    let received = objects[1].completion(&guests[1])?;
    let sent = objects[0].completion(&guests[0])?;
    ensure!(sent.is_some() == received.is_some(), "sent {sent:x?}, received {received:x?}");
    // By the other connection.
    let body = remote(key, at(SINK), data(objects[0].mr.lkey.get(), at(DATA), LOOT));
    objects[0].post(&guests[0], 1, Opcode::RDMA_WRITE, &body)?;
    Ok([received, objects[0].completion(&guests[0])?])
}

#[test]
fn peer_invalidates_no_region_unless_its_bit_allows_it() -> Result<()> {
    let rig = Rig::start()?;
    let done = to_the_victim(&rig)?;
    ensure!(done == [Some(REMOTE_INVALID), None], "{done:x?}");
    rig.hook.regions(|entry| entry.pd.set_remote_invalidate(true));
    let done = to_the_victim(&rig)?;
    ensure!(done == [None, Some(REMOTE_ACCESS)], "the bit isn't looked at: {done:x?}");
    rig.stop()
}
