//! Connections of others: packets name the queue pair that they are for, and guests share the port's LID.

use anyhow::{Result, ensure};
use mlx4_wire::Number24;
use mlx4_wire::wqe::{DataSeg, Opcode};
use virtio_rdma::Reason;
use virtio_rdma::event::EventType;
use virtio_rdma::request::queue_pair::{QpState, QueryQp};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::at;
use super::objects::{DATA, Objects, RECORDS, data, lid, transitions};
use super::rig::{LOOT, Rig, SINK, Victim, event, expect_events};

/// Where the receive queue of a queue pair is in its ring, and the record of the first queue pair.
const RECEIVES: u64 = 64 * 64;
const RECORD: u64 = RECORDS + 64;
/// What the attacker has to say.
const FORGED: u8 = 0x66;

/// The victim waits for a message of its own other end.
fn expect_message(victim: &Victim) -> Result<()> {
    let receive = data(victim.objects.mr.lkey.get(), at(SINK), LOOT);
    let receive = [&receive[..], DataSeg::TERMINATOR.as_bytes()].concat();
    victim.guest.memory.write(victim.objects.pairs[0].ring + RECEIVES, &receive)?;
    victim.guest.memory.write(RECORD, &1u32.to_be_bytes())
}

#[test]
fn message_can_not_be_put_into_a_connection_of_others_unless_the_context_names_its_end() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    expect_message(&victim)?;
    let theirs = victim.objects.pairs[0].created.qpn.get();
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let lid = lid(&mut guest)?;
    let [init, rtr, _] = transitions(mine.pairs[0].created.qp.get(), lid, theirs);
    guest.must(&init, &[])?;
    guest.refused(&rtr, &[], Reason::TAKEN)?;
    ensure!(victim.is_untouched()?, "the victim's memory was written");

    // The context says what the request must not: then the next PSN is all that is to be guessed.
    guest.reset()?;
    mine = Objects::new(&mut guest)?;
    rig.hook.queue_pair(mine.pairs[0].created.qpn.get(), move |mailbox| {
        mailbox.context.remote_qpn = Number24::wrapping(theirs);
    });
    mine.connect(&mut guest)?;
    rig.hook.clear();
    guest.memory.write(DATA, &[FORGED; LOOT as usize])?;
    mine.post(&guest, 0, Opcode::SEND, &data(mine.mr.lkey.get(), at(DATA), LOOT))?;
    let done = mine.completion(&guest)?;
    ensure!(done.is_none(), "the number isn't what protects: {done:x?}");
    ensure!(victim.objects.completion(&victim.guest)?.is_none());
    ensure!(victim.guest.memory.read(SINK, LOOT as usize)? == [FORGED; LOOT as usize]);
    rig.stop()
}

#[test]
fn guest_that_waits_for_a_victim_to_connect_is_cut_off_when_it_does() -> Result<()> {
    let rig = Rig::start()?;
    let mut theirs = rig.guest("victim")?;
    let mut objects = Objects::new(&mut theirs)?;
    let mut guest = rig.attacker()?;
    expect_events(&mut guest)?;
    let mut mine = Objects::new(&mut guest)?;
    let lid = lid(&mut guest)?;
    let ambush = mine.pairs[0];
    ambush.connect(&mut guest, lid, objects.pairs[0].created.qpn.get())?;
    objects.connect(&mut theirs)?;
    let told = event(&mut guest)?;
    ensure!((told.event_type, told.handle) == (EventType::QP_FATAL, ambush.created.qp), "{told:?}");
    let now = guest.must(&QueryQp { qp: ambush.created.qp, ..QueryQp::new_zeroed() }, &[])?;
    ensure!(now.attributes.qp_state == QpState::ERR, "{:?}", now.attributes.qp_state);
    mine.post(&guest, 0, Opcode::SEND, &data(mine.mr.lkey.get(), at(DATA), LOOT))?;
    ensure!(mine.completion(&guest)?.is_some(), "it still sends");
    objects.works(&theirs)?;
    rig.stop()
}

#[test]
fn guests_connect_to_each_other_in_either_order() -> Result<()> {
    let rig = Rig::start()?;
    for first in [0, 1] {
        let mut guests = [rig.guest("attacker")?, rig.guest("victim")?];
        let mut objects = Vec::new();
        for guest in &mut guests {
            objects.push(Objects::new(guest)?);
        }
        let lid = lid(&mut guests[0])?;
        for end in [first, 1 - first] {
            let to = objects[1 - end].pairs[0].created.qpn.get();
            objects[end].pairs[0].connect(&mut guests[end], lid, to)?;
        }
        let (near, far) = (objects[0].mr.lkey.get(), objects[1].mr.rkey.get());
        guests[0].memory.write(DATA, &[FORGED; LOOT as usize])?;
        objects[0].write(&guests[0], near, far, LOOT)?;
        ensure!(objects[0].completion(&guests[0])?.is_none());
        ensure!(guests[1].memory.read(SINK, LOOT as usize)? == [FORGED; LOOT as usize]);
    }
    rig.stop()
}
