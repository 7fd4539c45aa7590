//! XRC: shared receive queues are reached by number, from any target of their domain, and from no other.

use anyhow::{Context as _, Result, ensure};
use mlx4_wire::wqe::{Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, Opcode};
use virtio_rdma::doorbell::slot_at;
use virtio_rdma::request::domain::OpenXrcd;
use virtio_rdma::request::queue_pair::{CreateQp, ModifyQp, QpAttrMask as Mask, QpCap, QpType};
use virtio_rdma::request::shared_receive::{CreateSrq, SrqType};
use virtio_rdma::{Reason, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::guest::{Guest, at};
use super::objects::{DATA, Objects, RECORDS, SPARE, data, lid, ring, transitions};
use super::rig::{LOOT, Rig, SINK, Victim};

/// The syndrome of a request that the responder refuses as such.
const REMOTE_INVALID: u8 = 0x12;
/// Where the shared receive queue and the send queue are, and the record of the first.
const SHARED: u64 = SPARE + 0x5_0000;
const SENDS: u64 = SPARE + 0x6_0000;
const RECORD: u64 = RECORDS + 0x400;
/// What the attacker has to say.
const FORGED: u8 = 0x77;

/// A shared receive queue of the victim's, with a receive in it; its domain's number and its own.
fn shared(victim: &mut Victim) -> Result<(u16, u32)> {
    let (guest, objects) = (&mut victim.guest, &victim.objects);
    let domain = guest.must(&OpenXrcd {}, &[])?;
    let segment = data(objects.mr.lkey.get(), at(SINK), LOOT);
    let receive = [&[0, 0, 0, 1], &[0; 12][..], &segment, DataSeg::TERMINATOR.as_bytes()].concat();
    guest.memory.write(SHARED, &receive)?;
    guest.memory.write(RECORD, &1u32.to_be_bytes())?;
    let verb = CreateSrq {
        pd: U32::new(objects.pd),
        xrcd: domain.xrcd,
        cq: objects.cq.cq,
        srq_type: SrqType::XRC,
        log2_wqes: 6,
        log2_stride: 6,
        max_wr: U32::new(32),
        max_sge: U32::new(1),
        record: U64::new(at(RECORD)),
        ..CreateSrq::new_zeroed()
    };
    let made = guest.must(&verb, &[(at(SHARED), 4096)])?;
    Ok((u16::try_from(domain.xrcdn.get())?, made.srqn.get()))
}

/// The attacker's own connection sends to the victim's shared receive queue. The syndrome.
fn send_to(rig: &Rig, srqn: u32, in_domain: Option<u16>) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let domain = guest.must(&OpenXrcd {}, &[])?.xrcd;
    let target = CreateQp { xrcd: domain, qp_type: QpType::XRC_RECV, ..CreateQp::new_zeroed() };
    let target = guest.must(&target, &[])?;
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
    let initiator = guest.must(&initiator, &[(at(SENDS), 4096)])?;
    if let Some(number) = in_domain {
        rig.hook.queue_pair(target.qpn.get(), move |mailbox| mailbox.context.xrcd.set_xrcd(number));
    }
    connect(&mut guest, (target.qp, target.qpn), (initiator.qp, initiator.qpn))?;
    rig.hook.clear();
    guest.memory.write(DATA, &[FORGED; LOOT as usize])?;
    let mut ctrl = CtrlSeg::new_zeroed();
    ctrl.opcode = CtrlOpcode::new().with_opcode(Opcode::SEND);
    ctrl.size = CtrlSize::new().with_units(2);
    ctrl.flags = CtrlFlags::new().with_completion(Completion::ALWAYS).with_remote_srqn(srqn);
    guest.memory.write(SENDS + 16, &data(mine.mr.lkey.get(), at(DATA), LOOT))?;
    guest.memory.write(SENDS, ctrl.as_bytes())?;
    ring(&guest, slot_at(initiator.send.offset.get()).context("no slot")?, 0)?;
    mine.completion(&guest)
}

/// Takes a target to RTR and an initiator to RTS.
fn connect(guest: &mut Guest, target: (U32, U32), initiator: (U32, U32)) -> Result<()> {
    let lid = lid(guest)?;
    let [init, rtr, _] = transitions(target.0.get(), lid, initiator.1.get());
    for step in [init, rtr] {
        guest.must(&step, &[])?;
    }
    for step in transitions(initiator.0.get(), lid, target.1.get()) {
        // What only a receiver has.
        let attr_mask = step.attr_mask.without(Mask::MAX_DEST_RD_ATOMIC).without(Mask::MIN_RNR_TIMER);
        guest.must(&ModifyQp { attr_mask, ..step }, &[])?;
    }
    Ok(())
}

#[test]
fn shared_receive_queue_of_another_domain_is_not_reached_unless_the_context_names_it() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (domain, srqn) = shared(&mut victim)?;
    let done = send_to(&rig, srqn, None)?;
    ensure!(done == Some(REMOTE_INVALID), "{done:x?}");
    victim.is_well()?;
    let done = send_to(&rig, srqn, Some(domain))?;
    ensure!(done.is_none(), "the domain isn't what protects: {done:x?}");
    ensure!(victim.objects.completion(&victim.guest)?.is_none());
    ensure!(victim.guest.memory.read(SINK, LOOT as usize)? == [FORGED; LOOT as usize]);
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
