//! Doorbell records: words that the HCA reads at a bus address that no key protects.

use anyhow::{Result, ensure};
use mlx4_wire::U64 as Be64;
use mlx4_wire::wqe::{DataSeg, Opcode};
use virtio_rdma::Reason;
use virtio_rdma::event::EventType;
use zerocopy::IntoBytes;

use super::guest::{BASE, BYTES, Guest, at};
use super::objects::{CQ_RING, DATA, Objects, QP_RING, QP_RING_BYTES, RECORDS, create_cq, create_qp, data};
use super::rig::{LOOT, Rig, SINK, Victim, event, expect_events};

/// The syndrome of a send that nobody receives.
const NOT_READY: u8 = 0x16;
/// Where the receive queue of a queue pair is in its ring.
const RECEIVES: u64 = 64 * 64;
/// The record of the `n`th queue pair of a guest.
const fn record(n: u64) -> u64 {
    RECORDS + 64 + 8 * n
}

#[test]
fn record_outside_memory_can_not_be_named() -> Result<()> {
    let rig = Rig::start()?;
    let victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    let mine = Objects::new(&mut guest)?;
    let foreign = victim.bus(RECORDS);
    for (place, reason) in [
        (0, Reason::NOT_IN_MEMORY),
        (BASE - 8, Reason::NOT_IN_MEMORY),
        (BASE + BYTES, Reason::NOT_IN_MEMORY),
        (foreign, Reason::NOT_IN_MEMORY),
        (!7, Reason::NOT_IN_MEMORY),
        (at(RECORDS) + 1, Reason::MISALIGNED),
        (BASE + BYTES - 2, Reason::MISALIGNED),
    ] {
        guest.refused(&create_cq(mine.uar, 64, place), &[(at(CQ_RING), 4096)], reason)?;
        let verb = create_qp(mine.pd, mine.uar, mine.cq.cq.get(), place);
        guest.refused(&verb, &[(at(QP_RING + 2 * QP_RING_BYTES), QP_RING_BYTES)], reason)?;
    }
    rig.stop()
}

/// A receive stands in the attacker's ring, but its record says that none does. It sends to itself, with the record
/// where `place` says. The syndrome.
fn send_without_a_receive(rig: &Rig, guest: &mut Guest, place: Option<u64>) -> Result<Option<u8>> {
    let mut mine = Objects::new(guest)?;
    if let Some(place) = place {
        let receiver = mine.pairs[1].created.qpn.get();
        rig.hook.queue_pair(receiver, move |mailbox| {
            mailbox.context.record_address = Be64::new(place);
        });
    }
    mine.connect(guest)?;
    rig.hook.clear();
    let receive = data(mine.mr.lkey.get(), at(SINK), LOOT);
    let receive = [&receive[..], DataSeg::TERMINATOR.as_bytes()].concat();
    guest.memory.write(mine.pairs[1].ring + RECEIVES, &receive)?;
    mine.post(guest, 0, Opcode::SEND, &data(mine.mr.lkey.get(), at(DATA), LOOT))?;
    mine.completion(guest)
}

#[test]
fn queue_pair_reads_no_record_but_its_own_unless_the_context_names_another() -> Result<()> {
    let rig = Rig::start()?;
    let victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    let done = send_without_a_receive(&rig, &mut guest, None)?;
    ensure!(done == Some(NOT_READY), "{done:x?}");
    drop(guest);
    // The victim's says 1: what the victim does in its own memory drives the attacker's queue.
    victim.guest.memory.write(record(0), &1u32.to_be_bytes())?;
    let mut guest = rig.attacker()?;
    let done = send_without_a_receive(&rig, &mut guest, Some(victim.bus(record(0))))?;
    ensure!(done.is_none(), "the context's address isn't looked at: {done:x?}");
    rig.stop()
}

#[test]
fn record_where_no_memory_is_costs_the_queue_pair_only() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    expect_events(&mut guest)?;
    let refused = rig.refused_accesses();
    // Far behind every window.
    let done = send_without_a_receive(&rig, &mut guest, Some(1 << 50))?;
    ensure!(done.is_some(), "a receive was found where no memory is");
    let told = event(&mut guest)?;
    ensure!(told.event_type == EventType::QP_FATAL, "{told:?}");
    ensure!(rig.refused_accesses() > refused, "no access was refused");
    victim.is_well()?;
    rig.stop()
}
