//! UAR pages that are mapped into a guest: stores to them, with any number, at any offset.

use anyhow::{Context as _, Result, ensure};
use integration::patience::until;
use mlx4_wire::Number24;
use mlx4_wire::cmd::Opcode as Command;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::doorbell::{CQ_DOORBELL, EQS_PER_UAR, SEND_DOORBELL, eq_doorbell_offset, eq_doorbell_uar};
use mlx4_wire::wqe::Opcode;
use virtio_rdma::doorbell::slot_at;

use super::guest::Guest;
use super::objects::{Objects, RECORDS, ring};
use super::rig::{Rig, Victim};

/// The first UAR page that a guest may have: lower ones hold the doorbells of EQs.
const FIRST_GUEST_PAGE: u32 = 128;

/// An attacker with queues that work, and its UAR page.
fn attacker(rig: &Rig) -> Result<(Guest, Objects, u32)> {
    let mut guest = rig.attacker()?;
    let mine = Objects::connected(&mut guest)?;
    let page = rig.uar_page(mine.pairs[0].created.qpn.get())?;
    Ok((guest, mine, page))
}

/// What the doorbells of an attack did.
#[derive(Debug, PartialEq, Eq)]
struct Rung {
    /// Doorbells that the HCA refused.
    refused: u64,
    /// Whether the victim's queue moved.
    moved: bool,
}

/// Whatever was rung before is done when this returns: the HCA looks at all queues that were rung before it begins
/// anew.
fn settle(guest: &Guest, mine: &mut Objects) -> Result<()> {
    mine.works(guest)?;
    mine.works(guest)
}

/// The attacker rings the victim's queue pair by its own page, while a request stands there unrung.
fn ring_of_another(rig: &Rig, page_of_attacker: bool) -> Result<Rung> {
    let (guest, mut mine, page) = attacker(rig)?;
    let mut theirs = rig.guest("victim")?;
    let mut objects = Objects::new(&mut theirs)?;
    if page_of_attacker {
        for pair in &objects.pairs {
            rig.hook.queue_pair(pair.created.qpn.get(), move |mailbox| {
                mailbox.context.uar_page = Number24::wrapping(page);
            });
        }
    }
    objects.connect(&mut theirs)?;
    rig.hook.clear();
    // A change of state lets the card look at a queue, too.
    settle(&guest, &mut mine)?;
    objects.pairs[0].post(&theirs, Opcode::NOP, &[])?;
    let before = rig.counters()?.bad_doorbells.get();
    let number = objects.pairs[0].created.qpn.get();
    rig.store(page, SEND_DOORBELL, &(number << 8).to_be_bytes())?;
    settle(&guest, &mut mine)?;
    let refused = rig.counters()?.bad_doorbells.get() - before;
    Ok(Rung { refused, moved: objects.poll(&theirs)?.is_some() })
}

#[test]
fn doorbell_for_a_queue_pair_of_another_guest_is_refused_unless_it_names_the_page() -> Result<()> {
    let rig = Rig::start()?;
    ensure!(ring_of_another(&rig, false)? == Rung { refused: 1, moved: false }, "the page isn't looked at");
    ensure!(ring_of_another(&rig, true)? == Rung { refused: 0, moved: true }, "the page isn't what protects");
    rig.stop()
}

/// The attacker arms the victim's CQ by its own page: doorbells that were refused.
fn arm_of_another(rig: &Rig, page_of_attacker: bool) -> Result<u64> {
    let (_guest, _mine, page) = attacker(rig)?;
    let mut theirs = rig.guest("victim")?;
    if page_of_attacker {
        rig.hook.cqs(move |context| context.size.set_uar_page(page));
    }
    let objects = Objects::new(&mut theirs)?;
    rig.hook.clear();
    let before = rig.counters()?.bad_doorbells.get();
    let arm = 1u32 << 28 | 2 << 24 | objects.cq.cqn.get();
    rig.store(page, CQ_DOORBELL, &[arm.to_be_bytes(), [0; 4]].concat())?;
    Ok(rig.counters()?.bad_doorbells.get() - before)
}

#[test]
fn arming_a_cq_of_another_guest_is_refused_unless_it_names_the_page() -> Result<()> {
    let rig = Rig::start()?;
    ensure!(arm_of_another(&rig, false)? == 1, "the page isn't looked at");
    ensure!(arm_of_another(&rig, true)? == 0, "the page isn't what protects");
    rig.stop()
}

/// Arms the victim's CQ the way that it may, and lets it complete something.
fn complete_with_event(victim: &mut Victim) -> Result<()> {
    let index = victim.objects.consumer & 0xff_ffff;
    let word = 1u32 << 28 | 2 << 24 | index;
    victim.guest.memory.write(RECORDS + 4, &word.to_be_bytes())?;
    let slot = slot_at(victim.objects.cq.arm.offset.get()).context("no slot")?;
    ring(&victim.guest, slot, u64::from(word) << 32 | u64::from(index))?;
    victim.objects.works(&victim.guest)
}

/// Stores a consumer index that is far ahead to where a page would have the doorbell of an EQ.
fn derail_eq(rig: &Rig, page: u32, eqn: u32) -> Result<()> {
    const FAR: u32 = 0x80_0000;
    rig.store(page, eq_doorbell_offset(eqn % EQS_PER_UAR), &FAR.to_be_bytes())
}

#[test]
fn doorbells_of_event_queues_are_in_no_page_that_a_guest_can_have() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (_guest, _mine, page) = attacker(&rig)?;
    let cq: CqContext =
        rig.hook.last(Command::SW2HW_CQ, victim.objects.cq.cqn.get()).context("the CQ wasn't seen")?;
    let eqn = u32::from(cq.completion_eq.eqn());
    ensure!(page >= FIRST_GUEST_PAGE, "a guest has page {page}");
    let (refused, dropped) = (rig.counters()?.bad_doorbells.get(), rig.dropped_events(eqn)?);
    for slot in 0..EQS_PER_UAR {
        derail_eq(&rig, page, slot)?;
    }
    ensure!(rig.counters()?.bad_doorbells.get() == refused + u64::from(EQS_PER_UAR), "an EQ was rung");
    for _ in 0..2 {
        complete_with_event(&mut victim)?;
    }
    ensure!(rig.dropped_events(eqn)? == dropped, "an event was dropped");
    // With the page that the doorbell is in, the same store takes the victim's events away.
    until("the victim's event is dropped", || {
        derail_eq(&rig, eq_doorbell_uar(eqn), eqn)?;
        complete_with_event(&mut victim)?;
        Ok(rig.dropped_events(eqn)? > dropped)
    })?;
    ensure!(rig.counters()?.bad_doorbells.get() == refused + u64::from(EQS_PER_UAR));
    rig.stop()
}

/// Everywhere else in a page nothing is rung.
#[test]
fn stores_elsewhere_in_a_page_ring_nothing() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (guest, mut mine, page) = attacker(&rig)?;
    let number = victim.objects.pairs[0].created.qpn.get();
    settle(&guest, &mut mine)?;
    victim.objects.pairs[0].post(&victim.guest, Opcode::NOP, &[])?;
    for offset in (0..0x1000).step_by(4).filter(|offset| ![SEND_DOORBELL, CQ_DOORBELL].contains(offset)) {
        rig.store(page, offset, &(number << 8).to_be_bytes())?;
    }
    for bytes in [1, 2, 3, 16, 64] {
        rig.store(page, SEND_DOORBELL, &vec![0xff; bytes])?;
        rig.store(page, 0xff0, &vec![0xff; bytes])?;
    }
    settle(&guest, &mut mine)?;
    ensure!(victim.objects.poll(&victim.guest)?.is_none(), "the victim's queue moved");
    rig.stop()
}
