//! Memory windows of both types: what a bind gives to the other end, how it is taken away, and what is
//! refused.

use mlx4_wire::cmd::Status;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::mpt::{MptEntry, MptStatus, key_to_mpt_index};
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::eqe::EventType;
use mlx4_wire::wqe::{BindAccess, BindKind, BindSeg, CtrlSeg, LocalInvalidateSeg, Opcode, RemoteAddressSeg};
use mlx4_wire::{U32, U64};
use zerocopy::FromZeros;

use super::connections::{atomic, good, one_sided, remote};
use super::lab::{End, Lab};
use super::machine::{ALL, Access, Buffer, PD};
use super::queues::{Done, QpConfig, ctrl, inline, part, units, whole};

/// What a region needs for all that a window may allow: no remote rights of its own.
pub(super) const BINDABLE: Access = Access { local_write: true, remote: false, atomic: false, bind: true };

const REFUSED: Done = Done::Failed(Syndrome::MW_BIND_ERR);
const NO_ACCESS: Done = Done::Failed(Syndrome::REMOTE_ACCESS_ERR);

fn rc() -> QpConfig {
    QpConfig::new(ServiceType::RC)
}

fn all_rights() -> BindAccess {
    BindAccess::new().with_remote_read(true).with_remote_write(true).with_remote_atomic(true)
}

/// Binds a part of a buffer with all rights.
pub(super) fn bind_part(type_2: bool, rkey: u32, buffer: &Buffer, from: u64, len: u64) -> BindSeg {
    BindSeg {
        access: all_rights(),
        kind: BindKind::new().with_type_2(type_2),
        new_rkey: U32::new(rkey),
        lkey: U32::new(buffer.key),
        start: U64::new(buffer.va.wrapping_add(from)),
        length: U64::new(len),
    }
}

fn unbinding(type_2: bool, rkey: u32) -> BindSeg {
    let mut seg = BindSeg::new_zeroed();
    seg.kind.set_type_2(type_2);
    seg.new_rkey = U32::new(rkey);
    seg
}

/// Posts a bind and gives its completion.
pub(super) fn bind(lab: &Lab, end: &End, seg: &BindSeg) -> Done {
    end.qp.post(lab.machine(end), ctrl(Opcode::BIND_MW), &units(seg));
    end.sent(lab)
}

pub(super) fn invalidate(lab: &Lab, end: &End, key: u32) -> Done {
    let mut seg = LocalInvalidateSeg::new_zeroed();
    seg.key = U32::new(key);
    end.qp.post(lab.machine(end), ctrl(Opcode::LOCAL_INVALIDATE), &units(&seg));
    end.sent(lab)
}

/// A SEND that asks to invalidate a key.
pub(super) fn send_invalidate(key: u32) -> CtrlSeg {
    let mut head = ctrl(Opcode::SEND_INVALIDATE);
    head.immediate = U32::new(key);
    head
}

/// A place in a buffer, under another key than the buffer's.
pub(super) fn through(key: u32, buffer: &Buffer, offset: u64) -> RemoteAddressSeg {
    let mut seg = remote(buffer, offset);
    seg.rkey = U32::new(key);
    seg
}

/// Writes through a key from a new connection's end `a` to `b`, or an existing one.
fn write(lab: &Lab, a: &End, target: &RemoteAddressSeg, data: &[u8]) -> Done {
    let list = [units(target), inline(32, data)].concat();
    a.qp.post(lab.machine(a), ctrl(Opcode::RDMA_WRITE), &list);
    a.sent(lab)
}

fn bound() -> Done {
    good(Opcode::BIND_MW, 0)
}

#[test]
fn window_gives_its_part_of_a_region_to_the_other_end_until_it_is_unbound() {
    for service in [ServiceType::RC, ServiceType::UC] {
        let lab = Lab::new(2);
        let far = &lab.machines[1];
        let (a, b) = lab.connect((0, rc()), (1, rc()));
        let binder = if service == ServiceType::RC {
            None
        } else {
            Some(lab.connect((1, QpConfig::new(service)), (0, QpConfig::new(service))).0)
        };
        let binder = binder.as_ref().unwrap_or(&b);
        let (memory, local) = (far.register(20_000, BINDABLE, PD), lab.machines[0].buffer(64));
        let key = far.window(false, PD) + 1;
        assert_eq!(bind(&lab, binder, &bind_part(false, key, &memory, 5000, 10_000)), bound());
        assert_eq!(write(&lab, &a, &through(key, &memory, 5000), b"first"), good(Opcode::RDMA_WRITE, 0));
        assert_eq!(write(&lab, &a, &through(key, &memory, 14_996), b"last"), good(Opcode::RDMA_WRITE, 0));
        let read = one_sided(&through(key, &memory, 5000), &[part(&local, 0, 5)]);
        a.qp.post(lab.machine(&a), ctrl(Opcode::RDMA_READ), &read);
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_READ, 5));
        assert_eq!(lab.machines[0].contents(&local)[..5], *b"first");
        let contents = far.contents(&memory);
        assert_eq!((&contents[5000..5005], &contents[14_996..15_000]), (&b"first"[..], &b"last"[..]));
        // A new bind, with a new key, takes the old one away.
        assert_eq!(bind(&lab, binder, &bind_part(false, key + 1, &memory, 8, 8)), bound());
        assert_eq!(
            (far.mpt(memory.key).window_count.number(), far.mpt(key).lkey.get()),
            (1, key_to_mpt_index(memory.key))
        );
        let add = atomic(&through(key + 1, &memory, 8), 3, 0, &part(&local, 8, 8));
        a.qp.post(lab.machine(&a), ctrl(Opcode::ATOMIC_FA), &add);
        assert_eq!(a.sent(&lab), good(Opcode::ATOMIC_FA, 8));
        assert_eq!(far.contents(&memory)[8..16], 3u64.to_ne_bytes());
        assert_eq!(bind(&lab, binder, &unbinding(false, key + 2)), bound());
        assert_eq!(far.mpt(memory.key).window_count.number(), 0);
        assert_eq!(write(&lab, &a, &through(key + 2, &memory, 8), b"x"), NO_ACCESS);
    }
}

#[test]
fn access_beyond_a_window_or_with_its_old_key_is_refused() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let memory = far.register(20_000, BINDABLE, PD);
    let key = far.window(false, PD) + 1;
    let read_only = BindAccess::new().with_remote_read(true);
    let cases = [
        (all_rights(), through(key, &memory, 4999)),
        (all_rights(), through(key, &memory, 14_997)),
        (all_rights(), through(key + 1, &memory, 5000)),
        (all_rights(), through(key - 1, &memory, 5000)),
        // The region itself gives the other end nothing.
        (all_rights(), remote(&memory, 5000)),
        (read_only, through(key, &memory, 5000)),
    ];
    for (access, target) in cases {
        let (a, b) = lab.connect((0, rc()), (1, rc()));
        let seg = BindSeg { access, ..bind_part(false, key, &memory, 5000, 10_000) };
        assert_eq!(bind(&lab, &b, &seg), bound());
        far.take_events();
        assert_eq!(write(&lab, &a, &target, b"four"), NO_ACCESS);
        assert_eq!(b.qp.state(), QpState::ERR);
        assert_eq!(far.take_events(), [(EventType::WQ_ACCESS_ERROR, b.qp.qpn)]);
    }
    assert_eq!(far.contents(&memory), vec![0; 20_000]);
}

#[test]
fn window_of_type_2_belongs_to_the_queue_pair_that_bound_it() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let memory = far.register(9000, BINDABLE, PD);
    let key = far.window(true, PD) & !0xff | 0x77;
    let (a, b) = lab.connect((0, rc()), (1, rc()));
    let (c, d) = lab.connect((0, rc()), (1, rc()));
    let seg = bind_part(true, key, &memory, 100, 200);
    assert_eq!(bind(&lab, &b, &seg), bound());
    assert_eq!(write(&lab, &a, &through(key, &memory, 100), b"mine"), good(Opcode::RDMA_WRITE, 0));
    assert_eq!(write(&lab, &c, &through(key, &memory, 100), b"ours"), NO_ACCESS);
    assert_eq!(d.qp.state(), QpState::ERR);
    assert_eq!(far.contents(&memory)[100..104], *b"mine");
    // It can't be bound again before it is invalidated, and not by others at all.
    let e = lab.connect((1, rc()), (0, rc())).0;
    assert_eq!(invalidate(&lab, &e, key), REFUSED);
    let e = lab.connect((1, rc()), (0, rc())).0;
    assert_eq!(bind(&lab, &e, &BindSeg { new_rkey: U32::new(key + 1), ..seg }), REFUSED);
    assert_eq!(invalidate(&lab, &b, key), good(Opcode::LOCAL_INVALIDATE, 0));
    assert_eq!(far.mpt(memory.key).window_count.number(), 0);
    let e = lab.connect((1, rc()), (0, rc())).0;
    assert_eq!(bind(&lab, &e, &BindSeg { new_rkey: U32::new(key + 1), ..seg }), bound());
    assert_eq!(write(&lab, &a, &through(key + 1, &memory, 100), b"late"), NO_ACCESS);
    // Of length 0 it is free again.
    assert_eq!(bind(&lab, &e, &unbinding(true, key + 2)), bound());
    assert_eq!(
        (far.mpt(key).flags.status(), far.mpt(memory.key).window_count.number()),
        (MptStatus::FREE, 0)
    );
}

/// The number may be another's by now, of another guest; the domain isn't.
#[test]
fn window_of_type_2_is_of_no_use_to_another_domain_that_got_its_queue_pair_number() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let memory = far.register(64, BINDABLE, PD);
    let key = far.window(true, PD);
    let (_a, b) = lab.connect((0, rc()), (1, rc()));
    assert_eq!(bind(&lab, &b, &bind_part(true, key, &memory, 0, 64)), bound());
    let mut entry = far.mpt(key);
    let (c, d) = lab.connect((0, rc()), (1, QpConfig { pd: PD + 1, ..rc() }));
    entry.qp.set_qpn(d.qp.qpn);
    crate::hca::tpt::write_mpt(&far.burst(), key_to_mpt_index(key), &entry).unwrap();
    assert_eq!(write(&lab, &c, &through(key, &memory, 0), b"x"), NO_ACCESS);
    // With the domain it would be let in.
    let (c, d) = lab.connect((0, rc()), (1, rc()));
    entry.qp.set_qpn(d.qp.qpn);
    crate::hca::tpt::write_mpt(&far.burst(), key_to_mpt_index(key), &entry).unwrap();
    assert_eq!(write(&lab, &c, &through(key, &memory, 0), b"x"), good(Opcode::RDMA_WRITE, 0));
}

#[test]
fn bind_needs_a_region_and_a_window_that_allow_it() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let memory = machine.register(9000, BINDABLE, PD);
    let not_bindable = machine.register(9000, ALL, PD);
    let read_only = machine.register(9000, Access { local_write: false, ..BINDABLE }, PD);
    let foreign = machine.register(9000, BINDABLE, PD + 1);
    let gone = machine.register(9000, BINDABLE, PD);
    machine.deregister(&gone);
    let (key, key_2, foreign_key) =
        (machine.window(false, PD), machine.window(true, PD), machine.window(false, PD + 1));
    let of = |buffer| bind_part(false, key + 1, buffer, 0, 100);
    let good_one = of(&memory);
    let with = |change: fn(&mut BindSeg)| {
        let mut seg = good_one;
        change(&mut seg);
        seg
    };
    let mut to_window = good_one;
    to_window.lkey = U32::new(key);
    let mut nothing = good_one;
    nothing.lkey = U32::new(0x100);
    let mut region_as_window = good_one;
    region_as_window.new_rkey = U32::new(memory.key);
    let cases = [
        ("no bind right", of(&not_bindable)),
        ("no local write", of(&read_only)),
        ("region of another domain", of(&foreign)),
        ("region that is gone", of(&gone)),
        ("window on a window", to_window),
        ("no region", nothing),
        ("beyond the region", bind_part(false, key + 1, &memory, 8901, 100)),
        ("before the region", bind_part(false, key + 1, &memory, 0u64.wrapping_sub(1), 100)),
        ("wraps", with(|seg| seg.length = U64::new(u64::MAX))),
        ("zero based", with(|seg| seg.kind.set_zero_based(true))),
        ("type 1 bound as type 2", with(|seg| seg.kind.set_type_2(true))),
        ("type 2 bound as type 1", bind_part(false, key_2, &memory, 0, 100)),
        ("window of another domain", bind_part(false, foreign_key, &memory, 0, 100)),
        ("region in place of a window", region_as_window),
        ("window that isn't", bind_part(false, 0x1ff_0000, &memory, 0, 100)),
        ("type 2 of another domain", bind_part(true, machine.window(true, PD + 1), &memory, 0, 100)),
        ("unbind of another domain's", unbinding(false, foreign_key)),
    ];
    for (what, seg) in cases {
        let (a, b) = lab.connect((0, rc()), (0, rc()));
        assert_eq!(bind(&lab, &a, &seg), REFUSED, "{what}");
        assert_eq!((a.qp.state(), b.qp.state()), (QpState::ERR, QpState::RTS));
    }
    for buffer in [&memory, &not_bindable, &read_only, &foreign] {
        assert_eq!(machine.mpt(buffer.key).window_count.number(), 0);
    }
    // Reading alone needs no right to write.
    let (a, _b) = lab.connect((0, rc()), (0, rc()));
    let seg = BindSeg { access: BindAccess::new().with_remote_read(true), ..of(&read_only) };
    assert_eq!(bind(&lab, &a, &seg), bound());
    assert_eq!(bind(&lab, &a, &good_one), bound());
    let counts = [&read_only, &memory].map(|buffer| machine.mpt(buffer.key).window_count.number());
    assert_eq!(counts, [0, 1]);
}

#[test]
fn region_is_not_taken_back_before_its_windows() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let memory = machine.register(9000, BINDABLE, PD);
    let (key, key_2) = (machine.window(false, PD), machine.window(true, PD));
    let (a, _b) = lab.connect((0, rc()), (0, rc()));
    assert_eq!(bind(&lab, &a, &bind_part(false, key, &memory, 0, 100)), bound());
    assert_eq!(bind(&lab, &a, &bind_part(true, key_2, &memory, 0, 100)), bound());
    assert_eq!(machine.take_back(memory.key), Status::REG_BOUND);
    assert_eq!(machine.take_back(key), Status::OK);
    assert_eq!(machine.take_back(memory.key), Status::REG_BOUND);
    assert_eq!(invalidate(&lab, &a, key_2), good(Opcode::LOCAL_INVALIDATE, 0));
    assert_eq!(machine.take_back(memory.key), Status::OK);
    assert_eq!(machine.take_back(memory.key), Status::BAD_RES_STATE);
    assert_eq!(machine.take_back(key_2), Status::OK);
}

#[test]
fn window_is_handed_over_unbound_only() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let entry = |change: fn(&mut MptEntry)| {
        let mut entry = MptEntry::new_zeroed();
        entry.key = U32::new(0x1f00);
        entry.pd.set_pd(PD);
        change(&mut entry);
        entry
    };
    let window = |entry: MptEntry| {
        machine.command(mlx4_wire::cmd::Opcode::SW2HW_MPT, 0x1f00, zerocopy::IntoBytes::as_bytes(&entry))
    };
    assert_eq!(window(entry(|e| e.length = U64::new(1))), Status::BAD_PARAM);
    assert_eq!(window(entry(|e| e.flags.set_remote_write(true))), Status::BAD_PARAM);
    assert_eq!(window(entry(|e| e.flags.set_physical(true))), Status::BAD_PARAM);
    assert_eq!(window(entry(|e| e.qp.set_bound_to_qp(true))), Status::BAD_PARAM);
    assert_eq!(window(entry(|e| e.flags.set_status(MptStatus::FREE))), Status::BAD_PARAM);
    assert_eq!(window(entry(|_| {})), Status::OK);
}

#[test]
fn send_with_invalidate_frees_the_window_and_tells_the_receiver() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let memory = far.register(5000, BINDABLE, PD);
    let (key, to) = (far.window(true, PD), far.buffer(3000));
    let (a, b) = lab.connect((0, rc()), (1, rc()));
    assert_eq!(bind(&lab, &b, &bind_part(true, key, &memory, 0, 64)), bound());
    b.qp.post_receive(far, &[whole(&to)]);
    // Of several packets: the last one invalidates.
    let from = lab.machines[0].buffer(2500);
    lab.machines[0].fill(&from, &[7; 2500]);
    a.qp.post(lab.machine(&a), send_invalidate(key), &units(&whole(&from)));
    assert_eq!(a.sent(&lab), good(Opcode::SEND_INVALIDATE, 0));
    let cqe = lab.cqe(1, &b.receive);
    assert_eq!((cqe.owner.opcode().0, cqe.byte_count.get(), cqe.immediate.get()), (3, 2500, key));
    assert_eq!(far.contents(&to)[..2500], [7; 2500]);
    assert_eq!(
        (far.mpt(key).flags.status(), far.mpt(memory.key).window_count.number()),
        (MptStatus::FREE, 0)
    );
    assert_eq!(write(&lab, &a, &through(key, &memory, 0), b"x"), NO_ACCESS);
}

#[test]
fn key_that_a_sender_may_not_invalidate_costs_the_receiver_its_connection() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let memory = far.register(64, BINDABLE, PD);
    let (_c, other) = lab.connect((0, rc()), (1, rc()));
    let (others, free, type_1) = (far.window(true, PD), far.window(true, PD), far.window(false, PD));
    assert_eq!(bind(&lab, &other, &bind_part(true, others, &memory, 0, 64)), bound());
    assert_eq!(bind(&lab, &other, &bind_part(false, type_1, &memory, 0, 64)), bound());
    for key in [others, free, type_1, memory.key, 0x1ff_0000] {
        let (a, b) = lab.connect((0, rc()), (1, rc()));
        b.qp.post_receive(far, &[]);
        b.qp.post_receive(far, &[]);
        far.take_events();
        a.qp.post(lab.machine(&a), send_invalidate(key), &[]);
        assert_eq!(b.received(&lab), Done::Failed(Syndrome::REMOTE_INVAL_REQ_ERR), "{key:#x}");
        assert_eq!(b.received(&lab), Done::Failed(Syndrome::WR_FLUSH_ERR));
        assert_eq!(far.take_events(), [(EventType::WQ_ACCESS_ERROR, b.qp.qpn)]);
        // Nobody tells the sender.
        assert_eq!(a.sent(&lab), Done::Failed(Syndrome::TRANSPORT_RETRY_EXC_ERR));
    }
    let still = [others, type_1].map(|key| far.mpt(key).flags.status());
    assert_eq!(still, [MptStatus::VALID; 2]);
}

#[test]
fn key_that_is_not_ones_own_can_not_be_invalidated_locally() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let plain = machine.buffer(64);
    for key in [machine.window(true, PD + 1), machine.window(false, PD), plain.key, 0x1ff_0000] {
        let (a, _b) = lab.connect((0, rc()), (0, rc()));
        assert_eq!(invalidate(&lab, &a, key), REFUSED, "{key:#x}");
    }
    assert_eq!(machine.mpt(plain.key).flags.status(), MptStatus::VALID);
}

#[test]
fn windows_must_be_enabled_at_initialisation() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let memory = machine.register(64, BINDABLE, PD);
    let key = machine.window(false, PD);
    machine.without_windows();
    let (a, _b) = lab.connect((0, rc()), (0, rc()));
    let seg = bind_part(false, key, &memory, 0, 64);
    assert_eq!(bind(&lab, &a, &seg), Done::Failed(Syndrome::LOCAL_QP_OP_ERR));
}
