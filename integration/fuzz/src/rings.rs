//! A guest's work requests, doorbell records and doorbells, written by hand, in the model's engine.
//!
//! The guest has connected queue pairs of RC and UC, one of datagrams, and one whose requests for receives are
//! shared; all of them his own, made anew each time. Beside him lives a victim, whose keys he knows.

mod guest;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arbitrary::Arbitrary;
use mlx4::Profile;
use mlx4_model::fabric::Fabric;
use mlx4_model::seam::ModelDevice;
use mlx4_wire::wqe::{
    AtomicSeg, ByteCount, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, RemoteAddressSeg,
};
use mlx4_wire::{U32, U64};
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_tenant::hca::{Doorbell, Hca, Target};
use zerocopy::{FromZeros, IntoBytes};

use crate::input::{one, operations};
use crate::parts::{card, eventually, fabric, seam, settle};
use guest::{Bare, DATA, DATA_BYTES, Guest, Keys, QPS, RECORDS, RING_BYTES};

/// State of a port that is ready.
const ACTIVE: u8 = 4;

/// What the victim's memory has everywhere.
const PATTERN: u8 = 0xa5;

#[derive(Arbitrary, Debug)]
enum Key {
    Own,
    Victims,
    /// Of a number near one's own.
    Near(i8),
    Reserved,
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Address {
    /// In the region, from its start or back from its end.
    Inside(u16),
    End(u8),
    /// The bus address that the guest's memory begins at.
    Window(u32),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Segment {
    Data {
        key: Key,
        address: Address,
        count: u16,
    },
    LongData {
        key: Key,
        address: Address,
        count: u32,
    },
    Remote {
        key: Key,
        address: Address,
    },
    Atomic {
        swap: u64,
        compare: u64,
    },
    Raw([u8; 16]),
    Inline(u16),
    /// An address vector to a queue pair of one's own.
    Vector {
        qp: u8,
        qkey: u32,
        port: u8,
        lid: Option<u16>,
        flags: u8,
    },
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// A request behind the last one, and a doorbell for it.
    Post {
        qp: u8,
        opcode: u8,
        immediate: u32,
        flags: u32,
        units: Option<u8>,
        segments: [Option<Segment>; 4],
    },
    /// A request for a receive.
    Receive {
        qp: u8,
        segments: [Option<Segment>; 2],
    },
    /// Bytes anywhere in a queue pair's ring.
    Write {
        qp: u8,
        offset: u16,
        bytes: &'a [u8],
    },
    Record {
        index: u8,
        value: u32,
    },
    Ring {
        qp: u8,
    },
    Arm {
        value: u64,
    },
    Run,
}

/// Queue pairs' opcodes for requests, the valid ones first.
const OPCODES: [u8; 20] = [
    0x00, 0x01, 0x08, 0x09, 0x0a, 0x0b, 0x0e, 0x10, 0x11, 0x12, 0x14, 0x15, 0x18, 0x19, 0x1b, 0x02, 0x07,
    0x0f, 0x1c, 0x1f,
];

struct Scene {
    device: Arc<ModelDevice>,
    hca: Arc<Mlx4Hca>,
    lid: u16,
    attacker: Bare,
    _victim: (Bare, Guest),
    victims_keys: Keys,
    victims_memory: mlx4_pci::HostMemory,
    _fabric: Arc<Fabric>,
}

static SCENE: LazyLock<Mutex<Scene>> = LazyLock::new(|| Mutex::new(Scene::new()));

/// Does what a guest may do without asking anybody.
pub fn run(bytes: &[u8]) {
    let scene = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut guest = Guest::new(&scene.hca, &scene.attacker, scene.lid);
    for step in operations::<Step<'_>>(bytes, 100) {
        scene.take(&mut guest, &step);
    }
    settle(scene.device.hca());
    scene.check();
    guest.destroy(&scene.hca);
}

impl Scene {
    fn new() -> Self {
        let fabric = fabric(true);
        let device = card(&fabric, 0x0002_c903_00f1_0000);
        let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
        let config = Mlx4Config { profile, completion_eqs: 1, ..Mlx4Config::default() };
        let hca = Mlx4Hca::open(seam(&device), config).unwrap();
        let active = || hca.query_port(1).ok().filter(|port| port.state == ACTIVE);
        let lid = eventually("an active port", &[device.hca()], active).lid;
        let (attacker, victim) = (Bare::new(&hca, 0), Bare::new(&hca, 1));
        victim.memory.write(DATA, &[PATTERN; DATA_BYTES]).unwrap();
        let guest = Guest::new(&hca, &victim, lid);
        let (victims_keys, victims_memory) = (guest.keys, victim.memory.clone());
        let victim = (victim, guest);
        Self { device, hca, lid, attacker, _victim: victim, victims_keys, victims_memory, _fabric: fabric }
    }

    fn key(&self, key: &Key, guest: &Guest, remote: bool) -> u32 {
        let of = |keys: &Keys| if remote { keys.rkey } else { keys.lkey };
        match *key {
            Key::Own => of(&guest.keys),
            Key::Victims => of(&self.victims_keys),
            Key::Near(by) => of(&guest.keys).wrapping_add_signed(by.into()),
            Key::Reserved => 0x100,
            Key::Any(key) => key,
        }
    }

    fn address(&self, address: &Address) -> u64 {
        match *address {
            Address::Inside(offset) => guest::ADDRESS + u64::from(offset),
            Address::End(before) => guest::ADDRESS + DATA_BYTES as u64 - u64::from(before),
            Address::Window(offset) => self.attacker.window.wrapping_add(offset.into()),
            Address::Any(address) => address,
        }
    }

    fn data(&self, guest: &Guest, key: &Key, address: &Address, count: u32) -> Vec<u8> {
        let mut data = DataSeg::new_zeroed();
        data.byte_count = ByteCount::from_bits(U32::new(count));
        data.lkey = U32::new(self.key(key, guest, false));
        data.address = U64::new(self.address(address));
        data.as_bytes().to_vec()
    }

    fn segment(&self, segment: &Segment, guest: &Guest) -> Vec<u8> {
        match segment {
            Segment::Data { key, address, count } => self.data(guest, key, address, u32::from(*count)),
            Segment::LongData { key, address, count } => self.data(guest, key, address, *count),
            Segment::Remote { key, address } => {
                let mut remote = RemoteAddressSeg::new_zeroed();
                remote.rkey = U32::new(self.key(key, guest, true));
                remote.address = U64::new(self.address(address));
                remote.as_bytes().to_vec()
            }
            Segment::Atomic { swap, compare } => {
                [swap.to_be_bytes(), compare.to_be_bytes()].concat()[..size_of::<AtomicSeg>()].to_vec()
            }
            Segment::Raw(bytes) => bytes.to_vec(),
            Segment::Inline(length) => {
                let length = u32::from(*length);
                let mut bytes = (0x8000_0000 | length).to_be_bytes().to_vec();
                bytes.resize(16 + usize::try_from(length % 128).unwrap() / 16 * 16, 0x17);
                bytes
            }
            Segment::Vector { qp, qkey, port, lid, flags } => {
                let mut vector = [0; 48];
                let pd = guest.pd_number & 0xff_ffff | u32::from(*port) << 24;
                vector[0..4].copy_from_slice(&pd.to_be_bytes());
                vector[5] = *flags;
                vector[6..8].copy_from_slice(&lid.unwrap_or(self.lid).to_be_bytes());
                let qpn = guest.qps[usize::from(*qp) % QPS].number;
                vector[32..36].copy_from_slice(&qpn.to_be_bytes());
                vector[36..40].copy_from_slice(&qkey.to_be_bytes());
                vector.to_vec()
            }
        }
    }

    fn take(&self, guest: &mut Guest, step: &Step<'_>) {
        let memory = &self.attacker.memory;
        match step {
            Step::Post { qp, opcode, immediate, flags, units, segments } => {
                let qp = usize::from(*qp) % QPS;
                let body: Vec<u8> =
                    segments.iter().flatten().flat_map(|segment| self.segment(segment, guest)).collect();
                let (slot, pass) = guest.next_slot(qp);
                let length = body.len().min(guest.qps[qp].stride - 16);
                let units = units.unwrap_or(u8::try_from(1 + length / 16).unwrap());
                let mut ctrl = CtrlSeg::new_zeroed();
                ctrl.opcode = CtrlOpcode::from_bits(U32::new(u32::from(one(&OPCODES, *opcode)) | pass));
                ctrl.size = CtrlSize::new().with_units(u32::from(units & 0x3f));
                ctrl.flags = CtrlFlags::from_bits(U32::new(*flags));
                let mut head = ctrl.as_bytes().to_vec();
                head[12..16].copy_from_slice(&immediate.to_be_bytes());
                memory.write(slot + 16, &body[..length]).unwrap();
                memory.write(slot, &head).unwrap();
                self.ring(guest, qp);
            }
            Step::Receive { qp, segments } => {
                let body: Vec<u8> = segments
                    .iter()
                    .flatten()
                    .flat_map(|segment| self.segment(segment, guest))
                    .chain(DataSeg::TERMINATOR.as_bytes().iter().copied())
                    .collect();
                guest.post_receive(memory, usize::from(*qp) % QPS, &body);
            }
            Step::Write { qp, offset, bytes } => {
                let offset = usize::from(*offset) % RING_BYTES;
                let length = bytes.len().min(RING_BYTES - offset);
                let ring = guest.qps[usize::from(*qp) % QPS].ring;
                memory.write(ring + offset, &bytes[..length]).unwrap();
            }
            Step::Record { index, value } => {
                memory.store_be32(RECORDS + 4 * usize::from(*index), *value).unwrap();
            }
            Step::Ring { qp } => self.ring(guest, usize::from(*qp) % QPS),
            Step::Arm { value } => {
                let target = Target::Arm(guest.cq);
                self.hca.ring(Doorbell { uar: guest.uar, target }, *value);
            }
            Step::Run => settle(self.device.hca()),
        }
    }

    fn ring(&self, guest: &Guest, qp: usize) {
        let target = Target::Send(guest.qps[qp].id);
        self.hca.ring(Doorbell { uar: guest.uar, target }, u64::MAX);
    }

    /// Nobody else has noticed anything.
    fn check(&self) {
        assert_eq!(self.device.refused(), 0, "accesses of the HCA to memory that nobody gave it");
        let mut bytes = [0; DATA_BYTES];
        self.victims_memory.read(DATA, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == PATTERN), "the victim's memory has changed");
    }
}
