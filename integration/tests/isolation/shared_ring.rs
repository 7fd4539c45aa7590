//! The entry of the translation table behind the ring of an SRQ. The guest says in each request which one comes next:
//! the model takes that modulo the queue's size, so it comes to the entry only if the context lies about the size.

use anyhow::{Context as _, Result, ensure};
use mlx4_wire::wqe::{DataSeg, Opcode};
use virtio_rdma::U32;
use virtio_rdma::event::EventType;
use virtio_rdma::request::queue_pair::{CreateQp, QpCap};
use zerocopy::IntoBytes;

use super::guest::{Guest, at};
use super::objects::{DATA, Objects, RECORDS, SPARE, create_qp, create_srq, data, lid, transitions};
use super::rig::{Rig, SINK, Victim, event, expect_events};
use super::rings::{BEHIND, Behind, present};

/// The ring of the SRQ and its record, and that of the queue pair that takes from it.
const SHARED: u64 = SPARE + 0x5_0000;
const RECORD: u64 = RECORDS + 0x400;
const SENDS: u64 = SPARE + 0x6_0000;
/// Slots of the SRQ.
const SLOTS: u16 = 64;
/// Where a receive from behind the ring puts its message.
const BEYOND: u64 = SINK + 0x1000;
/// Bytes of a message.
const MESSAGE: u32 = 16;

/// What came of a receive whose number is the size of the queue.
#[derive(Debug, PartialEq, Eq)]
enum Second {
    /// It was the first slot once more.
    Inside,
    /// It was read behind the ring.
    Behind,
    /// There was none, and these events tell why.
    Nowhere([EventType; 2]),
}

/// A receive: which one comes next, and where the message goes.
fn receive(lkey: u32, next: u16, place: u64) -> Vec<u8> {
    let next = [&[0, 0][..], &next.to_be_bytes(), &[0; 12]].concat();
    [&next[..], &data(lkey, at(place), MESSAGE), DataSeg::TERMINATOR.as_bytes()].concat()
}

/// A queue pair that takes its receives from an SRQ, and sends nothing.
fn taker(mine: &Objects, srq: U32) -> CreateQp {
    let verb = create_qp(mine.pd, mine.uar, mine.cq.cq.get(), 0);
    let cap = QpCap { max_recv_wr: U32::ZERO, max_recv_sge: U32::ZERO, ..verb.cap };
    CreateQp { srq, log2_recv_wqes: 0, log2_recv_stride: 0, cap, ..verb }
}

/// Sends a message of these bytes, and takes the completions of sender and receiver.
fn send(guest: &Guest, mine: &mut Objects, byte: u8) -> Result<()> {
    guest.memory.write(DATA, &[byte; MESSAGE as usize])?;
    let body = data(mine.mr.lkey.get(), at(DATA), MESSAGE);
    mine.post(guest, 0, Opcode::SEND, &body)
}

fn run_off_the_srq(rig: &Rig, behind: Behind) -> Result<Second> {
    let mut guest = rig.attacker()?;
    expect_events(&mut guest)?;
    let mut mine = Objects::new(&mut guest)?;
    let pages = match behind {
        Behind::Memory => Some(present(rig, &mut guest, mine.pd, SHARED, 4096)?),
        _ => None,
    };
    if behind != Behind::Unasked {
        rig.hook.srqs(move |context| {
            context.size.set_log2_entries(context.size.log2_entries() + 1);
            if let Some(pages) = pages {
                context.pages = pages;
            }
        });
    }
    let lkey = mine.mr.lkey.get();
    guest.memory.write(SHARED, &receive(lkey, SLOTS, SINK))?;
    guest.memory.write(BEHIND, &receive(lkey, 0, BEYOND))?;
    guest.memory.write(RECORD, &2u32.to_be_bytes())?;
    let verb = create_srq(mine.pd, at(RECORD));
    let srq = guest.must(&verb, &[(at(SHARED), 4096)])?.srq;
    rig.hook.clear();
    for slot in 0..64 {
        guest.memory.write(SENDS + 64 * slot, &0x8000_0000u32.to_be_bytes())?;
    }
    let taker = guest.must(&taker(&mine, srq), &[(at(SENDS), 4096)])?;
    let lid = lid(&mut guest)?;
    for step in transitions(taker.qp.get(), lid, mine.pairs[0].created.qpn.get()) {
        guest.must(&step, &[])?;
    }
    mine.pairs[0].connect(&mut guest, lid, taker.qpn.get())?;
    send(&guest, &mut mine, 1)?;
    for _ in 0..2 {
        ensure!(mine.completion(&guest)?.is_none(), "the first message");
    }
    send(&guest, &mut mine, 2)?;
    if behind == Behind::Guard {
        let told = [event(&mut guest)?, event(&mut guest)?];
        let of = |kind| told.iter().find(|told| told.event_type == kind).map(|told| told.handle);
        ensure!(of(EventType::SRQ_ERR) == Some(srq) && of(EventType::QP_FATAL) == Some(taker.qp), "{told:?}");
        ensure!(guest.memory.read(BEYOND, 1)? == [0], "it was read all the same");
        return Ok(Second::Nowhere([EventType::QP_FATAL, EventType::SRQ_ERR]));
    }
    for _ in 0..2 {
        ensure!(mine.completion(&guest)?.is_none(), "the second message");
    }
    let [inside, beyond] = [guest.memory.read(SINK, 1)?[0], guest.memory.read(BEYOND, 1)?[0]];
    match (inside, beyond) {
        (2, 0) => Ok(Second::Inside),
        (1, 2) => Ok(Second::Behind),
        other => None.with_context(|| format!("messages {other:?}")),
    }
}

#[test]
fn srq_ends_at_the_entry_that_is_not_present_unless_it_is() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    ensure!(run_off_the_srq(&rig, Behind::Unasked)? == Second::Inside);
    let guarded = run_off_the_srq(&rig, Behind::Guard)?;
    ensure!(guarded == Second::Nowhere([EventType::QP_FATAL, EventType::SRQ_ERR]), "{guarded:?}");
    ensure!(run_off_the_srq(&rig, Behind::Memory)? == Second::Behind, "the entry isn't looked at");
    victim.is_well()?;
    rig.stop()
}
