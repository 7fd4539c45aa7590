//! A machine: an HCA, memory, and the few tables that the data path reads from ICM.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlx4_wire::cmd::fw::MapEntry;
use mlx4_wire::cmd::hca::{IcmTable, InitHca};
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::RingPages;
use mlx4_wire::ctx::eq::{EqContext, EqState};
use mlx4_wire::ctx::mcg::{McgHeader, McgMember, McgMembers};
use mlx4_wire::ctx::mpt::{
    MptEntry, MptFlags, MptPd, MptStatus, Number21, key_to_mpt_index, mpt_index_to_key,
};
use mlx4_wire::ctx::mtt::MttEntry;
use mlx4_wire::eqe::{Eqe, EventType};
use mlx4_wire::regs::{HCR_OFFSET, Hcr};
use mlx4_wire::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::device::{Interrupts, PciFunction};
use crate::fabric::Fabric;
use crate::hca::burst::Burst;
use crate::hca::eq::Eq;
use crate::hca::running::Running;
use crate::hca::{Hca, HcaConfig, mcg, tpt};
use crate::mem::DmaSpace;
use crate::node::port::PortState;

const PAGE: u64 = 4096;
/// Bits of an index-form key above those that name its entry: drivers change them from use to use.
const KEY_BITS: u32 = 0x44a0_0000;

/// Where memory is on the bus, and how much there is.
const MEMORY: u64 = 0x7_4000_0000;
const MEMORY_BYTES: u64 = 64 << 20;
/// Where the tables are in ICM; each is backed by its own part of memory.
const MTT: u64 = 0x1000_0000;
const DMPT: u64 = 0x2000_0000;
const MC: u64 = 0x3000_0000;
const TABLE_LOG2_PAGES: u32 = 10;
/// log2 of the entries of an EQ.
const LOG2_EVENTS: u8 = 9;
/// The EQ for everything.
const EQN: u32 = 8;
/// The UAR page of all queues.
pub(super) const UAR: u32 = 200;
/// The port that all use, where a test doesn't say otherwise.
pub(super) const PORT: u8 = 1;
/// The protection domain, unless a test says otherwise.
pub(super) const PD: u32 = 0x1_0005;

/// Counts interrupts.
#[derive(Default)]
struct Counted(AtomicU64);

impl Interrupts for Counted {
    fn signal(&self, _vector: u16) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub(super) struct Machine {
    pub(super) hca: Arc<Hca>,
    dma: Arc<DmaSpace>,
    interrupts: Arc<Counted>,
    next_page: Cell<u64>,
    /// Of commands; 0 before the first one.
    mailbox: Cell<u64>,
    next_mtt: Cell<u64>,
    next_key: Cell<u32>,
    next_number: Cell<u32>,
    /// Size of CQEs and EQEs.
    pub(super) entry_bytes: u64,
    events: u64,
    consumed: Cell<u32>,
    seen: RefCell<Vec<Eqe>>,
}

/// What a region may be used for.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) local_write: bool,
    pub(super) remote: bool,
    pub(super) atomic: bool,
    /// Windows may be bound to it.
    pub(super) bind: bool,
}

pub(super) const ALL: Access = Access { local_write: true, remote: true, atomic: true, bind: false };

/// A buffer that is registered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) bus: u64,
    /// Virtual address: never the bus address.
    pub(super) va: u64,
    pub(super) len: u64,
    pub(super) key: u32,
}

impl Machine {
    pub(super) fn new(fabric: &Arc<Fabric>, node_guid: u64, ports: u8, large_entries: bool) -> Self {
        let dma = Arc::new(DmaSpace::new());
        let file: File = tempfile::tempfile().unwrap();
        file.set_len(MEMORY_BYTES).unwrap();
        dma.map_fd(MEMORY, MEMORY_BYTES, &file, 0, true).unwrap();
        dma.set_enabled(true);
        let interrupts = Arc::new(Counted::default());
        let config = HcaConfig { node_guid, ports, trace: None };
        let hca = Hca::new(config, dma.clone(), interrupts.clone(), fabric).unwrap();
        let mut machine = Self {
            hca,
            dma,
            interrupts,
            next_page: Cell::new(MEMORY),
            mailbox: Cell::new(0),
            next_mtt: Cell::new(8),
            next_key: Cell::new(0x100),
            next_number: Cell::new(0x80),
            entry_bytes: 0,
            events: 0,
            consumed: Cell::new(0),
            seen: RefCell::default(),
        };
        machine.init_hca(large_entries);
        machine
    }

    /// MAP_ICM and INIT_HCA, and an EQ that all events go to.
    fn init_hca(&mut self, large_entries: bool) {
        let tables = [MTT, DMPT, MC].map(|icm| (icm, self.pages(1 << TABLE_LOG2_PAGES), TABLE_LOG2_PAGES));
        self.hca.icm.map(&tables).unwrap();
        let mut init = InitHca::new_zeroed();
        let p = &mut init.params;
        p.qpc = IcmTable::new(0, 16).unwrap();
        p.srqc = IcmTable::new(0, 15).unwrap();
        p.cqc = IcmTable::new(0, 15).unwrap();
        p.eqc = IcmTable::new(0, 5).unwrap();
        p.flags.set_ud_av_port_check(true);
        p.eqe_cqe.set_cqe_64b(large_entries);
        p.eqe_cqe.set_eqe_64b(large_entries);
        self.entry_bytes = if large_entries { 64 } else { 32 };
        p.mtt_base = U64::new(MTT);
        p.dmpt_base = U64::new(DMPT);
        p.dmpt.set_log2_entries(15);
        p.dmpt.set_mw_enable(true);
        p.mc_base = U64::new(MC);
        p.mc_entry_sz.set_log2(8);
        p.mc_hash_sz.set_log2(6);
        p.mc_table.set_log2_table_sz(7);
        p.uar.set_log2_max_uars(10);
        self.hca.running.store(Some(Arc::new(Running::new(&init).unwrap())));
        let pages = (self.entry_bytes << LOG2_EVENTS) / PAGE;
        self.events = self.pages(pages);
        let mut context = EqContext::new_zeroed();
        context.size.set_log2_entries(LOG2_EVENTS);
        context.flags.set_state(EqState::ALWAYS_ARMED);
        context.pages = self.ring_pages(self.events, pages);
        let running = self.running();
        let eq = Eq::new(&self.burst(), &running, EQN, &context, self.interrupts.clone()).unwrap();
        running.eqs.insert(EQN, Arc::new(eq));
        running.route_events(!0, Some(EQN));
    }

    pub(super) fn running(&self) -> Arc<Running> {
        self.hca.running.load_full().unwrap()
    }

    /// Starts anew as a driver that doesn't enable windows; nothing that was made before is left, besides the
    /// EQ.
    pub(super) fn without_windows(&self) {
        let (eq, mut init) = (self.eq(), self.running().init);
        init.params.dmpt.set_mw_enable(false);
        let running = Running::new(&init).unwrap();
        running.eqs.insert(EQN, eq);
        self.hca.running.store(Some(Arc::new(running)));
    }

    pub(super) fn burst(&self) -> Burst {
        self.hca.enter().unwrap().0
    }

    pub(super) fn eq(&self) -> Arc<Eq> {
        self.running().eqs.get(EQN).unwrap()
    }

    pub(super) fn port(&self) -> &PortState {
        self.port_number(PORT)
    }

    pub(super) fn port_number(&self, number: u8) -> &PortState {
        self.hca.node.port(number).unwrap()
    }

    /// Memory of whole pages, all zero; its bus address.
    pub(super) fn pages(&self, count: u64) -> u64 {
        let at = self.next_page.get();
        self.next_page.set(at + count * PAGE);
        assert!(self.next_page.get() <= MEMORY + MEMORY_BYTES, "out of memory");
        at
    }

    /// A number for a new object.
    pub(super) fn number(&self) -> u32 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    pub(super) fn write(&self, bus: u64, bytes: &[u8]) {
        self.dma.snapshot().write(bus, bytes).unwrap();
    }

    pub(super) fn store<T: IntoBytes + Immutable>(&self, bus: u64, value: &T) {
        self.write(bus, value.as_bytes());
    }

    pub(super) fn read(&self, bus: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.dma.snapshot().read(bus, &mut bytes).unwrap();
        bytes
    }

    pub(super) fn load<T: FromBytes + IntoBytes>(&self, bus: u64) -> T {
        self.dma.snapshot().read_obj(bus).unwrap()
    }

    /// Stores a 32-bit word after everything that was stored before.
    pub(super) fn publish(&self, bus: u64, word: [u8; 4]) {
        self.dma.snapshot().store_u32(bus, u32::from_ne_bytes(word), Ordering::Release).unwrap();
    }

    /// Enters pages in the MTT; the byte offset of the first entry.
    fn mtt(&self, bus: u64, pages: u64) -> u64 {
        let at = self.next_mtt.get();
        self.next_mtt.set(at + 8 * pages);
        let burst = self.burst();
        for i in 0..pages {
            let entry = MttEntry::present(bus + i * PAGE);
            burst.icm_write(MTT + at + 8 * i, entry.as_bytes()).unwrap();
        }
        at
    }

    /// The pages of a ring.
    pub(super) fn ring_pages(&self, bus: u64, pages: u64) -> RingPages {
        RingPages::new(12, self.mtt(bus, pages)).unwrap()
    }

    /// Memory of `len` bytes, registered with all rights.
    pub(super) fn buffer(&self, len: u64) -> Buffer {
        self.register(len, ALL, PD)
    }

    /// Memory of `len` bytes that begins a little after the start of a page.
    pub(super) fn register(&self, len: u64, access: Access, pd: u32) -> Buffer {
        let offset = 0x128;
        let pages = (offset + len).div_ceil(PAGE).max(1);
        let bus = self.pages(pages) + offset;
        let va = bus ^ 0x5500_0000_0000;
        let index = self.next_key.replace(self.next_key.get() + 1);
        let key = mpt_index_to_key(index | KEY_BITS);
        let mut mpt = MptEntry::new_zeroed();
        mpt.flags = MptFlags::new()
            .with_status(MptStatus::VALID)
            .with_region(true)
            .with_local_read(true)
            .with_local_write(access.local_write)
            .with_remote_read(access.remote)
            .with_remote_write(access.remote)
            .with_remote_atomic(access.atomic)
            .with_bind(access.bind);
        mpt.key = U32::new(key_to_mpt_index(key));
        mpt.pd.set_pd(pd);
        mpt.start = U64::new(va);
        mpt.length = U64::new(len);
        mpt.log2_page = Number21::new().with_number(12);
        mpt.mtt_address = U64::new(self.mtt(bus - offset, pages));
        tpt::write_mpt(&self.burst(), index, &mpt).unwrap();
        Buffer { bus, va, len, key }
    }

    /// A window that isn't bound; its key.
    pub(super) fn window(&self, type_2: bool, pd: u32) -> u32 {
        let mut mpt = MptEntry::new_zeroed();
        let status = if type_2 { MptStatus::FREE } else { MptStatus::SOFTWARE };
        mpt.flags.set_status(status);
        mpt.qp.set_bound_to_qp(type_2);
        mpt.pd = MptPd::new().with_invalidate(type_2).with_remote_invalidate(type_2).with_pd(pd);
        self.enter(mpt)
    }

    /// A region of `pages` pages at most that is free for registration by work requests; its key.
    pub(super) fn free_region(&self, pages: u64, pd: u32) -> u32 {
        let mut mpt = MptEntry::new_zeroed();
        mpt.flags.set_status(MptStatus::FREE);
        mpt.flags.set_region(true);
        mpt.pd = MptPd::new()
            .with_fast_register(true)
            .with_remote_access_enable(true)
            .with_invalidate(true)
            .with_remote_invalidate(true)
            .with_pd(pd);
        mpt.mtt_address = U64::new(self.next_mtt.replace(self.next_mtt.get() + 8 * pages));
        mpt.mtt_entries = U32::new(u32::try_from(pages).unwrap());
        self.enter(mpt)
    }

    /// Hands an entry to the device (SW2HW_MPT); its new key.
    pub(super) fn enter(&self, mut mpt: MptEntry) -> u32 {
        let index = self.next_key.replace(self.next_key.get() + 1);
        mpt.key = U32::new(index | KEY_BITS);
        assert_eq!(self.command(Opcode::SW2HW_MPT, index, mpt.as_bytes()), Status::OK);
        mpt_index_to_key(mpt.key.get())
    }

    /// The entry of a key, as it is in ICM.
    pub(super) fn mpt(&self, key: u32) -> MptEntry {
        tpt::read_mpt(&self.burst(), key_to_mpt_index(key)).unwrap()
    }

    /// Takes the entry of a key back (HW2SW_MPT).
    pub(super) fn take_back(&self, key: u32) -> Status {
        self.command(Opcode::HW2SW_MPT, key_to_mpt_index(key) & 0x1fff, &[])
    }

    /// Executes a command with an input mailbox.
    pub(super) fn command(&self, opcode: Opcode, modifier: u32, input: &[u8]) -> Status {
        if self.mailbox.get() == 0 {
            self.mailbox.set(self.pages(1));
            // The device never uses its own area, so anything may lie there.
            let area = MapEntry::new(0, MEMORY, 10).unwrap();
            assert_eq!(self.command(Opcode::MAP_FA, 1, area.as_bytes()), Status::OK);
            assert_eq!(self.command(Opcode::RUN_FW, 0, &[]), Status::OK);
        }
        self.write(self.mailbox.get(), input);
        let mut hcr = Hcr::new_zeroed();
        hcr.in_param = U64::new(self.mailbox.get());
        hcr.in_modifier = U32::new(modifier);
        hcr.control.set_opcode(opcode);
        hcr.control.set_go(true);
        self.hca.bar_write(0, HCR_OFFSET, hcr.as_bytes());
        let mut after = Hcr::new_zeroed();
        self.hca.bar_read(0, HCR_OFFSET, after.as_mut_bytes());
        assert!(!after.control.go(), "{opcode} isn't done");
        after.control.status()
    }

    /// Takes a registration back.
    pub(super) fn deregister(&self, buffer: &Buffer) {
        let index = key_to_mpt_index(buffer.key);
        let mut mpt = tpt::read_mpt(&self.burst(), index).unwrap();
        mpt.flags.set_status(MptStatus::SOFTWARE);
        tpt::write_mpt(&self.burst(), index, &mpt).unwrap();
    }

    /// Takes the pages of a buffer out of the MTT.
    pub(super) fn forget_pages(&self, buffer: &Buffer) {
        let burst = self.burst();
        let mpt = tpt::read_mpt(&burst, key_to_mpt_index(buffer.key)).unwrap();
        burst.icm_write(MTT + mpt.mtt_base(), &[0; 8]).unwrap();
    }

    /// Fills a buffer.
    pub(super) fn fill(&self, buffer: &Buffer, bytes: &[u8]) {
        self.write(buffer.bus, bytes);
    }

    /// What is in a buffer.
    pub(super) fn contents(&self, buffer: &Buffer) -> Vec<u8> {
        self.read(buffer.bus, buffer.len)
    }

    /// Writes the multicast group of a GID, at the head of its chain.
    pub(super) fn set_group(&self, gid: &[u8; 16], members: &[McgMember]) {
        let burst = self.burst();
        let mut header = McgHeader::new_zeroed();
        header.gid = *gid;
        header.members = McgMembers::new().with_count(u32::try_from(members.len()).unwrap());
        let at = mcg::entry_addr(&burst, u32::from(mcg::hash(gid, 6))).unwrap();
        let words: Vec<u8> = members.iter().flat_map(|member| member.into_bits().to_bytes()).collect();
        burst.icm_write(at + 0x20, &words).unwrap();
        burst.icm_write(at, header.as_bytes()).unwrap();
    }

    /// Rings the send doorbell.
    pub(super) fn ring(&self, qpn: u32) {
        self.hca.bar_write(2, u64::from(UAR) * PAGE + 0x14, &(qpn << 8).to_be_bytes());
    }

    /// Takes the events that have come; each with the number of its object.
    pub(super) fn take_events(&self) -> Vec<(EventType, u32)> {
        let number = |eqe: &Eqe| u32::from_be_bytes([0, eqe.data[1], eqe.data[2], eqe.data[3]]);
        self.take_eqes().iter().map(|eqe| (eqe.event_type(), number(eqe))).collect()
    }

    /// Takes the entries of the event queue that have come.
    pub(super) fn take_eqes(&self) -> Vec<Eqe> {
        loop {
            let index = self.consumed.get();
            let slot = u64::from(index & ((1 << LOG2_EVENTS) - 1));
            let eqe: Eqe = self.load(self.events + self.entry_bytes * (slot + 1) - 32);
            if eqe.owner.owner() != (index >> LOG2_EVENTS & 1 != 0) {
                return self.seen.take();
            }
            self.consumed.set(index + 1);
            self.seen.borrow_mut().push(eqe);
        }
    }

    /// Interrupts so far.
    pub(super) fn interrupts(&self) -> u64 {
        self.interrupts.0.load(Ordering::SeqCst)
    }

    /// DMA accesses that were refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.dma.refused()
    }
}
