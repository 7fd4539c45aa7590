//! Datagrams: service type, Q_Keys, P_Keys, address handles of other domains.

use anyhow::{Result, ensure};
use mlx4_wire::U32 as Be32;
use mlx4_wire::ctx::path::FORCE_SGID;
use mlx4_wire::ctx::qp::ServiceType;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::datagram::CreateAh;
use virtio_rdma::request::query::{QueryGid, QueryPort};
use virtio_rdma::request::queue_pair::{AhAttributes, CreateQp, QpType};
use virtio_rdma::{Reason, U16, U32};
use zerocopy::FromZeros;

use super::datagram::{
    BUFFER, Datagrams, GRH, QKEY, completion, create, datagram, raw_packet, transitions, vector,
};
use super::guest::{Guest, at};
use super::objects::{DATA, Objects, RECORDS, SPARE, data, lid};
use super::rig::{Rig, SINK, Victim};

/// The syndrome of a work request that is none of the service.
const LOCAL_OPERATION: u8 = 0x02;
/// The queue pair of general management.
const GENERAL_MANAGEMENT: u32 = 1;
/// Its Q_Key.
const MANAGEMENT_QKEY: u32 = 0x8001_0000;
/// Where an address vector has the index of the source GID.
const SGID_INDEX: usize = 9;
/// Bytes of a datagram's payload here: a MAD.
const PAYLOAD: u32 = 256;

/// Violations of Q_Keys that the port has counted.
fn bad_qkeys(guest: &mut Guest) -> Result<u32> {
    Ok(guest.must(&QueryPort { port: 1, ..QueryPort::new_zeroed() }, &[])?.qkey_viol_cntr.get())
}

/// Violations of P_Keys that the port has counted.
fn bad_pkeys(guest: &mut Guest) -> Result<u32> {
    Ok(guest.must(&QueryPort { port: 1, ..QueryPort::new_zeroed() }, &[])?.bad_pkey_cntr.get())
}

#[test]
fn queue_pairs_of_other_services_than_a_guest_s_are_refused() -> Result<()> {
    let rig = Rig::start()?;
    let mut guest = rig.attacker()?;
    let mine = Objects::new(&mut guest)?;
    // QP0, QP1, raw IPv6, raw Ethertype, raw packets, and everything that has no name.
    for code in (0..=u8::MAX).filter(|code| ![2, 3, 4, 9, 10].contains(code)) {
        let verb = CreateQp { qp_type: QpType(code), ..create(&mine, 0) };
        let reason = guest.ask(&verb, &[(at(SPARE), 0x3000)], SegmentMode::DIRECT)?.err();
        ensure!(reason == Some(Reason::BAD_TYPE), "type {code}: {reason:?}");
    }
    rig.stop()
}

/// The attacker posts a packet whose headers it has written, from a queue pair that isn't its own. The syndrome, and
/// from whom the victim has received something.
fn forge(rig: &Rig, victim: &mut Victim, raw: bool) -> Result<(Option<u8>, Option<u32>)> {
    let mut theirs = Datagrams::new(&mut victim.guest, &victim.objects, 0)?;
    theirs.start(&mut victim.guest, QKEY, 0)?;
    theirs.post_receive(&victim.guest, &victim.objects)?;

    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let mut pair = Datagrams::new(&mut guest, &mine, 0)?;
    if raw {
        rig.hook.queue_pair(pair.qpn(), |mailbox| mailbox.context.flags.set_service(ServiceType::MLX));
    }
    pair.start(&mut guest, QKEY, 0)?;
    rig.hook.clear();
    let payload = data(mine.mr.lkey.get(), at(DATA), PAYLOAD);
    let packet = raw_packet(lid(&mut guest)?, theirs.qpn(), GENERAL_MANAGEMENT, QKEY, &payload)?;
    pair.post(&guest, &packet)?;
    let (_, syndrome) = completion(&guest, &mut mine)?;
    // A datagram to the own port has arrived when its send completes.
    let received = victim.objects.take(&victim.guest)?;
    let from = received.map(|bytes| u32::from_be_bytes([0, bytes[9], bytes[10], bytes[11]]));
    Ok((syndrome, from))
}

#[test]
fn packet_with_forged_headers_is_no_datagram_unless_the_service_is_that_of_special_queue_pairs() -> Result<()>
{
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let (syndrome, received) = forge(&rig, &mut victim, false)?;
    ensure!(syndrome == Some(LOCAL_OPERATION) && received.is_none(), "{syndrome:x?}, from {received:x?}");
    victim.is_well()?;
    drop(victim);
    let mut victim = Victim::new(&rig)?;
    let (syndrome, received) = forge(&rig, &mut victim, true)?;
    ensure!(syndrome.is_none(), "the service isn't looked at: {syndrome:x?}");
    ensure!(received == Some(GENERAL_MANAGEMENT), "received from {received:x?}");
    rig.stop()
}

/// The attacker sends to QP1 with "the queue pair's own Q_Key". How many Q_Keys the port refused.
fn reach_management(rig: &Rig, privileged: bool) -> Result<u32> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let mut pair = Datagrams::new(&mut guest, &mine, 0)?;
    if privileged {
        rig.hook.queue_pair(pair.qpn(), |mailbox| mailbox.context.qkey = Be32::new(MANAGEMENT_QKEY));
    }
    pair.start(&mut guest, MANAGEMENT_QKEY & !(1 << 31), 0)?;
    rig.hook.clear();
    let before = bad_qkeys(&mut guest)?;
    let mad = data(mine.mr.lkey.get(), at(SINK), PAYLOAD);
    pair.send(&mut guest, &mine.clone(), GENERAL_MANAGEMENT, MANAGEMENT_QKEY, &mad)?;
    let (_, syndrome) = completion(&guest, &mut mine)?;
    ensure!(syndrome.is_none(), "a datagram ended in {syndrome:x?}");
    Ok(bad_qkeys(&mut guest)? - before)
}

#[test]
fn datagram_to_qp1_has_the_wrong_q_key_unless_the_context_s_has_the_top_bit() -> Result<()> {
    let rig = Rig::start()?;
    let mut guest = rig.attacker()?;
    let mine = Objects::new(&mut guest)?;
    let pair = Datagrams::new(&mut guest, &mine, 0)?;
    for qkey in [1 << 31, MANAGEMENT_QKEY, u32::MAX] {
        let [init, ..] = transitions(pair.created.qp, qkey, 0);
        guest.refused(&init, &[], Reason::PRIVILEGED_QKEY)?;
    }
    drop(guest);
    ensure!(reach_management(&rig, false)? == 1, "the Q_Key was taken, or not looked at");
    let datagrams = rig.counters()?.datagrams.get();
    ensure!(reach_management(&rig, true)? == 0, "the context's Q_Key isn't looked at");
    ensure!(rig.counters()?.datagrams.get() > datagrams, "QP1 has received nothing");
    rig.stop()
}

/// A queue pair without a partition listens to one of the default partition. Whether it hears, and how many P_Keys
/// the port refused.
fn listen(rig: &Rig, unchecked: bool) -> Result<(bool, u32)> {
    // Behind the last P_Key of the table; there is none.
    const NO_PKEY: u16 = 5;
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let mut speaker = Datagrams::new(&mut guest, &mine, 0)?;
    speaker.start(&mut guest, QKEY, 0)?;
    let mut listener = Datagrams::new(&mut guest, &mine, 1)?;
    if unchecked {
        rig.hook.queue_pair(listener.qpn(), |mailbox| {
            mailbox.context.primary_path.pkey_check.set_disable(true);
        });
    }
    listener.start(&mut guest, QKEY, NO_PKEY)?;
    rig.hook.clear();
    let heard = listener.post_receive(&guest, &mine)?;
    guest.memory.write(SINK, &[0x33; PAYLOAD as usize])?;
    let before = bad_pkeys(&mut guest)?;
    let payload = data(mine.mr.lkey.get(), at(SINK), PAYLOAD);
    speaker.send(&mut guest, &mine.clone(), listener.qpn(), QKEY, &payload)?;
    // Two completions if it was heard: the receive's is the first.
    let (_, syndrome) = completion(&guest, &mut mine)?;
    ensure!(syndrome.is_none(), "a datagram ended in {syndrome:x?}");
    let bytes = guest.memory.read(heard, PAYLOAD as usize)?;
    Ok((bytes == [0x33; PAYLOAD as usize], bad_pkeys(&mut guest)? - before))
}

#[test]
fn datagram_of_another_partition_is_dropped_unless_the_p_key_check_is_off() -> Result<()> {
    let rig = Rig::start()?;
    ensure!(listen(&rig, false)? == (false, 1), "the P_Key isn't looked at");
    ensure!(listen(&rig, true)? == (true, 0), "the check isn't looked at");
    rig.stop()
}

/// The attacker sends with an address vector of a domain that is another's. The syndrome.
fn send_by_vector_of(rig: &Rig, pdn: Option<u32>) -> Result<Option<u8>> {
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let mut pair = Datagrams::new(&mut guest, &mine, 0)?;
    pair.start(&mut guest, QKEY, 0)?;
    let mut vector = vector(&mut guest, &mine)?;
    if let Some(pdn) = pdn {
        vector[1..4].copy_from_slice(&pdn.to_be_bytes()[1..]);
    }
    let payload = data(mine.mr.lkey.get(), at(SINK), PAYLOAD);
    pair.post(&guest, &[&datagram(vector, pair.qpn(), QKEY)[..], &payload].concat())?;
    Ok(completion(&guest, &mut mine)?.1)
}

#[test]
fn address_vector_of_another_domain_is_refused() -> Result<()> {
    let rig = Rig::start()?;
    let victim = Victim::new(&rig)?;
    let syndrome = send_by_vector_of(&rig, Some(victim.objects.pdn))?;
    ensure!(syndrome == Some(LOCAL_OPERATION), "a vector of another domain ended in {syndrome:x?}");
    let syndrome = send_by_vector_of(&rig, None)?;
    ensure!(syndrome.is_none(), "a vector of the own domain ended in {syndrome:x?}");
    rig.stop()
}

/// The attacker sends a datagram whose address vector names another source GID than its own. The source that the
/// receiver sees.
fn source_gid(rig: &Rig, forced: bool) -> Result<[u8; 16]> {
    const OTHER: u8 = 3;
    let mut guest = rig.attacker()?;
    let mut mine = Objects::new(&mut guest)?;
    let mut pair = Datagrams::new(&mut guest, &mine, 0)?;
    if forced {
        rig.hook.queue_pair(pair.qpn(), |mailbox| mailbox.context.primary_path.sgid_index = FORCE_SGID);
    }
    pair.start(&mut guest, QKEY, 0)?;
    rig.hook.clear();
    let payload = pair.post_receive(&guest, &mine)?;
    let attributes = AhAttributes {
        dlid: U16::new(lid(&mut guest)?),
        port_num: 1,
        is_global: 1,
        dgid: [0xfe; 16],
        ..AhAttributes::new_zeroed()
    };
    let verb = CreateAh { pd: U32::new(mine.pd), attributes, ..CreateAh::new_zeroed() };
    let mut vector = guest.must(&verb, &[])?.vector;
    vector[SGID_INDEX] = OTHER;
    let data = data(mine.mr.lkey.get(), at(SINK), PAYLOAD);
    pair.post(&guest, &[&datagram(vector, pair.qpn(), QKEY)[..], &data].concat())?;
    for _ in 0..2 {
        let (_, syndrome) = completion(&guest, &mut mine)?;
        ensure!(syndrome.is_none(), "a datagram ended in {syndrome:x?}");
    }
    Ok(guest.memory.read(payload - GRH + 8, 16)?.try_into().unwrap_or_default())
}

#[test]
fn source_gid_is_what_the_address_vector_names_unless_the_context_forces_one() -> Result<()> {
    let rig = Rig::start()?;
    let mut guest = rig.attacker()?;
    let own = guest.must(&QueryGid { port: 1, ..QueryGid::new_zeroed() }, &[])?.gid;
    drop(guest);
    ensure!(own != [0; 16] && source_gid(&rig, false)? != own, "the address vector isn't looked at");
    ensure!(source_gid(&rig, true)? == own, "the context isn't looked at");
    rig.stop()
}

/// The receive buffers don't reach the place that sends are made from, and the records of both kinds of queue pair
/// are apart.
const _: () = assert!(DATA + 32 * BUFFER as u64 + GRH < SINK && RECORDS < SPARE);

/// Handles that stand for no queue pair of datagrams.
#[test]
fn queue_pair_of_datagrams_can_not_be_joined_to_objects_of_others() -> Result<()> {
    let rig = Rig::start()?;
    let mut victim = Victim::new(&rig)?;
    let mut guest = rig.attacker()?;
    let mine = Objects::new(&mut guest)?;
    let foreign = U32::new(victim.objects.cq.cqn.get() | 1 << 31);
    for verb in [
        CreateQp { send_cq: foreign, ..create(&mine, 0) },
        CreateQp { recv_cq: foreign, ..create(&mine, 0) },
        CreateQp { uar: U32::new(victim.objects.uar | 1 << 31), ..create(&mine, 0) },
        CreateQp {
            srq: foreign,
            record: 0.into(),
            log2_recv_wqes: 0,
            log2_recv_stride: 0,
            ..create(&mine, 0)
        },
    ] {
        guest.refused(&verb, &[(at(SPARE), 0x3000)], Reason::BAD_HANDLE)?;
    }
    victim.is_well()?;
    rig.stop()
}
