//! The end of a guest, with one of the commands in it made to fail: what the HCA may still use stays mapped until its
//! next reset, and nobody else notices.

use anyhow::{Context as _, Result, bail, ensure};
use integration::patience::until;
use mlx4_wire::cmd::{Opcode, Status};
use virtio_rdma::request::datagram::AttachMcast;
use virtio_rdma::{Reason, U16};
use zerocopy::FromZeros;

use super::datagram::{Datagrams, QKEY};
use super::guest::{Guest, at};
use super::objects::{
    DATA, LOCAL_PROTECTION, Objects, RECORDS, SPARE, create_cq, create_srq, data, reg_mr, remote,
};
use super::rig::{Rig, SINK, Victim};

/// The commands of a guest's end, in the order in which they come.
const IN_ORDER: [Opcode; 5] =
    [Opcode::WRITE_MCG, Opcode::TO_RST_QP, Opcode::HW2SW_SRQ, Opcode::HW2SW_CQ, Opcode::HW2SW_MPT];

/// A guest that has one of everything, each in use.
fn one_of_everything(rig: &Rig) -> Result<(Guest, Objects)> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::connected(&mut guest)?;
    mine.works(&guest)?;
    let group = Datagrams::new(&mut guest, &mine, 0)?;
    group.start(&mut guest, QKEY, 0)?;
    let mut mgid = [0; 16];
    (mgid[0], mgid[15]) = (0xff, 7);
    let attach =
        AttachMcast { qp: group.created.qp, mlid: U16::new(0xc007), mgid, ..AttachMcast::new_zeroed() };
    guest.must(&attach, &[])?;
    let shared = create_srq(mine.pd, at(RECORDS + 0x300));
    guest.must(&shared, &[(at(SPARE + 0x10_0000), 4096)])?;
    Ok((guest, mine))
}

/// The bus address of an offset of a guest's memory, from its CQ.
fn bus(rig: &Rig, mine: &Objects, offset: u64) -> Result<u64> {
    let cq: mlx4_wire::ctx::cq::CqContext =
        rig.hook.last(Opcode::SW2HW_CQ, mine.cq.cqn.get()).context("the CQ wasn't seen")?;
    Ok(cq.record_base() - RECORDS + offset)
}

/// Looks whether the HCA reaches memory at a bus address, by regions of its own that name it. It stays while others
/// come and go: so nothing of its own comes to be at their addresses.
struct Probe(Guest);

impl Probe {
    fn new(rig: &Rig) -> Result<Self> {
        Ok(Self(rig.guest("probe")?))
    }

    fn reaches(&mut self, rig: &Rig, address: u64) -> Result<bool> {
        let Self(guest) = self;
        // The device may have been lost since it looked last.
        guest.generation = guest.config()?.generation.get();
        guest.reset()?;
        let mut mine = Objects::connected(guest)?;
        rig.hook.regions(|entry| entry.flags.set_physical(true));
        let window = guest.must(&reg_mr(mine.pd, address, 4096), &[(at(DATA), 4096)])?;
        rig.hook.clear();
        let body = remote(mine.mr.rkey.get(), at(SINK), data(window.lkey.get(), address, 8));
        mine.post(guest, 0, mlx4_wire::wqe::Opcode::RDMA_WRITE, &body)?;
        let reached = match mine.completion(guest)? {
            None => true,
            Some(LOCAL_PROTECTION) => false,
            other => bail!("a look at {address:#x} ended in {other:x?}"),
        };
        guest.reset()?;
        Ok(reached)
    }
}

#[test]
fn memory_of_a_guest_that_ends_well_is_not_reached_any_more() -> Result<()> {
    let rig = Rig::start()?;
    let mut probe = Probe::new(&rig)?;
    let mut victim = Victim::new(&rig)?;
    let (guest, mine) = one_of_everything(&rig)?;
    let address = bus(&rig, &mine, DATA)?;
    ensure!(probe.reaches(&rig, address)?, "the look sees nothing");
    let before = rig.hook.commands().len();
    drop(guest);
    rig.gone("attacker")?;
    let commands = rig.hook.commands().split_off(before);
    ensure!(rig.quarantined_bytes() == 0 && !probe.reaches(&rig, address)?, "memory stays mapped");
    // A queue pair leaves its groups before it goes; queue pairs go before what they use, and regions last.
    let last = |opcode: &Opcode| commands.iter().rposition(|seen| seen == opcode);
    let places = IN_ORDER.map(|opcode| last(&opcode));
    ensure!(
        places[0].is_some() && places.is_sorted_by(|a, b| a < b),
        "{places:?} of {IN_ORDER:?}: {commands:?}"
    );
    victim.is_well()?;
    rig.stop()
}

/// Ends a guest while a command fails, and looks what comes of it.
fn fail_at(rig: &Rig, probe: &mut Probe, opcode: Opcode) -> Result<()> {
    let victim = Victim::new(rig)?;
    let (guest, mine) = one_of_everything(rig)?;
    // The region's memory, or the one that the rings and records of queues are in.
    let place = if opcode == Opcode::HW2SW_MPT { DATA } else { RECORDS };
    let address = bus(rig, &mine, place)?;
    rig.hook.fail(opcode, Status::INTERNAL_ERR);
    drop(guest);
    rig.gone("attacker")?;
    ensure!(rig.hook.has_failed(), "nothing failed");
    // What only a group may still name uses no memory of the guest's.
    let kept = opcode != Opcode::WRITE_MCG;
    ensure!((rig.quarantined_bytes() != 0) == kept, "{} bytes are kept", rig.quarantined_bytes());
    ensure!(
        probe.reaches(rig, address)? == kept,
        "kept, or not, but {address:#x} isn't what it is said to be"
    );
    nobody_else_notices(rig, victim)?;
    ends_with_the_reset(rig, probe, address)
}

/// The victim goes on, and another guest takes the socket of the one that has gone. Then both go.
fn nobody_else_notices(rig: &Rig, mut victim: Victim) -> Result<()> {
    victim.is_well()?;
    let mut next = rig.attacker()?;
    Objects::connected(&mut next)?.works(&next)?;
    drop((next, victim));
    for name in ["attacker", "victim"] {
        rig.gone(name)?;
    }
    Ok(())
}

/// Memory that was kept is mapped no more after the HCA's reset.
fn ends_with_the_reset(rig: &Rig, probe: &mut Probe, address: u64) -> Result<()> {
    rig.fail_hca()?;
    until("nothing is kept", || Ok(rig.quarantined_bytes() == 0))?;
    ensure!(!probe.reaches(rig, address)?, "memory is still mapped after the reset");
    Ok(())
}

/// Has the HCA say no to an object that it has made all the same, and ends the guest.
fn open_at(rig: &Rig, probe: &mut Probe, opcode: Opcode) -> Result<()> {
    let victim = Victim::new(rig)?;
    let mut guest = rig.attacker()?;
    let mine = Objects::connected(&mut guest)?;
    let address = bus(rig, &mine, SPARE)?;
    let (page, record) = ([(at(SPARE), 4096)], at(SPARE) + 0x2000);
    let failed = Reason::COMMAND_FAILED;
    rig.hook.fail(opcode, Status::INTERNAL_ERR);
    match opcode {
        Opcode::SW2HW_MPT => guest.refused(&reg_mr(mine.pd, at(SPARE), 4096), &page, failed)?,
        Opcode::SW2HW_CQ => guest.refused(&create_cq(mine.uar, mine.entries, record), &page, failed)?,
        _ => guest.refused(&create_srq(mine.pd, record), &page, failed)?,
    }
    ensure!(rig.hook.has_failed(), "nothing failed");
    drop(guest);
    rig.gone("attacker")?;
    ensure!(rig.quarantined_bytes() != 0 && probe.reaches(rig, address)?, "the memory isn't kept");
    nobody_else_notices(rig, victim)?;
    ends_with_the_reset(rig, probe, address)
}

#[test]
fn memory_of_an_object_that_the_hca_may_have_made_stays_mapped_until_the_reset() -> Result<()> {
    let rig = Rig::start()?;
    let mut probe = Probe::new(&rig)?;
    for opcode in [Opcode::SW2HW_MPT, Opcode::SW2HW_CQ, Opcode::SW2HW_SRQ] {
        open_at(&rig, &mut probe, opcode).with_context(|| format!("{opcode} fails"))?;
    }
    rig.stop()
}

#[test]
fn memory_stays_mapped_until_the_reset_whichever_command_of_a_guest_s_end_fails() -> Result<()> {
    let rig = Rig::start()?;
    let mut probe = Probe::new(&rig)?;
    for opcode in IN_ORDER {
        fail_at(&rig, &mut probe, opcode).with_context(|| format!("{opcode} fails"))?;
    }
    rig.stop()
}
