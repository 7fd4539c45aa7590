//! What a queue pair's context allows its work requests: loopback, lengths, operations.

use anyhow::{Result, ensure};
use mlx4_wire::wqe::Opcode;

use super::guest::{Guest, at};
use super::objects::{DATA, Objects, data, lid, remote, ring};
use super::rig::{LOOT, Rig, SINK, Victim};

/// Syndromes: a work request that is none of the service; nobody answers.
const LOCAL_OPERATION: u8 = 0x02;
const RETRIES_EXCEEDED: u8 = 0x15;

/// The attacker's queue pair is connected to a LID that nobody has, and to a number of its own port. The syndrome.
fn send_to_nowhere(rig: &Rig, looped: bool) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let [near, far] = mine.pairs;
    if looped {
        rig.hook.queue_pair(near.created.qpn.get(), |mailbox| {
            mailbox.context.primary_path.flags.set_force_loopback(true);
        });
    }
    let lid = lid(&mut guest)?;
    near.connect(&mut guest, lid + 100, far.created.qpn.get())?;
    far.connect(&mut guest, lid, near.created.qpn.get())?;
    rig.hook.clear();
    mine.write(&guest, mine.mr.lkey.get(), mine.mr.rkey.get(), LOOT)?;
    mine.completion(&guest)
}

#[test]
fn packets_to_a_lid_that_nobody_has_are_lost_unless_loopback_is_forced() -> Result<()> {
    let rig = Rig::start()?;
    let done = send_to_nowhere(&rig, false)?;
    ensure!(done == Some(RETRIES_EXCEEDED), "nobody answered, and it ended in {done:x?}");
    let done = send_to_nowhere(&rig, true)?;
    ensure!(done.is_none(), "the bit isn't looked at: {done:x?}");
    rig.stop()
}

/// The attacker posts a request of two slots' length where slots are as long as its ring says. The syndrome, and
/// whether it was carried out.
fn write_by_two_slots(rig: &Rig, long_slots: bool) -> Result<(Option<u8>, bool)> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    if long_slots {
        let sender = mine.pairs[0].created.qpn.get();
        rig.hook.queue_pair(sender, |mailbox| {
            // Half as many, twice as long: the receive queue stays where it is.
            let size = mailbox.context.sq_size;
            mailbox.context.sq_size = size
                .with_log2_entries(size.log2_entries() - 1)
                .with_log2_stride_less_4(size.log2_stride_less_4() + 1);
        });
    }
    mine.connect(&mut guest)?;
    rig.hook.clear();
    guest.memory.write(DATA, &[0x44; 64])?;
    // Eight bytes by each of five pieces, of which the last ones lie in the second slot.
    let pieces = (0..5).flat_map(|_| data(mine.mr.lkey.get(), at(DATA), 8)).collect();
    mine.post(&guest, 0, Opcode::RDMA_WRITE, &remote(mine.mr.rkey.get(), at(SINK), pieces))?;
    let done = mine.completion(&guest)?;
    Ok((done, guest.memory.read(SINK, 40)? == [0x44; 40]))
}

#[test]
fn work_request_longer_than_its_slot_is_refused_unless_the_context_says_longer_slots() -> Result<()> {
    let rig = Rig::start()?;
    let (done, written) = write_by_two_slots(&rig, false)?;
    ensure!(done == Some(LOCAL_OPERATION) && !written, "{done:x?}, written: {written}");
    let (done, written) = write_by_two_slots(&rig, true)?;
    ensure!(done.is_none() && written, "the stride isn't looked at: {done:x?}");
    rig.stop()
}

/// Posts an operation with a body of one remote and one data segment, from a queue pair that is new.
fn ended(guest: &mut Guest, opcode: Opcode) -> Result<Option<u8>> {
    let mut mine = Objects::connected(guest)?;
    let body = remote(mine.mr.rkey.get(), at(SINK), data(mine.mr.lkey.get(), at(DATA), 8));
    mine.post(guest, 0, opcode, &body)?;
    let done = mine.completion(guest)?;
    guest.reset()?;
    Ok(done)
}

#[test]
fn operations_that_no_service_of_a_guest_has_are_refused() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    let known = [
        Opcode::NOP,
        Opcode::SEND_INVALIDATE,
        Opcode::RDMA_WRITE,
        Opcode::RDMA_WRITE_IMM,
        Opcode::SEND,
        Opcode::SEND_IMM,
        Opcode::RDMA_READ,
        Opcode::ATOMIC_CS,
        Opcode::ATOMIC_FA,
        Opcode::MASKED_ATOMIC_CS,
        Opcode::MASKED_ATOMIC_FA,
        Opcode::BIND_MW,
        Opcode::FAST_REGISTER,
        Opcode::LOCAL_INVALIDATE,
    ];
    // Large sends, those of other families, and codes without a name.
    for opcode in (0..32).map(Opcode).filter(|opcode| !known.contains(opcode)) {
        let done = ended(&mut guest, opcode)?;
        ensure!(done == Some(LOCAL_OPERATION), "{opcode:?} ended in {done:x?}");
    }
    ensure!(ended(&mut guest, Opcode::RDMA_WRITE)?.is_none());
    victim.is_well()?;
    rig.stop()
}

/// A ring that no one has filled: what was there before is not posted.
#[test]
fn doorbell_without_a_request_does_nothing() -> Result<()> {
    let rig = Rig::start()?;
    let mut guest = rig.attacker()?;
    let mut mine = Objects::connected(&mut guest)?;
    let executed = rig.counters()?.send_wqes.get();
    ring(&guest, mine.pairs[0].slot, u64::MAX)?;
    mine.works(&guest)?;
    ensure!(rig.counters()?.send_wqes.get() == executed + 1, "something was executed that nobody has posted");
    rig.stop()
}
