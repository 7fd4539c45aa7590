//! Contexts of regions, event, completion and shared receive queues, and groups.

use mlx4_wire::ctx::cq::{CqContext, CqEqn};
use mlx4_wire::ctx::eq::{EqContext, EqFlags, EqInterrupt, EqState, EqStatus};
use mlx4_wire::ctx::mcg::{McgHeader, McgMember, McgMembers, McgNext};
use mlx4_wire::ctx::mpt::{MptEntry, MptFlags, MptPd, MptStatus, Number21};
use mlx4_wire::ctx::srq::{SrqContext, SrqCq, SrqSize, SrqStride};
use mlx4_wire::ctx::{RingPages, RingSize};
use mlx4_wire::{Number24, U32, U64};
use zerocopy::FromZeros;

use crate::fixture::{all, find, first, read, same};

fn pages(taken: &RingPages) -> RingPages {
    RingPages::new(taken.log2_page(), taken.mtt_base()).unwrap()
}

/// Linux `mlx4_create_eq`: armed; the first EQ has the asynchronous events and vector 0.
#[test]
fn event_queues_of_linux_have_their_values() {
    for (vector, record) in (0..).zip(&all("SW2HW_EQ")[..2]) {
        let taken: EqContext = read(&record.bytes);
        let mut expected = EqContext::new_zeroed();
        expected.flags = EqFlags::new().with_status(EqStatus::OK).with_state(EqState::ARMED);
        expected.size = RingSize::new().with_log2_entries(if vector == 0 { 9 } else { 16 });
        expected.interrupt = EqInterrupt::new().with_vector(vector);
        expected.pages = pages(&taken.pages);
        same(&record.bytes, &expected);
    }
}

/// Linux `mlx4_cq_alloc`: the completion EQ that SW2HW_EQ made last; nothing armed, no moderation.
#[test]
fn completion_queues_of_linux_have_their_values() {
    for record in all("SW2HW_CQ") {
        let taken: CqContext = read(&record.bytes);
        let mut expected = CqContext::new_zeroed();
        let (entries, uar) = (taken.size.log2_entries(), taken.size.uar_page());
        expected.size = RingSize::new().with_log2_entries(entries).with_uar_page(uar);
        expected.completion_eq = CqEqn::new().with_eqn(9);
        expected.pages = pages(&taken.pages);
        expected.record_address = U64::new(taken.record_base());
        same(&record.bytes, &expected);
        // The first pages of the UAR BAR are those of EQ doorbells.
        assert!((0x80..0x400).contains(&uar) && (1..=16).contains(&entries), "{taken:?}");
    }
}

/// Linux `mlx4_mr_enable` after `mlx4_ib_get_dma_mr`: all of memory, by bus address.
#[test]
fn region_of_all_memory_has_its_values() {
    let record = find("SW2HW_MPT", |record| read::<MptEntry>(&record.bytes).flags.physical());
    let taken: MptEntry = read(&record.bytes);
    let mut expected = MptEntry::new_zeroed();
    expected.flags = MptFlags::new()
        .with_status(MptStatus::SOFTWARE)
        .with_mio(true)
        .with_local_read(true)
        .with_local_write(true)
        .with_physical(true)
        .with_region(true);
    expected.key = U32::new(record.modifier);
    expected.pd = MptPd::new().with_invalidate(true).with_remote_invalidate(true).with_pd(taken.pd.pd());
    expected.length = U64::new(u64::MAX);
    expected.log2_page = Number21::new().with_number(12);
    same(&record.bytes, &expected);
}

/// Linux `mlx4_ib_reg_user_mr`: of a program's memory, with the rights that it asks for. Local reads are
/// always allowed.
#[test]
fn regions_of_programs_have_their_values() {
    let mut rights = Vec::new();
    for record in all("SW2HW_MPT") {
        let taken: MptEntry = read(&record.bytes);
        if taken.flags.physical() {
            continue;
        }
        let flags = taken.flags;
        let (write, read) = (flags.remote_write(), flags.remote_read());
        rights.push((flags.local_write(), write, read, flags.remote_atomic()));
        let mut expected = MptEntry::new_zeroed();
        expected.flags = MptFlags::new()
            .with_status(MptStatus::SOFTWARE)
            .with_mio(true)
            .with_local_read(true)
            .with_local_write(true)
            .with_remote_write(write)
            .with_remote_read(read)
            .with_remote_atomic(flags.remote_atomic())
            .with_region(true);
        // The low bits are the index, the others a sequence number.
        assert_eq!(taken.key.get() & 0x7_ffff, record.modifier);
        expected.key = taken.key;
        expected.pd = MptPd::new().with_invalidate(true).with_remote_invalidate(true).with_pd(taken.pd.pd());
        (expected.start, expected.length) = (taken.start, taken.length);
        assert!(taken.start.get() >> 47 == 0 && taken.length.get() != 0, "{taken:?}");
        expected.mtt_address = U64::new(taken.mtt_base());
        expected.log2_page = Number21::new().with_number(taken.log2_page.number());
        assert!((12..=31).contains(&taken.log2_page.number()), "{taken:?}");
        same(&record.bytes, &expected);
    }
    // ibv_rc_pingpong; ib_write_*; ib_read_*; ib_atomic_*.
    for expected in [
        (true, false, false, false),
        (true, true, false, false),
        (true, false, true, false),
        (true, false, false, true),
    ] {
        assert!(rights.contains(&expected), "{expected:?} {rights:?}");
    }
}

/// Linux `mlx4_srq_alloc`: no state, no limit. Those of the kernel have WQEs of up to 512 bytes. Those of XRC
/// have a CQ and a domain; domain 0 is reserved.
#[test]
fn shared_receive_queues_of_linux_have_their_values() {
    for record in all("SW2HW_SRQ") {
        let taken: SrqContext = read(&record.bytes);
        let mut expected = SrqContext::new_zeroed();
        let xrc = taken.cq.cqn() != 0;
        let log2_entries = if xrc { 1 } else { 9 };
        expected.size = SrqSize::new().with_log2_entries(log2_entries).with_srqn(record.modifier);
        assert_eq!(taken.xrcd.get() != 0, xrc, "{taken:?}");
        (expected.xrcd, expected.cq) = (taken.xrcd, SrqCq::new().with_cqn(taken.cq.cqn()));
        let stride = taken.stride.log2_stride_less_4();
        assert!(stride == 1 || stride == 5, "{taken:?}");
        expected.stride = SrqStride::new().with_log2_stride_less_4(stride);
        expected.pages = pages(&taken.pages);
        expected.pd = Number24::wrapping(taken.pd.number());
        expected.record_address = U64::new(taken.record_base());
        same(&record.bytes, &expected);
    }
}

/// Linux `mlx4_qp_attach_common`: the broadcast group of IP over InfiniBand, with one member that doesn't
/// get its own packets.
#[test]
fn group_of_ip_over_infiniband_has_its_values() {
    let record = first("WRITE_MCG");
    let broadcast = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(first("MGID_HASH").bytes, broadcast);
    assert_eq!(u64::from(record.modifier), first("MGID_HASH").result);
    let mut expected = McgHeader::new_zeroed();
    expected.members = McgMembers::new().with_count(1);
    expected.gid = broadcast;
    let (head, members) = record.bytes.split_at(32);
    same(head, &expected);
    let qpn = find("RST2INIT_QP", |qp| qp.bytes[9] == 0x03).modifier;
    same(members, &McgMember::new().with_block_loopback(true).with_qpn(qpn));
}

/// Linux `mlx4_qp_attach_common`: a group whose hash is taken is linked from there; the overflow begins
/// behind the entries that the hash reaches.
#[test]
fn chain_of_linux_has_its_link() {
    let linked = find("WRITE_MCG", |record| read::<McgHeader>(&record.bytes).next != McgNext::new());
    let head: McgHeader = read(&linked.bytes);
    assert!((1 << 12..1 << 13).contains(&head.next.index()), "{head:?}");
    same(&linked.bytes[..4], &McgNext::new().with_index(head.next.index()));
}
