//! Contexts as the daemon builds them: whatever a guest asks for, the fields that it must not set are what they are
//! for everybody. That is all that protects where the model doesn't look at a field (RSS, rate limits, FPP, snooping
//! and ATC of the bus).

use anyhow::{Result, ensure};
use mlx4_wire::cmd::Opcode;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::path::AddressPath;
use mlx4_wire::ctx::qp::{OptPar, QpMailbox, QpMode, QpOptions, QpState, ServiceType};
use mlx4_wire::ctx::srq::SrqContext;
use virtio_rdma::request::SegmentMode;
use virtio_rdma::request::memory::{AccessFlags, RegMr};
use virtio_rdma::request::queue_pair::{AhAttributes, CreateQp, ModifyQp, QpAttrMask, QpAttributes, QpFlags};
use virtio_rdma::{U16, U32, U64};
use zerocopy::FromZeros;

use super::datagram;
use super::guest::{Guest, at};
use super::hook::Seen;
use super::objects::{DATA, Objects, RECORDS, SPARE, create_qp, create_srq, lid};
use super::rig::Rig;

/// The first UAR page that a guest may have.
const FIRST_GUEST_PAGE: u32 = 128;
/// Requests of each kind.
const ROUNDS: usize = 400;

/// What a path must not have, for whatever port it is.
fn check_path(path: &AddressPath) -> Result<()> {
    ensure!(path.flags.into_bits() == 0, "flags of a path");
    ensure!(path.control == 0 && path.force == 0 && path.force_receive == 0 && path.vlan_index == 0);
    ensure!(path.pkey_check.into_bits() == 0, "the P_Key check is off");
    Ok(())
}

/// What a queue pair's context must not have.
fn check_queue_pair(mailbox: &QpMailbox, pdn: u32) -> Result<()> {
    let context = &mailbox.context;
    let services = [ServiceType::RC, ServiceType::UC, ServiceType::UD, ServiceType::XRC];
    ensure!(services.contains(&context.flags.service()), "{:?}", context.flags);
    ensure!(!context.flags.rss(), "RSS");
    ensure!(context.mode == QpMode::new(), "the reserved lkey, or a RoCE mode");
    ensure!(!context.requester.fast_register(), "fast registration");
    ensure!(!context.responder.fpp(), "FPP");
    ensure!(context.rate_limit.get() == 0 && context.qos_vport == 0, "a rate limit");
    ensure!(context.options == QpOptions::new() && context.peers_base_mkey.get() == 0);
    ensure!(context.qkey.get() >> 31 == 0, "a privileged Q_Key");
    ensure!(context.pd.number() == pdn, "another domain");
    ensure!(context.uar_page.number() >= FIRST_GUEST_PAGE, "a page with doorbells of EQs");
    // Options that belong to Ethernet ports.
    let foreign = OptPar::new().with_vlan_stripping(true).with_counter_index(true);
    ensure!(mailbox.optional.into_bits().get() & foreign.into_bits().get() == 0);
    check_path(&context.primary_path)?;
    check_path(&context.alternate_path)
}

/// What a region's entry must not have.
fn check_region(entry: &MptEntry, pdn: u32) -> Result<()> {
    let flags = entry.flags;
    ensure!(!flags.physical(), "physical addresses");
    ensure!(!flags.no_snoop() && !flags.atc_request() && !flags.mio(), "{flags:?}");
    let pd = entry.pd;
    ensure!(pd.pd() == pdn, "another domain");
    ensure!(!pd.fast_register() && !pd.remote_access_enable(), "fast registration");
    ensure!(!pd.dif_memory() && !pd.dif_wire() && !pd.nce());
    ensure!(!entry.options.length_64() && !entry.options.block_mode(), "{:?}", entry.options);
    // A region of memory, not a window, can't be taken away by work requests.
    ensure!(!flags.region() || (!pd.invalidate() && !pd.remote_invalidate()), "{pd:?}");
    Ok(())
}

/// Looks at every context that the guest has caused. How many there were of queue pairs, and of regions.
fn check(seen: &[Seen], pdn: u32) -> Result<[usize; 2]> {
    let mut counts = [0; 2];
    for seen in seen {
        match seen.opcode {
            Opcode::SW2HW_MPT => {
                counts[1] += 1;
                check_region(&seen.read().expect("a mailbox is longer"), pdn)?;
            }
            Opcode::SW2HW_CQ => {
                let context: CqContext = seen.read().expect("a mailbox is longer");
                ensure!(context.size.uar_page() >= FIRST_GUEST_PAGE, "a page with doorbells of EQs");
                ensure!(!context.flags.overrun_ignore(), "overruns are ignored");
            }
            Opcode::SW2HW_SRQ => {
                let context: SrqContext = seen.read().expect("a mailbox is longer");
                ensure!(context.pd.number() == pdn, "another domain");
            }
            Opcode::RST2INIT_QP
            | Opcode::INIT2INIT_QP
            | Opcode::INIT2RTR_QP
            | Opcode::RTR2RTS_QP
            | Opcode::RTS2RTS_QP
            | Opcode::SQERR2RTS_QP
            | Opcode::SQD2SQD_QP
            | Opcode::SQD2RTS_QP => {
                counts[0] += 1;
                check_queue_pair(&seen.read().expect("a mailbox is longer"), pdn)?;
            }
            _ => {}
        }
    }
    Ok(counts)
}

/// A value that is wild now and then.
fn wild<T>(random: &mut fastrand::Rng, good: T, any: impl Fn(&mut fastrand::Rng) -> T) -> T {
    if random.u8(0..8) == 0 { any(random) } else { good }
}

fn path(random: &mut fastrand::Rng, lid: u16) -> AhAttributes {
    let mut gid = [0; 16];
    random.fill(&mut gid);
    AhAttributes {
        dgid: gid,
        flow_label: U32::new(wild(random, 0, |random| random.u32(..))),
        dlid: U16::new(wild(random, lid, |random| random.u16(..))),
        sgid_index: wild(random, 0, |random| random.u8(..)),
        hop_limit: random.u8(..),
        traffic_class: random.u8(..),
        sl: wild(random, 0, |random| random.u8(..)),
        src_path_bits: wild(random, 0, |random| random.u8(..)),
        static_rate: wild(random, 0, |random| random.u8(..)),
        is_global: random.u8(0..2),
        port_num: wild(random, 1, |random| random.u8(..)),
        dmac: wild(random, [0; 6], |random| [random.u8(..); 6]),
        ..AhAttributes::new_zeroed()
    }
}

/// A change of any kind, most of whose values could be right.
fn change(random: &mut fastrand::Rng, step: ModifyQp, lid: u16) -> ModifyQp {
    let flags = AccessFlags::KNOWN
        .iter()
        .filter(|_| random.bool())
        .fold(AccessFlags::NONE, |all, (_, flag)| all | *flag);
    let good = step.attributes;
    let attributes = QpAttributes {
        qp_access_flags: flags,
        qkey: U32::new(wild(random, random.clone().u32(..) >> 1, |random| random.u32(..))),
        ah_attr: if good.ah_attr.port_num == 0 { good.ah_attr } else { path(random, lid) },
        alt_ah_attr: path(random, lid),
        alt_port_num: 1,
        pkey_index: U16::new(wild(random, 0, |random| random.u16(..))),
        timeout: random.u8(0..32),
        dest_qp_num: U32::new(wild(random, good.dest_qp_num.get(), |random| random.u32(..))),
        ..good
    };
    let more = QpAttrMask::KNOWN.iter().filter(|_| random.u8(0..16) == 0);
    let attr_mask = more.fold(step.attr_mask, |all, (_, bit)| all | *bit);
    ModifyQp { attr_mask, attributes, ..step }
}

/// Asks, and takes either answer.
fn try_it<V: virtio_rdma::Verb>(
    guest: &mut Guest,
    verb: &V,
    segments: &[(u64, u64)],
) -> Result<Option<V::Answer>> {
    Ok(guest.ask(verb, segments, SegmentMode::DIRECT)?.ok())
}

fn queue_pairs(random: &mut fastrand::Rng, guest: &mut Guest, mine: &Objects) -> Result<()> {
    let lid = lid(guest)?;
    let ring = at(SPARE + 0x8_0000);
    for round in 0..ROUNDS {
        let datagrams = round % 2 == 0;
        let verb = if datagrams {
            datagram::create(mine, 8)
        } else {
            create_qp(mine.pd, mine.uar, mine.cq.cq.get(), at(RECORDS + 0x200))
        };
        let flags = wild(random, QpFlags::NONE, |_| QpFlags::UD_LSO | QpFlags::BLOCK_SELF_MCAST_LB);
        let bytes = if datagrams { 0x3000 } else { 0x2000 };
        let Some(made) = try_it(guest, &CreateQp { flags, ..verb }, &[(ring, bytes)])? else { continue };
        let steps = if datagrams {
            datagram::transitions(made.qp, datagram::QKEY, 0)
        } else {
            super::objects::transitions(made.qp.get(), lid, made.qpn.get())
        };
        for step in steps {
            // If it is refused, the plain one leads on.
            let asked = change(random, step, lid);
            if try_it(guest, &asked, &[])?.is_none() {
                let _either = try_it(guest, &step, &[])?;
            }
        }
        let destroy = virtio_rdma::request::queue_pair::DestroyQp {
            qp: made.qp,
            ..virtio_rdma::request::queue_pair::DestroyQp::new_zeroed()
        };
        guest.must(&destroy, &[])?;
    }
    Ok(())
}

fn regions(random: &mut fastrand::Rng, guest: &mut Guest, mine: &Objects) -> Result<()> {
    for _ in 0..ROUNDS {
        let flags = AccessFlags::KNOWN
            .iter()
            .filter(|_| random.bool())
            .fold(AccessFlags::NONE, |all, (_, flag)| all | *flag);
        let verb = RegMr {
            pd: U32::new(mine.pd),
            access: wild(random, flags, |random| AccessFlags::from_bits(random.u32(..))),
            iova: U64::new(wild(random, at(DATA), |random| random.u64(..) & !0xfff)),
            length: U64::new(4096),
        };
        if let Some(made) = try_it(guest, &verb, &[(at(DATA), 4096)])? {
            let verb = virtio_rdma::request::memory::DeregMr {
                mr: made.mr,
                ..virtio_rdma::request::memory::DeregMr::new_zeroed()
            };
            guest.must(&verb, &[])?;
        }
    }
    let shared = create_srq(mine.pd, at(RECORDS + 0x300));
    let _offered = try_it(guest, &shared, &[(at(SPARE), 4096)])?;
    Ok(())
}

#[test]
fn no_request_makes_a_context_with_fields_that_guests_must_not_set() -> Result<()> {
    let seed = match std::env::var("PARAVERBS_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => 0x15_01a7,
    };
    println!("PARAVERBS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let rig = Rig::start()?;
    let mut guest = rig.attacker()?;
    let mine = Objects::connected(&mut guest)?;
    queue_pairs(&mut random, &mut guest, &mine)?;
    regions(&mut random, &mut guest, &mine)?;
    let [queue_pairs, regions] = check(&rig.hook.seen(), mine.pdn)?;
    // Not all were refused before anything was built.
    ensure!(queue_pairs > 2 * ROUNDS && regions > ROUNDS / 4, "{queue_pairs} and {regions} contexts");
    rig.stop()
}

/// The other way round: what the check above looks for is what the fields are.
#[test]
fn fields_that_guests_must_not_set_are_noticed() {
    let good = || {
        let mut mailbox = QpMailbox::new_zeroed();
        mailbox.context.flags.set_state(QpState::INIT);
        mailbox.context.pd = mlx4_wire::Number24::wrapping(7);
        mailbox.context.uar_page = mlx4_wire::Number24::wrapping(FIRST_GUEST_PAGE);
        mailbox
    };
    assert!(check_queue_pair(&good(), 7).is_ok());
    let bad: [fn(&mut QpMailbox); 11] = [
        |m| m.context.flags.set_service(ServiceType::MLX),
        |m| m.context.flags.set_rss(true),
        |m| m.context.mode.set_reserved_lkey(true),
        |m| m.context.requester.set_fast_register(true),
        |m| m.context.responder.set_fpp(true),
        |m| m.context.rate_limit.set(1),
        |m| m.context.primary_path.pkey_check.set_disable(true),
        |m| m.context.alternate_path.flags.set_force_loopback(true),
        |m| m.context.pd = mlx4_wire::Number24::wrapping(8),
        |m| m.context.uar_page = mlx4_wire::Number24::wrapping(FIRST_GUEST_PAGE - 1),
        |m| m.context.qkey.set(1 << 31),
    ];
    for (number, set) in bad.into_iter().enumerate() {
        let mut mailbox = good();
        set(&mut mailbox);
        assert!(check_queue_pair(&mailbox, 7).is_err(), "field {number}");
    }
    let region: [fn(&mut MptEntry); 6] = [
        |entry| entry.flags.set_physical(true),
        |entry| entry.flags.set_no_snoop(true),
        |entry| entry.flags.set_atc_request(true),
        |entry| entry.flags.set_mio(true),
        |entry| entry.pd.set_fast_register(true),
        |entry| entry.pd.set_pd(8),
    ];
    for (number, set) in region.into_iter().enumerate() {
        let mut entry = MptEntry::new_zeroed();
        entry.pd.set_pd(7);
        assert!(check_region(&entry, 7).is_ok());
        set(&mut entry);
        assert!(check_region(&entry, 7).is_err(), "field {number}");
    }
}
