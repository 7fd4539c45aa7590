//! The entry of the translation table behind each ring, which is not present.
//!
//! How an HCA gets there: it fetches send requests ahead of the one it executes, and follows the length that a
//! request states; both reach behind the last slot. The model fetches nothing ahead and refuses a request that is
//! longer than its slot, so here the context lies about the ring's size: then it walks off the end in order.

use anyhow::{Context as _, Result, ensure};
use integration::patience::until;
use mlx4_wire::cmd::Opcode as Command;
use mlx4_wire::cqe::CQE_BYTES;
use mlx4_wire::ctx::RingPages;
use mlx4_wire::ctx::mpt::{MptEntry, key_to_mpt_index};
use mlx4_wire::wqe::{Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, Opcode};
use virtio_rdma::event::EventType;
use zerocopy::{FromZeros, IntoBytes};

use super::guest::{Guest, at};
use super::objects::{CQ_RING, Objects, QP_RING, QP_RING_BYTES, SPARE, reg_mr, ring};
use super::rig::{Rig, Victim, event, expect_events};

/// Slots of a send queue, as the guest asked for them, and bytes of each.
const SLOTS: u64 = 64;
const STRIDE: u64 = 64;
/// Memory that is no ring's.
pub(crate) const BEHIND: u64 = SPARE + 0x4_0000;
const PAGE: u64 = 4096;

/// What is behind a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// What the context says is true: nothing is there that the HCA asks for.
    Unasked,
    /// The context says a longer ring: the entry behind it is as the daemon made it.
    Guard,
    /// The same, and the entry is present.
    Memory,
}

/// The pages of a region that the guest has registered, as contexts name them.
fn pages_of(rig: &Rig, key: u32) -> Result<RingPages> {
    let index = key_to_mpt_index(key) & 0xff_ffff;
    let entry: MptEntry = rig.hook.last(Command::SW2HW_MPT, index).context("the region wasn't seen")?;
    RingPages::new(u8::try_from(entry.log2_page.number())?, entry.mtt_base()).context("pages of a ring")
}

/// Registers a ring's memory and what is to be behind it: translation entries in which it is all present.
pub(crate) fn present(rig: &Rig, guest: &mut Guest, pd: u32, start: u64, bytes: u64) -> Result<RingPages> {
    let segments = [(at(start), bytes), (at(BEHIND), 2 * PAGE)];
    let region = guest.must(&reg_mr(pd, 0, bytes + 2 * PAGE), &segments)?;
    pages_of(rig, region.lkey.get())
}

/// First word of a slot that isn't posted.
const NOT_POSTED: [u8; 4] = 0x8000_0000u32.to_be_bytes();

/// A NOP that completes, in the first pass of a ring.
fn nop() -> CtrlSeg {
    let mut ctrl = CtrlSeg::new_zeroed();
    ctrl.opcode = CtrlOpcode::new().with_opcode(Opcode::NOP);
    ctrl.size = CtrlSize::new().with_units(1);
    ctrl.flags = CtrlFlags::new().with_completion(Completion::ALWAYS);
    ctrl
}

/// How many requests of its own the HCA executes in a ring full of them, and of those behind the ring.
fn run_off_the_send_queue(rig: &Rig, behind: Behind) -> Result<(u32, Option<EventType>)> {
    let mut guest = rig.attacker()?;
    expect_events(&mut guest)?;
    let mut mine = Objects::new(&mut guest)?;
    let (sender, handle) = (mine.pairs[0].created.qpn.get(), mine.pairs[0].created.qp);
    let pages = match behind {
        Behind::Memory => Some(present(rig, &mut guest, mine.pd, QP_RING, QP_RING_BYTES)?),
        _ => None,
    };
    if behind != Behind::Unasked {
        rig.hook.queue_pair(sender, move |mailbox| {
            let context = &mut mailbox.context;
            // Four times as many as there are: the receive queue is behind them, and never asked for.
            context.sq_size.set_log2_entries(context.sq_size.log2_entries() + 2);
            if let Some(pages) = pages {
                context.pages = pages;
            }
        });
    }
    mine.connect(&mut guest)?;
    rig.hook.clear();
    // The rest of the ring, as if it were unposted slots, and what is behind it too.
    let half = SLOTS * STRIDE;
    for slot in 0..SLOTS {
        guest.memory.write(QP_RING + half + slot * STRIDE, &NOT_POSTED)?;
    }
    guest.memory.write(BEHIND + 2 * STRIDE, &NOT_POSTED)?;
    // In steps, since the CQ has no room for all: the two halves of the ring, then what is behind it.
    let [second, third] = match behind {
        Behind::Unasked => [0, 0],
        Behind::Guard => [SLOTS, 0],
        Behind::Memory => [SLOTS, 2],
    };
    for slot in 0..2 {
        guest.memory.write(BEHIND + slot * STRIDE, &NOT_POSTED)?;
    }
    for (start, slots, expected) in
        [(QP_RING, SLOTS, SLOTS), (QP_RING + half, SLOTS, second), (BEHIND, 2, third)]
    {
        for slot in (0..slots).rev() {
            guest.memory.write(start + slot * STRIDE, nop().as_bytes())?;
        }
        ring(&guest, mine.pairs[0].slot, 0)?;
        for number in 0..expected {
            let done = mine.completion(&guest)?;
            ensure!(done.is_none(), "request {number} ended in {done:x?}");
        }
    }
    let told = if behind == Behind::Guard {
        let told = event(&mut guest)?;
        ensure!(told.handle == handle, "{told:?}");
        Some(told.event_type)
    } else {
        None
    };
    // Whatever is done by now is all.
    let mut more = 0;
    while mine.poll(&guest)?.is_some() {
        more += 1;
    }
    Ok((more, told))
}

#[test]
fn send_queue_ends_at_the_entry_that_is_not_present_unless_it_is() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    ensure!(run_off_the_send_queue(&rig, Behind::Unasked)? == (0, None));
    let guarded = run_off_the_send_queue(&rig, Behind::Guard)?;
    ensure!(guarded == (0, Some(EventType::QP_FATAL)), "{guarded:?}");
    ensure!(run_off_the_send_queue(&rig, Behind::Memory)? == (0, None), "the entry isn't looked at");
    victim.is_well()?;
    rig.stop()
}

/// What came of one completion more than a CQ has entries.
#[derive(Debug, PartialEq, Eq)]
enum Last {
    /// It is in the ring, as any other.
    Inside,
    /// It is in the memory behind the ring.
    Behind,
    /// It is nowhere, and these events tell why.
    Nowhere([EventType; 2]),
}

/// Completes as much as a CQ has entries, and once more.
fn run_off_the_cq(rig: &Rig, behind: Behind) -> Result<Last> {
    let mut guest = rig.attacker()?;
    expect_events(&mut guest)?;
    // A domain, to have the memory registered before the CQ is made.
    let pd = guest.must(&virtio_rdma::request::domain::AllocPd {}, &[])?.pd.get();
    let pages = match behind {
        Behind::Memory => Some(present(rig, &mut guest, pd, CQ_RING, PAGE)?),
        _ => None,
    };
    if behind != Behind::Unasked {
        rig.hook.cqs(move |context| {
            context.size.set_log2_entries(context.size.log2_entries() + 1);
            if let Some(pages) = pages {
                context.pages = pages;
            }
        });
    }
    let mut mine = Objects::connected(&mut guest)?;
    rig.hook.clear();
    guest.memory.zero(BEHIND, usize::try_from(PAGE)?)?;
    for _ in 0..mine.entries {
        mine.post(&guest, 0, Opcode::NOP, &[])?;
        ensure!(mine.completion(&guest)?.is_none());
    }
    mine.post(&guest, 0, Opcode::NOP, &[])?;
    let qpn = mine.pairs[0].created.qpn.get().to_be_bytes();
    match behind {
        Behind::Unasked => {
            ensure!(mine.completion(&guest)?.is_none());
            Ok(Last::Inside)
        }
        Behind::Guard => {
            let mut told = [event(&mut guest)?, event(&mut guest)?].map(|told| told.event_type);
            told.sort_by_key(|kind| kind.0);
            Ok(Last::Nowhere(told))
        }
        Behind::Memory => {
            let place = BEHIND + u64::from(mine.cqe_bytes - CQE_BYTES);
            until("a completion behind the ring", || Ok(guest.memory.read(place, 4)? == qpn))?;
            Ok(Last::Behind)
        }
    }
}

#[test]
fn cq_ends_at_the_entry_that_is_not_present_unless_it_is() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    ensure!(run_off_the_cq(&rig, Behind::Unasked)? == Last::Inside);
    let guarded = run_off_the_cq(&rig, Behind::Guard)?;
    ensure!(guarded == Last::Nowhere([EventType::CQ_ERR, EventType::QP_FATAL]), "{guarded:?}");
    ensure!(run_off_the_cq(&rig, Behind::Memory)? == Last::Behind);
    victim.is_well()?;
    rig.stop()
}
