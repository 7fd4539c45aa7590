//! Fast registration: pages that a work request puts behind a key, and that are taken away by invalidation
//! from this end or the other.

use mlx4_wire::cmd::Status;
use mlx4_wire::cqe::Syndrome;
use mlx4_wire::ctx::mpt::{MptStatus, key_to_mpt_index};
use mlx4_wire::ctx::mtt::MttEntry;
use mlx4_wire::ctx::qp::{QpState, ServiceType};
use mlx4_wire::wqe::{FastRegisterSeg, Opcode, RegisterAccess};
use mlx4_wire::{U32, U64};
use zerocopy::FromZeros;

use super::connections::{good, one_sided};
use super::lab::{End, Lab};
use super::machine::{Buffer, Machine, PD};
use super::pattern;
use super::queues::{Done, QpConfig, ctrl, inline, part, units, whole};
use super::windows::{bind, bind_part, invalidate, send_invalidate, through};

const PAGE: u64 = 4096;
/// Where registered regions begin in the tests: a little after the start of a page.
const START: u64 = 0x7000_0000_0128;

const REFUSED: Done = Done::Failed(Syndrome::MW_BIND_ERR);
const NO_ACCESS: Done = Done::Failed(Syndrome::REMOTE_ACCESS_ERR);

/// Queue pairs of the kernel, which may register.
fn kernel() -> QpConfig {
    QpConfig { fast_register: true, ..QpConfig::new(ServiceType::RC) }
}

/// Pages that don't lie one after the other, and their list.
struct Scattered {
    pages: Vec<u64>,
    list: u64,
}

impl Scattered {
    fn new(machine: &Machine, count: u64) -> Self {
        let pages: Vec<u64> = (0..count).map(|_| machine.pages(2)).rev().collect();
        let list = machine.pages(1);
        for (i, page) in pages.iter().enumerate() {
            machine.store(list + 8 * i as u64, &MttEntry::present(*page));
        }
        Self { pages, list }
    }

    /// What lies in the region, from its first byte on.
    fn contents(&self, machine: &Machine, len: usize) -> Vec<u8> {
        let all: Vec<u8> = self.pages.iter().flat_map(|page| machine.read(*page, PAGE)).collect();
        let from = usize::try_from(START % PAGE).unwrap();
        all[from..from + len].to_vec()
    }

    fn request(&self, key: u32, length: u64) -> FastRegisterSeg {
        let mut seg = FastRegisterSeg::new_zeroed();
        seg.access = RegisterAccess::new()
            .with_local_read(true)
            .with_local_write(true)
            .with_remote_read(true)
            .with_remote_write(true);
        seg.key = U32::new(key);
        seg.page_list = U64::new(self.list);
        seg.start = U64::new(START);
        seg.length = U64::new(length);
        seg.log2_page = U32::new(12);
        seg
    }
}

fn register(lab: &Lab, end: &End, seg: &FastRegisterSeg) -> Done {
    end.qp.post(lab.machine(end), ctrl(Opcode::FAST_REGISTER), &units(seg));
    end.sent(lab)
}

fn registered() -> Done {
    good(Opcode::FAST_REGISTER, 0)
}

/// The region under a key, for the helpers that name memory by buffers.
fn region(key: u32, len: u64) -> Buffer {
    Buffer { bus: 0, va: START, len, key }
}

fn write(lab: &Lab, end: &End, key: u32, offset: u64, data: &[u8]) -> Done {
    let target = through(key, &region(key, 0), offset);
    end.qp.post(lab.machine(end), ctrl(Opcode::RDMA_WRITE), &[units(&target), inline(32, data)].concat());
    end.sent(lab)
}

#[test]
fn pages_are_registered_by_a_work_request_and_freed_by_another() {
    for service in [ServiceType::RC, ServiceType::UC] {
        let lab = Lab::new(2);
        let (near, far) = (&lab.machines[0], &lab.machines[1]);
        let config = QpConfig { fast_register: true, ..QpConfig::new(service) };
        let (own, _) = lab.connect((1, config), (0, config));
        let (a, b) = lab.connect((0, kernel()), (1, kernel()));
        let (key, memory) = (far.free_region(4, PD), Scattered::new(far, 3));
        assert_eq!(register(&lab, &own, &memory.request(key + 1, 10_000)), registered());
        let from = near.buffer(10_000);
        near.fill(&from, &pattern(10_000, 4));
        let list = one_sided(&through(key + 1, &region(key, 0), 0), &[whole(&from)]);
        a.qp.post(near, ctrl(Opcode::RDMA_WRITE), &list);
        assert_eq!(a.sent(&lab), good(Opcode::RDMA_WRITE, 0));
        assert_eq!(memory.contents(far, 10_000), pattern(10_000, 4));
        // As local key: what is sent back.
        let back = near.buffer(100);
        a.qp.post_receive(near, &[whole(&back)]);
        b.qp.post(far, ctrl(Opcode::SEND), &units(&part(&region(key + 1, 0), 8000, 100)));
        assert_eq!(
            (b.sent(&lab), a.received(&lab)),
            (good(Opcode::SEND, 0), Done::Good { opcode: 1, bytes: 100 })
        );
        assert_eq!(near.contents(&back), pattern(10_000, 4)[8000..8100]);

        assert_eq!(invalidate(&lab, &own, key + 1), good(Opcode::LOCAL_INVALIDATE, 0));
        assert_eq!(far.mpt(key).flags.status(), MptStatus::FREE);
        assert_eq!(write(&lab, &a, key + 1, 0, b"x"), NO_ACCESS);
        // Anew, with other pages and another key.
        let other = Scattered::new(far, 1);
        assert_eq!(register(&lab, &own, &other.request(key + 2, 100)), registered());
        let (c, d) = lab.connect((0, kernel()), (1, kernel()));
        assert_eq!(write(&lab, &c, key + 2, 0, b"new"), good(Opcode::RDMA_WRITE, 0));
        assert_eq!(other.contents(far, 3), *b"new");
        assert_eq!(write(&lab, &c, key + 1, 0, b"old"), NO_ACCESS);
        assert_eq!(d.qp.state(), QpState::ERR);
        assert_eq!(far.take_back(key), Status::OK);
    }
}

#[test]
fn queue_pair_without_the_right_can_not_register() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let (key, memory) = (machine.free_region(4, PD), Scattered::new(machine, 1));
    let guest = QpConfig { fast_register: false, ..kernel() };
    for (config, expected) in [(guest, Done::Failed(Syndrome::LOCAL_QP_OP_ERR)), (kernel(), registered())] {
        let (a, _b) = lab.connect((0, config), (0, config));
        assert_eq!(register(&lab, &a, &memory.request(key, 64)), expected);
    }
}

#[test]
fn registration_needs_a_key_and_pages_that_allow_it() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let (key, memory) = (machine.free_region(2, PD), Scattered::new(machine, 3));
    let foreign = machine.free_region(2, PD + 1);
    let in_use = machine.free_region(2, PD);
    let (a, _b) = lab.connect((0, kernel()), (0, kernel()));
    assert_eq!(register(&lab, &a, &memory.request(in_use, 64)), registered());
    let plain = machine.buffer(64).key;
    let local_only = {
        let mut entry = machine.mpt(machine.free_region(2, PD));
        entry.pd.set_remote_access_enable(false);
        machine.enter(entry)
    };
    let change = |change: fn(&mut FastRegisterSeg)| {
        let mut seg = memory.request(key, 64);
        change(&mut seg);
        seg
    };
    let cases = [
        ("key of another domain", memory.request(foreign, 64)),
        ("key that is in use", memory.request(in_use + 1, 64)),
        ("ordinary region", memory.request(plain, 64)),
        ("window", memory.request(machine.window(true, PD), 64)),
        ("no such key", memory.request(0x1ff_0000, 64)),
        ("remote rights where there are none", memory.request(local_only, 64)),
        ("more pages than the key has room for", memory.request(key, 2 * PAGE)),
        ("no bytes", memory.request(key, 0)),
        ("range that wraps", change(|seg| seg.length = U64::new(u64::MAX))),
        ("page size", change(|seg| seg.log2_page = U32::new(11))),
        ("huge page size", change(|seg| seg.log2_page = U32::new(64))),
        ("list that isn't aligned", change(|seg| seg.page_list = U64::new(seg.page_list.get() + 8))),
        ("list that isn't there", change(|seg| seg.page_list = U64::new(0x40))),
        ("write by the other end only", change(|seg| seg.access.set_local_write(false))),
    ];
    for (what, seg) in cases {
        let (a, b) = lab.connect((0, kernel()), (0, kernel()));
        assert_eq!(register(&lab, &a, &seg), REFUSED, "{what}");
        assert_eq!((a.qp.state(), b.qp.state()), (QpState::ERR, QpState::RTS));
    }
    assert_eq!(
        [key, foreign, plain].map(|key| machine.mpt(key).flags.status()),
        [MptStatus::FREE, MptStatus::FREE, MptStatus::VALID]
    );
}

#[test]
fn absent_page_of_a_list_is_noticed_when_it_is_used() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let (a, b) = lab.connect((0, kernel()), (1, kernel()));
    let (key, memory) = (far.free_region(4, PD), Scattered::new(far, 2));
    far.store(memory.list + 8, &MttEntry::new_zeroed());
    assert_eq!(register(&lab, &b, &memory.request(key, 2 * PAGE - 0x128)), registered());
    assert_eq!(write(&lab, &a, key, 0, b"there"), good(Opcode::RDMA_WRITE, 0));
    assert_eq!(write(&lab, &a, key, PAGE, b"not there"), NO_ACCESS);
}

/// As NFS and NVMe over fabrics use it: the target takes the initiator's key away with its answer.
#[test]
fn send_with_invalidate_frees_a_registered_region() {
    let lab = Lab::new(2);
    let far = &lab.machines[1];
    let (a, b) = lab.connect((0, kernel()), (1, kernel()));
    let (key, memory) = (far.free_region(4, PD), Scattered::new(far, 1));
    for round in 0..3 {
        let key = key + round;
        assert_eq!(register(&lab, &b, &memory.request(key, 64)), registered());
        b.qp.post_receive(far, &[]);
        assert_eq!(write(&lab, &a, key, 0, &round.to_ne_bytes()), good(Opcode::RDMA_WRITE, 0));
        a.qp.post(lab.machine(&a), send_invalidate(key), &[]);
        assert_eq!(a.sent(&lab), good(Opcode::SEND_INVALIDATE, 0));
        let cqe = lab.cqe(1, &b.receive);
        assert_eq!((cqe.owner.opcode().0, cqe.immediate.get()), (3, key));
        assert_eq!(memory.contents(far, 4), round.to_ne_bytes());
        // Once more from this end does no harm.
        assert_eq!(invalidate(&lab, &b, key), good(Opcode::LOCAL_INVALIDATE, 0));
    }
}

#[test]
fn region_with_windows_can_not_be_invalidated() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let (a, _b) = lab.connect((0, kernel()), (0, kernel()));
    let mut entry = machine.mpt(machine.free_region(2, PD));
    entry.flags.set_bind(true);
    let (key, memory) = (machine.enter(entry), Scattered::new(machine, 1));
    let window = machine.window(true, PD);
    assert_eq!(register(&lab, &a, &memory.request(key, 64)), registered());
    let seg = bind_part(true, window, &region(key, 64), 0, 64);
    assert_eq!(bind(&lab, &a, &seg), good(Opcode::BIND_MW, 0));
    let (c, _d) = lab.connect((0, kernel()), (0, kernel()));
    assert_eq!(invalidate(&lab, &c, key), REFUSED);
    assert_eq!(invalidate(&lab, &a, window), good(Opcode::LOCAL_INVALIDATE, 0));
    assert_eq!(invalidate(&lab, &a, key), good(Opcode::LOCAL_INVALIDATE, 0));
}

/// Linux, `rereg_user_mr`: HW2SW_MPT, a change in memory, and the status last, without a command.
#[test]
fn region_that_the_driver_made_valid_in_memory_is_taken_back() {
    let lab = Lab::new(1);
    let machine = &lab.machines[0];
    let mut entry = machine.mpt(machine.buffer(64).key);
    let key = machine.enter(entry);
    assert_eq!(machine.take_back(key), Status::OK);
    assert_eq!(machine.take_back(key), Status::BAD_RES_STATE);
    entry = machine.mpt(key);
    entry.flags.set_status(MptStatus::VALID);
    crate::hca::tpt::write_mpt(&machine.burst(), key_to_mpt_index(key), &entry).unwrap();
    assert_eq!(machine.take_back(key), Status::OK);
}
