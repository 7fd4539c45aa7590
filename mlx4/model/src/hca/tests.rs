//! A driver that writes whatever it likes: commands, contexts, doorbells and memory are half sense and half
//! noise. The HCA must answer every command soon, and go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx4_wire::cmd::fw::MapEntry;
use mlx4_wire::cmd::hca::{IcmTable, InitHca, RdmarcTable};
use mlx4_wire::cmd::port::{QueryPort, SetPortOp};
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::RingPages;
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::eq::EqContext;
use mlx4_wire::ctx::qp::{QpMailbox, ServiceType, WqSize};
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::regs::{HCR_OFFSET, Hcr, RESET_OFFSET, eq_doorbell_offset};
use mlx4_wire::{Number24, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::*;

const PAGE: u64 = 4096;
const MEMORY: u64 = 0x10_0000_0000;
const MEMORY_BYTES: u64 = 16 << 20;
const INPUT: u64 = MEMORY;
const OUTPUT: u64 = MEMORY + PAGE;
/// Memory that the firmware is given, and that all of ICM lies in, over and over.
const GIVEN: u64 = MEMORY + (4 << 20);
const ICM_BYTES: u64 = 64 << 20;
const GUID: u64 = 0x0002_c903_0000_0040;
/// Longest that a command may take, on a busy machine: a VMM waits for five seconds.
const PATIENCE: Duration = Duration::from_secs(4);

struct Silent;

impl Interrupts for Silent {
    fn signal(&self, _vector: u16) {}
}

struct Driver {
    hca: Arc<Hca>,
    dma: Arc<DmaSpace>,
    noise: u64,
    executed: u32,
}

impl Driver {
    fn new() -> Self {
        let fabric = Fabric::new(crate::fabric::FabricConfig::default()).unwrap();
        let dma = Arc::new(DmaSpace::new());
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY_BYTES).unwrap();
        dma.map_fd(MEMORY, MEMORY_BYTES, &file, 0, true).unwrap();
        let config = HcaConfig { node_guid: GUID, ports: 2, trace: None };
        let hca = Hca::new(config, dma.clone(), Arc::new(Silent), &fabric).unwrap();
        Self { hca, dma, noise: 0x9e37_79b9_7f4a_7c15, executed: 0 }
    }

    /// The next random number (xorshift).
    fn next(&mut self) -> u64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        self.noise
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn small(&mut self, n: u32) -> u32 {
        u32::try_from(self.below(n.into())).unwrap()
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.dma.snapshot().write(at, bytes).unwrap();
    }

    fn command(&mut self, opcode: Opcode, opmod: u8, modifier: u32, input: u64) -> Status {
        let mut hcr = Hcr::new_zeroed();
        hcr.in_param = U64::new(input);
        hcr.in_modifier = U32::new(modifier);
        hcr.out_param = U64::new(OUTPUT);
        hcr.control.set_opcode(opcode);
        hcr.control.set_opmod(opmod & 0xf);
        hcr.control.set_event(self.chance(2));
        hcr.control.set_go(true);
        let started = Instant::now();
        self.hca.bar_write(0, HCR_OFFSET, hcr.as_bytes());
        assert!(started.elapsed() < PATIENCE, "{opcode} took {:?}", started.elapsed());
        let mut after = Hcr::new_zeroed();
        self.hca.bar_read(0, HCR_OFFSET, after.as_mut_bytes());
        assert!(!after.control.go(), "{opcode} isn't done");
        let status = after.control.status();
        self.executed += u32::from(status == Status::OK);
        status
    }

    /// From a reset to INIT_HCA, as a driver does it.
    fn bring_up(&mut self) {
        self.hca.config_write(4, &[6, 0]);
        let map = |va, pa, log2_pages| MapEntry::new(va, pa, log2_pages).unwrap();
        self.write(INPUT, map(0, GIVEN, 10).as_bytes());
        assert_eq!(self.command(Opcode::MAP_FA, 0, 1, INPUT), Status::OK);
        assert_eq!(self.command(Opcode::RUN_FW, 0, 0, 0), Status::OK);
        assert_eq!(self.command(Opcode::SET_ICM_SIZE, 0, 0, ICM_BYTES), Status::OK);
        assert_eq!(self.command(Opcode::MAP_ICM_AUX, 0, 1, INPUT), Status::OK);
        self.map_icm();
        self.init_hca();
    }

    fn map_icm(&mut self) {
        // The control MPTs of the four kinds of objects are a gigabyte apart.
        let places = (0..16).map(|i| i << 22).chain((1..4).map(|kind| kind << 30));
        let entries: Vec<_> = places.map(|va| MapEntry::new(va, GIVEN, 10).unwrap()).collect();
        self.write(INPUT, entries.as_bytes());
        assert_eq!(self.command(Opcode::MAP_ICM, 0, 19, INPUT), Status::OK);
    }

    fn init_hca(&mut self) {
        let mut init = InitHca::new_zeroed();
        init.version = mlx4_wire::cmd::hca::INIT_HCA_VERSION;
        let mut base = || self.below(ICM_BYTES >> 6) << 6;
        let p = &mut init.params;
        p.qpc = IcmTable::new(base(), 8).unwrap();
        p.srqc = IcmTable::new(base(), 7).unwrap();
        p.cqc = IcmTable::new(base(), 8).unwrap();
        p.eqc = IcmTable::new(base(), 5).unwrap();
        p.rdmarc = RdmarcTable::new(base(), 3).unwrap();
        p.dmpt_base = U64::new(base());
        p.dmpt.set_log2_entries(8);
        p.mtt_base = U64::new(base());
        p.mc_base = U64::new(base());
        p.mc_entry_sz.set_log2(9);
        p.mc_hash_sz.set_log2(5);
        p.mc_table.set_log2_table_sz(6);
        p.uar.set_log2_max_uars(10);
        self.write(INPUT, init.as_bytes());
        // The tables may lie where nothing is mapped; an HCA that refuses is brought up again later.
        self.command(Opcode::INIT_HCA, 0, 0, INPUT);
    }

    fn pages(&mut self) -> RingPages {
        RingPages::new(12, self.below(1 << 20) & !7).unwrap()
    }

    /// A place for a doorbell record, mostly in memory.
    fn record(&mut self) -> U64 {
        let wild = self.next();
        U64::new(if self.chance(20) { wild } else { MEMORY + wild % MEMORY_BYTES })
    }

    fn log2_size(&mut self) -> u8 {
        u8::try_from(if self.chance(200) { self.below(24) } else { self.below(10) }).unwrap()
    }

    fn cqn(&mut self) -> Number24 {
        Number24::wrapping(0x80 + self.small(8))
    }

    /// Noise that has the shape of the structure that a command takes, mostly.
    fn mailbox(&mut self, opcode: Opcode) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..64).flat_map(|_| self.next().to_le_bytes()).collect();
        match opcode {
            Opcode::SW2HW_EQ => {
                let mut eq = EqContext::new_zeroed();
                eq.flags = FromBytes::read_from_bytes(&bytes[..4]).unwrap();
                eq.size.set_log2_entries(self.log2_size());
                eq.pages = self.pages();
                bytes[..size_of_val(&eq)].copy_from_slice(eq.as_bytes());
            }
            Opcode::SW2HW_CQ | Opcode::MODIFY_CQ => {
                let mut cq = CqContext::new_zeroed();
                cq.flags = FromBytes::read_from_bytes(&bytes[..4]).unwrap();
                cq.size.set_log2_entries(self.log2_size());
                cq.size.set_uar_page(self.small(4));
                cq.pages = self.pages();
                cq.record_address = self.record();
                cq.completion_eq.set_eqn(8);
                bytes[..size_of_val(&cq)].copy_from_slice(cq.as_bytes());
            }
            Opcode::SW2HW_SRQ => {
                let (mut srq, _) = SrqContext::read_from_prefix(&bytes).unwrap();
                srq.pages = self.pages();
                srq.record_address = self.record();
                srq.cq = FromZeros::new_zeroed();
                if self.chance(2) {
                    srq.cq.set_cqn(self.cqn().number());
                }
                bytes[..size_of_val(&srq)].copy_from_slice(srq.as_bytes());
            }
            _ if (0x19..=0x20).contains(&opcode.0) || opcode.0 == 0x2d || opcode.0 == 0x38 => {
                let (mut qp, _) = QpMailbox::read_from_prefix(&bytes).unwrap();
                self.shape_qp(&mut qp);
                bytes[..size_of_val(&qp)].copy_from_slice(qp.as_bytes());
            }
            Opcode::MAP_ICM => {
                let entry = MapEntry::new(self.below(ICM_BYTES >> 22) << 22, GIVEN, 10).unwrap();
                bytes[..16].copy_from_slice(entry.as_bytes());
            }
            Opcode::MAD_IFC => {
                let class = [1, 4, 0x81][usize::try_from(self.below(3)).unwrap()];
                bytes[..4].copy_from_slice(&[1, class, 1, if self.chance(2) { 1 } else { 2 }]);
            }
            _ => {}
        }
        while self.chance(4) {
            let (at, bit) = (usize::try_from(self.below(0x120)).unwrap(), self.below(8));
            bytes[at] ^= 1 << bit;
        }
        bytes
    }

    fn shape_qp(&mut self, qp: &mut QpMailbox) {
        use ServiceType as S;
        let service = [S::RC, S::UC, S::UD, S::MLX, S::XRC][usize::try_from(self.below(5)).unwrap()];
        let size = |log2: u64| WqSize::from_bits(u8::try_from(log2 << 3 | 3).unwrap());
        let c = &mut qp.context;
        c.flags.set_service(service);
        (c.sq_size, c.rq_size) = (size(self.below(9)), size(self.below(9)));
        c.pages = self.pages();
        (c.send_cqn, c.receive_cqn) = (self.cqn(), self.cqn());
        c.record_address = self.record();
        c.uar_page = Number24::wrapping(self.small(4));
        c.remote_qpn = Number24::wrapping(self.qpn(16));
        c.primary_path.flags.set_force_loopback(true);
        c.srq.set_enable(self.chance(4));
        c.srq.set_srqn(0x40 + self.small(4));
    }

    /// Number of an object or whatever else a command's modifier means.
    fn modifier(&mut self, opcode: Opcode) -> u32 {
        if self.chance(10) {
            let wild = self.next() >> 32;
            return u32::try_from(wild).unwrap();
        }
        let base = match opcode {
            Opcode::MAP_ICM => return 1,
            Opcode::INIT_PORT | Opcode::CLOSE_PORT | Opcode::SET_PORT | Opcode::QUERY_PORT => 1,
            Opcode::SW2HW_CQ | Opcode::HW2SW_CQ | Opcode::QUERY_CQ | Opcode::MODIFY_CQ => 0x80,
            Opcode::SW2HW_EQ | Opcode::HW2SW_EQ | Opcode::QUERY_EQ | Opcode::MAP_EQ => 8,
            _ => 0x40,
        };
        if base == 0x40 { self.qpn(12) } else { base + self.small(12) }
    }

    /// The number of a queue pair, an XRC target now and then; or that of another object.
    fn qpn(&mut self, count: u32) -> u32 {
        let target = if self.chance(6) { 1 << 23 } else { 0 };
        (0x40 + self.small(count)) | target
    }

    fn step(&mut self) {
        let opcode = match self.below(8) {
            0 => Opcode(u16::try_from(self.below(0x62)).unwrap()),
            1 => Opcode(0xff6 + u16::try_from(self.below(10)).unwrap()),
            2 => Opcode::SW2HW_CQ,
            3 => Opcode(0x0d + u16::try_from(self.below(9)).unwrap()),
            _ => Opcode(0x19 + u16::try_from(self.below(4)).unwrap()),
        };
        let ends = [Opcode::CLOSE_HCA, Opcode::UNMAP_FA, Opcode::UNMAP_ICM_AUX].contains(&opcode);
        if ends && !self.chance(20) {
            return;
        }
        let bytes = self.mailbox(opcode);
        self.write(INPUT, &bytes);
        let (modifier, opmod) = (self.modifier(opcode), u8::try_from(self.below(4)).unwrap());
        let input = if self.chance(30) { self.next() } else { INPUT };
        self.command(opcode, opmod, modifier, input);
    }

    /// Doorbells of queues that may be there, and noise in what they read.
    fn disturb(&mut self) {
        let words: Vec<u8> = (0..32).flat_map(|_| self.word()).collect();
        let at = MEMORY + (self.below(MEMORY_BYTES - 256) & !7);
        self.write(at, &words);
        let (page, qpn) = (u64::from(self.small(4)) * PAGE, self.qpn(12));
        self.hca.bar_write(2, page + 0x14, &(qpn << 8).to_be_bytes());
        let arm = (self.next() & !0xff_ffff_0000_0000) | u64::from(0x80 + self.small(8)) << 32;
        self.hca.bar_write(2, page + 0x20, &arm.to_be_bytes());
        let eqe = u32::try_from(self.next() >> 32).unwrap();
        let at = eq_doorbell_offset(8 + self.small(4));
        self.hca.bar_write(2, at, &eqe.to_be_bytes());
        let (offset, len) = (self.below(0x10_0000), usize::try_from(self.below(24)).unwrap());
        self.hca.bar_read(0, offset, &mut vec![0; len]);
        self.hca.run();
    }

    /// Eight bytes that may be an MTT entry or a segment of a WQE.
    fn word(&mut self) -> [u8; 8] {
        let wild = self.next();
        match self.below(3) {
            0 => wild.to_be_bytes(),
            1 => (wild & 0x3f_0000_00ff).to_be_bytes(),
            _ => (MEMORY + ((wild % MEMORY_BYTES) & !0xfff) + 1).to_be_bytes(),
        }
    }
}

#[test]
fn port_is_infiniband_and_becomes_no_other() {
    let mut driver = Driver::new();
    driver.bring_up();
    for port in [1, 2] {
        assert_eq!(driver.command(Opcode::SENSE_PORT, 0, port, 0), Status::BAD_OP);
        for general_to_scheduler in (0..10).map(|what| what << 8 | port) {
            let ethernet = SetPortOp::ETH.0;
            assert_eq!(
                driver.command(Opcode::SET_PORT, ethernet, general_to_scheduler, INPUT),
                Status::BAD_OP
            );
        }
        assert_eq!(driver.command(Opcode::QUERY_PORT, 0, port, 0), Status::OK);
        let mut query = QueryPort::new_zeroed();
        driver.dma.snapshot().read(OUTPUT, query.as_mut_bytes()).unwrap();
        assert_eq!((query.state.ib(), query.state.eth()), (true, false));
    }
}

#[test]
fn queue_in_use_is_not_touched_by_taking_it_over_again() {
    let ring = MEMORY + (2 << 20);
    let mut driver = Driver::new();
    driver.bring_up();
    // Every entry of the MTT, wherever it lies.
    driver.write(GIVEN, &(ring | 1).to_be_bytes().repeat(1 << 19));
    let mut context = CqContext::new_zeroed();
    context.size.set_log2_entries(5);
    context.pages = RingPages::new(12, 0).unwrap();
    driver.write(INPUT, context.as_bytes());
    assert_eq!(driver.command(Opcode::SW2HW_CQ, 0, 0x80, INPUT), Status::OK);
    driver.write(ring, b"completion");
    assert_eq!(driver.command(Opcode::SW2HW_CQ, 0, 0x80, INPUT), Status::BAD_RES_STATE);
    assert_eq!(driver.dma.snapshot().read_obj::<[u8; 10]>(ring), Ok(*b"completion"));
    assert_eq!(driver.command(Opcode::SW2HW_CQ, 0, 0x180, INPUT), Status::BAD_INDEX);
}

#[test]
fn driver_that_writes_nonsense_is_answered() {
    let mut driver = Driver::new();
    for _ in 0..40 {
        driver.bring_up();
        for _ in 0..4000 {
            let words: Vec<u8> = (0..32).flat_map(|_| driver.word()).collect();
            let at = GIVEN + (driver.below((4 << 20) - 256) & !7);
            driver.write(at, &words);
        }
        for step in 0..400 {
            driver.step();
            driver.disturb();
            if step % 50 == 0 && driver.hca.running.load().is_none() {
                driver.command(Opcode::SET_ICM_SIZE, 0, 0, ICM_BYTES);
                driver.init_hca();
            }
        }
        match driver.below(3) {
            0 => driver.hca.reset(),
            1 => driver.hca.bar_write(0, RESET_OFFSET, &[0, 0, 0, 1]),
            _ => driver.hca.config_write(0x68, &[0, 0x80]),
        }
        assert!(driver.hca.running.load().is_none());
    }
    // It wasn't all refused at the door.
    let counters = driver.hca.counters();
    assert!(driver.executed > 2000, "{} commands executed", driver.executed);
    let executed = counters.send_wqes.get() + counters.datagram_sends.get();
    assert!(executed > 10, "{executed} work requests");
}
