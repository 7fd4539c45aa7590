//! XRC: shared receive queues are reached by number, from any target of their domain, and from no other.

use anyhow::{Context as _, Result, ensure};
use mlx4_wire::Number24;
use mlx4_wire::wqe::{Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, Opcode};
use virtio_rdma::doorbell::slot_at;
use virtio_rdma::request::domain::OpenXrcd;
use virtio_rdma::request::queue_pair::{CreateQp, ModifyQp, QpAttrMask as Mask, QpCap, QpCreated, QpType};
use virtio_rdma::request::shared_receive::{CreateSrq, SrqType};
use virtio_rdma::{Reason, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::{Guest, at};
use super::objects::{DATA, Objects, RECORDS, SPARE, create_srq, data, lid, ring, transitions};
use super::rig::{LOOT, Rig, SINK, Victim};

/// Syndromes: a request that the responder refuses as such; one that nobody answers.
const REMOTE_INVALID: u8 = 0x12;
const RETRIES_EXCEEDED: u8 = 0x15;
/// Tells in a queue pair's number that it is a target.
const TARGET: u32 = 1 << 23;
/// Where the shared receive queue and the send queue are, and the record of the first.
const SHARED: u64 = SPARE + 0x5_0000;
const SENDS: u64 = SPARE + 0x6_0000;
const RECORD: u64 = RECORDS + 0x400;
/// What the attacker has to say.
const FORGED: u8 = 0x77;

/// A shared receive queue of the victim's, with a receive in it; its domain's handle and number, and its own number.
fn shared(victim: &mut Victim) -> Result<(U32, u16, u32)> {
    let (guest, objects) = (&mut victim.guest, &victim.objects);
    let domain = guest.must(&OpenXrcd {}, &[])?;
    let segment = data(objects.mr.lkey.get(), at(SINK), LOOT);
    let receive = [&[0, 0, 0, 1], &[0; 12][..], &segment, DataSeg::TERMINATOR.as_bytes()].concat();
    guest.memory.write(SHARED, &receive)?;
    guest.memory.write(RECORD, &1u32.to_be_bytes())?;
    let verb = CreateSrq {
        xrcd: domain.xrcd,
        cq: objects.cq.cq,
        srq_type: SrqType::XRC,
        ..create_srq(objects.pd, at(RECORD))
    };
    let made = guest.must(&verb, &[(at(SHARED), 4096)])?;
    Ok((domain.xrcd, u16::try_from(domain.xrcdn.get())?, made.srqn.get()))
}

/// The two ends of an extended connection, in RESET.
#[derive(Clone, Copy)]
struct Ends {
    target: QpCreated,
    initiator: QpCreated,
}

impl Ends {
    fn new(guest: &mut Guest, mine: &Objects, domain: U32) -> Result<Self> {
        let target = CreateQp { xrcd: domain, qp_type: QpType::XRC_RECV, ..CreateQp::new_zeroed() };
        for slot in 0..64 {
            guest.memory.write(SENDS + 64 * slot, &0x8000_0000u32.to_be_bytes())?;
        }
        let initiator = CreateQp {
            pd: U32::new(mine.pd),
            uar: U32::new(mine.uar),
            send_cq: mine.cq.cq,
            qp_type: QpType::XRC_SEND,
            log2_send_wqes: 6,
            log2_send_stride: 6,
            cap: QpCap { max_send_wr: U32::new(16), max_send_sge: U32::new(1), ..QpCap::new_zeroed() },
            ..CreateQp::new_zeroed()
        };
        Ok(Self {
            target: guest.must(&target, &[])?,
            initiator: guest.must(&initiator, &[(at(SENDS), 4096)])?,
        })
    }

    /// Takes the target to RTR and the initiator to RTS.
    fn connect(&self, guest: &mut Guest) -> Result<()> {
        let lid = lid(guest)?;
        let [init, rtr, _] = transitions(self.target.qp.get(), lid, self.initiator.qpn.get());
        for step in [init, rtr].into_iter().chain(self.steps(lid, self.target.qpn.get())) {
            guest.must(&step, &[])?;
        }
        Ok(())
    }

    /// The changes that connect the initiator to a target.
    fn steps(&self, lid: u16, to: u32) -> [ModifyQp; 3] {
        transitions(self.initiator.qp.get(), lid, to).map(|step| {
            // What only a receiver has.
            let attr_mask = step.attr_mask.without(Mask::MAX_DEST_RD_ATOMIC).without(Mask::MIN_RNR_TIMER);
            ModifyQp { attr_mask, ..step }
        })
    }

    /// The initiator sends a forged message to a shared receive queue. The syndrome.
    fn send(&self, guest: &Guest, mine: &mut Objects, srqn: u32) -> Result<Option<u8>> {
        guest.memory.write(DATA, &[FORGED; LOOT as usize])?;
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::new().with_opcode(Opcode::SEND);
        ctrl.size = CtrlSize::new().with_units(2);
        ctrl.flags = CtrlFlags::new().with_completion(Completion::ALWAYS).with_remote_srqn(srqn);
        guest.memory.write(SENDS + 16, &data(mine.mr.lkey.get(), at(DATA), LOOT))?;
        guest.memory.write(SENDS, ctrl.as_bytes())?;
        ring(guest, slot_at(self.initiator.send.offset.get()).context("no slot")?, 0)?;
        mine.completion(guest)
    }
}

/// The victim has a forged message.
fn is_forged(victim: &mut Victim) -> Result<()> {
    ensure!(victim.objects.completion(&victim.guest)?.is_none());
    ensure!(victim.guest.memory.read(SINK, LOOT as usize)? == [FORGED; LOOT as usize]);
    Ok(())
}

/// The attacker's own connection sends to the victim's shared receive queue. The syndrome.
fn send_to(rig: &Rig, srqn: u32, in_domain: Option<u16>) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let domain = guest.must(&OpenXrcd {}, &[])?.xrcd;
    let ends = Ends::new(&mut guest, &mine, domain)?;
    if let Some(number) = in_domain {
        rig.hook.queue_pair(ends.target.qpn.get(), move |mailbox| mailbox.context.xrcd.set_xrcd(number));
    }
    ends.connect(&mut guest)?;
    rig.hook.clear();
    ends.send(&guest, &mut mine, srqn)
}

#[test]
fn shared_receive_queue_of_another_domain_is_not_reached_unless_the_context_names_it() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (_, domain, srqn) = shared(&mut victim)?;
    let done = send_to(&rig, srqn, None)?;
    ensure!(done == Some(REMOTE_INVALID), "{done:x?}");
    victim.is_well()?;
    let done = send_to(&rig, srqn, Some(domain))?;
    ensure!(done.is_none(), "the domain isn't what protects: {done:x?}");
    is_forged(&mut victim)?;
    rig.stop()
}

#[test]
fn domain_of_another_guest_s_extended_connections_can_not_be_named() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let theirs = victim.guest.must(&OpenXrcd {}, &[])?;
    let mut guest = rig.attacker()?;
    for domain in [theirs.xrcd, theirs.xrcdn, U32::new(theirs.xrcd.get() | 1 << 31)] {
        let target = CreateQp { xrcd: domain, qp_type: QpType::XRC_RECV, ..CreateQp::new_zeroed() };
        guest.refused(&target, &[], Reason::BAD_HANDLE)?;
    }
    victim.is_well()?;
    rig.stop()
}

/// The attacker's initiator sends into the victim's connection; the context names its target so. The syndrome.
fn join(rig: &Rig, to: u32, srqn: u32) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let domain = guest.must(&OpenXrcd {}, &[])?.xrcd;
    let ends = Ends::new(&mut guest, &mine, domain)?;
    rig.hook.queue_pair(ends.initiator.qpn.get(), move |mailbox| {
        mailbox.context.remote_qpn = Number24::wrapping(to);
    });
    ends.connect(&mut guest)?;
    rig.hook.clear();
    ends.send(&guest, &mut mine, srqn)
}

#[test]
fn message_can_not_be_put_into_an_extended_connection_of_others_unless_the_context_names_its_target()
-> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (domain, _, srqn) = shared(&mut victim)?;
    let theirs = Ends::new(&mut victim.guest, &victim.objects, domain)?;
    theirs.connect(&mut victim.guest)?;
    let mut guest = rig.attacker()?;
    let mine = Objects::new(&mut guest)?;
    let domain = guest.must(&OpenXrcd {}, &[])?.xrcd;
    let ends = Ends::new(&mut guest, &mine, domain)?;
    let (lid, target) = (lid(&mut guest)?, theirs.target.qpn.get());
    ensure!(target & TARGET != 0, "{target:#x} doesn't tell that it is a target");
    let [init, ..] = ends.steps(lid, 0);
    guest.must(&init, &[])?;
    // With and without the bit, whatever it is that a card compares.
    for to in [target, target & !TARGET] {
        let [_, rtr, _] = ends.steps(lid, to);
        guest.refused(&rtr, &[], Reason::TAKEN)?;
    }
    drop(guest);
    victim.is_well()?;
    let done = join(&rig, target & !TARGET, srqn)?;
    ensure!(done == Some(RETRIES_EXCEEDED), "the model compares whole numbers: {done:x?}");
    victim.is_well()?;
    let done = join(&rig, target, srqn)?;
    ensure!(done.is_none(), "the number isn't what protects: {done:x?}");
    is_forged(&mut victim)?;
    rig.stop()
}
