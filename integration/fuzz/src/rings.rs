//! A guest's work requests, doorbell records and doorbells, written by hand, in the model's engine.
//!
//! The guest has connected queue pairs of RC and UC, one of datagrams with large sends, one whose requests for
//! receives are shared, and an extended connection; memory windows; and the page of his doorbells. All of them are his
//! own, made anew each time. Beside him lives a victim, whose keys he knows.

mod guest;
mod request;
#[cfg(test)]
mod tests;
mod watch;

#[cfg(test)]
use std::collections::BTreeMap;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arbitrary::Arbitrary;
use mlx4::Profile;
use mlx4_model::device::PciFunction;
use mlx4_model::fabric::Fabric;
use mlx4_model::seam::ModelDevice;
use mlx4_wire::U32;
use mlx4_wire::doorbell::{CQ_DOORBELL, SEND_DOORBELL, UAR_PAGE_BYTES};
use mlx4_wire::wqe::{CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg};
use paraverbs_hca::{Mlx4Config, Mlx4Hca};
use paraverbs_tenant::hca::{Doorbell, Hca, Target};
use zerocopy::{FromZeros, IntoBytes};

use crate::input::{one, operations};
use crate::parts::{card, eventually, fabric, seam, settle};
use guest::{Bare, DATA, DATA_BYTES, Guest, QPS, RECORDS, RING_BYTES};
use request::{Segment, Whole, World};
use watch::Watch;

/// State of a port that is ready.
const ACTIVE: u8 = 4;

/// What the victim's memory has everywhere.
const PATTERN: u8 = 0xa5;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// A whole request behind the last one, signalled, and a doorbell for it.
    Whole {
        qp: u8,
        flags: u8,
        far_srq: Option<u8>,
        request: Whole,
    },
    /// A request of any segments, likewise.
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
    /// A store to the page of the guest's doorbells.
    Store {
        place: Place,
        word: u32,
        second: Option<u32>,
    },
    /// Asks to be told when an SRQ has fewer receives.
    Limit {
        srq: u8,
        limit: u8,
    },
    Run,
}

/// Where in the page of doorbells.
#[derive(Arbitrary, Debug)]
enum Place {
    Send,
    Arm,
    Any(u16),
}

/// Queue pairs' opcodes for requests, the valid ones first.
const OPCODES: [u8; 20] = [
    0x00, 0x01, 0x08, 0x09, 0x0a, 0x0b, 0x0e, 0x10, 0x11, 0x12, 0x14, 0x15, 0x18, 0x19, 0x1b, 0x02, 0x07,
    0x0f, 0x1c, 0x1f,
];

/// Flags of a request: a completion always comes; and those that whole requests may have besides.
const SIGNALLED: u32 = 3 << 2;
const FLAGS: u32 = 0x32;

struct Scene {
    device: Arc<ModelDevice>,
    hca: Arc<Mlx4Hca>,
    watch: Arc<Watch>,
    world: World,
    attacker: Bare,
    _victim: (Bare, Guest),
    victims_memory: mlx4_pci::HostMemory,
    _fabric: Arc<Fabric>,
}

static SCENE: LazyLock<Mutex<Scene>> = LazyLock::new(|| Mutex::new(Scene::new()));

/// Does what a guest may do without asking anybody.
pub fn run(bytes: &[u8]) {
    carry_out(operations::<Step<'_>>(bytes, 100));
}

fn carry_out<'a>(steps: impl Iterator<Item = Step<'a>>) {
    let scene = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut guest = Guest::new(&scene.hca, &scene.attacker, scene.world.lid);
    for step in steps {
        scene.take(&mut guest, &step);
    }
    settle(scene.device.hca());
    scene.check();
    guest.destroy(&scene.hca);
}

/// How often each kind of completion and event has come of what was done so far: good ones of requests and receives by
/// opcode, others by syndrome.
#[cfg(test)]
fn reached() -> BTreeMap<String, u64> {
    SCENE.lock().unwrap_or_else(PoisonError::into_inner).watch.counts()
}

impl Scene {
    fn new() -> Self {
        let fabric = fabric(true);
        let device = card(&fabric, 0x0002_c903_00f1_0000);
        let watch = Arc::new(Watch::new());
        device.hca().inject(Arc::<Watch>::clone(&watch));
        let profile = Profile { log2_cqs: 10, log2_mcgs: 8, ..Profile::default() };
        let config = Mlx4Config { profile, completion_eqs: 1, ..Mlx4Config::default() };
        let hca = Mlx4Hca::open(seam(&device), config).unwrap();
        let active = || hca.query_port(1).ok().filter(|port| port.state == ACTIVE);
        let lid = eventually("an active port", &[device.hca()], active).lid;
        let (attacker, victim) = (Bare::new(&hca, 0), Bare::new(&hca, 1));
        victim.memory.write(DATA, &[PATTERN; DATA_BYTES]).unwrap();
        let guest = Guest::new(&hca, &victim, lid);
        let world = World { victims: guest.keys, lid, window: attacker.window };
        let victims_memory = victim.memory.clone();
        let victim = (victim, guest);
        Self { device, hca, watch, world, attacker, _victim: victim, victims_memory, _fabric: fabric }
    }

    fn take(&self, guest: &mut Guest, step: &Step<'_>) {
        let memory = &self.attacker.memory;
        match step {
            Step::Whole { qp, flags, far_srq, request } => {
                let qp = usize::from(*qp) % QPS;
                let parts = request.parts(guest, &self.world);
                let far = far_srq.map_or_else(|| guest.far_srq(qp), |number| u32::from(number) << 8);
                let flags = SIGNALLED | far | u32::from(*flags) & FLAGS;
                let numbers = (u32::from(parts.opcode.0), parts.immediate, flags);
                self.post(guest, qp, numbers, None, &parts.body);
            }
            Step::Post { qp, opcode, immediate, flags, units, segments } => {
                let bytes = |segment: &Segment| segment.bytes(guest, &self.world);
                let body: Vec<u8> = segments.iter().flatten().flat_map(bytes).collect();
                let numbers = (u32::from(one(&OPCODES, *opcode)), *immediate, *flags);
                self.post(guest, usize::from(*qp) % QPS, numbers, *units, &body);
            }
            Step::Receive { qp, segments } => {
                let bytes = |segment: &Segment| segment.bytes(guest, &self.world);
                let body = segments.iter().flatten().flat_map(bytes);
                let body: Vec<u8> = body.chain(DataSeg::TERMINATOR.as_bytes().iter().copied()).collect();
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
            Step::Store { place, word, second } => self.store(place, *word, *second),
            Step::Limit { srq, limit } => {
                let srq = guest.srqs[usize::from(*srq) % guest.srqs.len()].id;
                // One that his requests have brought into error takes none.
                let _refused = self.hca.arm_srq(srq, u32::from(*limit % 64));
            }
            Step::Run => settle(self.device.hca()),
        }
    }

    /// Writes a request of an opcode, an immediate and flags behind the last one, and rings for it.
    fn post(
        &self,
        guest: &mut Guest,
        qp: usize,
        (opcode, immediate, flags): (u32, u32, u32),
        units: Option<u8>,
        body: &[u8],
    ) {
        let (slot, pass) = guest.next_slot(qp);
        let length = body.len().min(guest.qps[qp].stride - 16);
        let units = units.unwrap_or(u8::try_from(1 + length / 16).unwrap());
        let mut ctrl = CtrlSeg::new_zeroed();
        ctrl.opcode = CtrlOpcode::from_bits(U32::new(opcode | pass));
        ctrl.size = CtrlSize::new().with_units(u32::from(units & 0x3f));
        ctrl.flags = CtrlFlags::from_bits(U32::new(flags));
        let mut head = ctrl.as_bytes().to_vec();
        head[12..16].copy_from_slice(&immediate.to_be_bytes());
        self.attacker.memory.write(slot + 16, &body[..length]).unwrap();
        self.attacker.memory.write(slot, &head).unwrap();
        self.ring(guest, qp);
    }

    /// Stores a word or two to the guest's own page, as he can where it is mapped into him. Stores are aligned.
    fn store(&self, place: &Place, word: u32, second: Option<u32>) {
        let size = if second.is_some() { 8 } else { 4 };
        let offset = match place {
            Place::Send => SEND_DOORBELL,
            Place::Arm => CQ_DOORBELL,
            Place::Any(offset) => u32::from(*offset) % UAR_PAGE_BYTES / size * size,
        };
        let page = u64::from(self.watch.page()) * u64::from(UAR_PAGE_BYTES);
        let bytes = [word.to_be_bytes(), second.unwrap_or(0).to_be_bytes()].concat();
        let size = usize::try_from(size).unwrap();
        self.device.hca().bar_write(2, page + u64::from(offset), &bytes[..size]);
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
