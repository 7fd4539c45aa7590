//! A guest that writes its rings, doorbell records and doorbells by hand, under the model's engine. Its queue
//! pairs are valid and connected, and it knows good keys; another guest's memory and requests stay as they are.
//!
//! Each input begins with queue pairs from RESET, and ends with them there.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use mlx4_pci::HostMemory;
use mlx4_wire::wqe::{
    ByteCount, Completion, CtrlFlags, CtrlOpcode, CtrlSeg, CtrlSize, DataSeg, Opcode, RemoteAddressSeg,
};
use mlx4_wire::{U32, U64};
use paraverbs_hca::Mlx4Hca;
use paraverbs_tenant::GuestPiece;
use paraverbs_tenant::hca::{
    Cookie, CqGeometry, CqId, CqSpec, Created, Doorbell, EventSink, GuestId, Hca, HcaError, HcaEvent, Iova,
    MrId, MrKeys, MrSpec, Path, PdId, Piece, QpGeometry, QpId, QpKind, QpModify, QpSpec, QpState,
    QueueFormat, QueueGeometry, RegionAccess, RemoteAccess, RingMemory, SrqGeometry, SrqId, SrqKind, SrqSpec,
    Target, UarId,
};

use zerocopy::{FromZeros, IntoBytes};

use crate::input::Input;
use crate::world::World;

/// Where things are in a guest's memory.
const CQ_RING: usize = 0;
const QP_RING: usize = 0x1_0000;
const SRQ_RING: usize = 0x4_0000;
const RECORDS: usize = 0x8_0000;
const QP_RECORDS: usize = RECORDS + 0x40;
const SRQ_RECORD: usize = RECORDS + 0x60;
/// Completions that were read, for our own use.
const CONSUMED: usize = RECORDS + 0x80;
const DATA: usize = 0x9_0000;
const MEMORY: usize = 0xb_0000;
/// Bytes of rings that the input may write.
const RINGS: usize = RECORDS - QP_RING;
/// Address of the data in work requests.
const ADDRESS: u64 = 0x5000_0000;
const CQ_ENTRIES: u32 = 256;
const SEND_SLOTS: usize = 64;
const QKEY: u32 = 0x1234;
/// What a bystander's memory has in it.
const PATTERN: u8 = 0xa5;
/// Steps of an input.
const STEPS: usize = 24;
const KINDS: [QpKind; 4] = [QpKind::Rc, QpKind::Uc, QpKind::Ud, QpKind::Rc];

/// Takes events, and keeps none.
#[derive(Debug)]
struct Deaf;

impl EventSink for Deaf {
    fn completion(&self, _: Cookie) {}

    fn raise(&self, _: HcaEvent) {}
}

/// A guest with everything that a queue pair needs.
struct Guest {
    hca: Arc<Mlx4Hca>,
    id: GuestId,
    window: u64,
    memory: HostMemory,
    pd: PdId,
    uar: UarId,
    mr: (MrId, MrKeys),
    cq: Created<CqId>,
    srq: Created<SrqId>,
}

impl Guest {
    fn new(hca: &Arc<Mlx4Hca>, number: u64) -> Result<Self, HcaError> {
        let ranges = hca.dma().ranges;
        let start = ranges.last().map_or(0, |range| range.start);
        let window = start.next_multiple_of(1 << 30) + (number << 30);
        let memory = HostMemory::allocate(MEMORY).map_err(|_| HcaError::NoMappings)?;
        let id = hca.attach(Arc::new(Deaf))?;
        let keep: Arc<dyn Any + Send + Sync> = Arc::new(memory.clone());
        let piece = GuestPiece {
            fd: memory.fd(),
            offset: 0,
            length: MEMORY as u64,
            host_address: memory.address().as_ptr().expose_provenance(),
            writable: true,
            keep: &keep,
        };
        hca.map(Iova(window), &piece)?;
        let (pd, uar) = (hca.alloc_pd(id)?.id, hca.alloc_uar(id)?);
        let at = |offset: usize| Iova(window + offset as u64);
        let length = (MEMORY - DATA) as u64;
        let remote = RemoteAccess { read: true, write: true, atomic: true };
        let mw_bind = hca.device().features.mw_type1;
        let access = RegionAccess { local_write: true, remote, mw_bind };
        let pages = [Piece { iova: at(DATA), length }];
        let mr = hca.create_mr(&MrSpec { pd, access, start: ADDRESS, length, pages: &pages })?;
        let geometry = CqGeometry { entries: CQ_ENTRIES };
        let ring = [Piece { iova: at(CQ_RING), length: hca.cq_layout(&geometry)?.ring_bytes }];
        let cq = hca.create_cq(&CqSpec {
            guest: id,
            cookie: Cookie(1),
            uar,
            geometry,
            memory: RingMemory { ring: &ring, record: Some(at(RECORDS)) },
            timestamp: false,
            ignore_overrun: false,
        })?;
        let geometry = SrqGeometry { log2_wqes: 6, log2_stride: 5, max_wr: 63, max_sge: 1 };
        let ring = [Piece { iova: at(SRQ_RING), length: hca.srq_layout(&geometry)?.ring_bytes }];
        let srq = hca.create_srq(&SrqSpec {
            guest: id,
            cookie: Cookie(2),
            pd,
            kind: SrqKind::Basic,
            geometry,
            memory: RingMemory { ring: &ring, record: Some(at(SRQ_RECORD)) },
        })?;
        Ok(Self { hca: Arc::clone(hca), id, window, memory, pd, uar, mr, cq, srq })
    }

    fn at(&self, offset: usize) -> Iova {
        Iova(self.window + offset as u64)
    }

    /// A queue pair with its ring at the place of the `index`-th.
    fn queue_pair(&self, kind: QpKind, index: usize, shared: bool) -> Result<Created<QpId>, HcaError> {
        let log2_stride = if kind == QpKind::Ud { 7 } else { 6 };
        let headroom = (2048 >> log2_stride) + 1;
        let send = QueueGeometry { log2_wqes: 6, log2_stride, max_wr: 64 - headroom, max_sge: 2 };
        let receive = QueueGeometry { log2_wqes: 6, log2_stride: 5, max_wr: 64, max_sge: 1 };
        let receive = (!shared).then_some(receive);
        let geometry = QpGeometry { kind, send: Some(send), receive, max_inline: 0 };
        let length = self.hca.qp_layout(&geometry)?.ring_bytes;
        let ring = [Piece { iova: self.at(QP_RING + index * 0x8000), length }];
        let record = (!shared).then(|| self.at(QP_RECORDS + 4 * index));
        self.hca.create_qp(&QpSpec {
            guest: self.id,
            cookie: Cookie(3),
            pd: Some(self.pd),
            uar: Some(self.uar),
            send_cq: Some(self.cq.id),
            recv_cq: Some(self.cq.id),
            srq: shared.then_some(self.srq.id),
            xrcd: None,
            geometry,
            memory: RingMemory { ring: &ring, record },
            lso: false,
            block_loopback: false,
            forced_gid: None,
        })
    }
}

/// Two queue pairs of a kind, of one guest each, connected to each other.
struct Pair {
    kind: QpKind,
    ends: [Created<QpId>; 2],
}

struct Scene {
    world: World,
    guests: [Guest; 2],
    bystander: Guest,
    pairs: Vec<Pair>,
    /// Where datagrams go, all but queue pair and Q_Key.
    vector: [u8; 48],
}

static SCENE: Mutex<Option<Scene>> = Mutex::new(None);

fn scene() -> Scene {
    let world = World::new();
    let guest = |number| Guest::new(&world.hca, number).expect("a guest");
    let (guests, bystander) = ([guest(0), guest(1)], guest(2));
    bystander.memory.fill(DATA, MEMORY - DATA, PATTERN).expect("memory");
    let pair = |(index, kind): (usize, &QpKind)| {
        let ends = [0, 1].map(|end: usize| {
            // The last pair takes its receives from the shared queues.
            let shared = index + 1 == KINDS.len();
            guests[end].queue_pair(*kind, index, shared).expect("a queue pair")
        });
        Pair { kind: *kind, ends }
    };
    let pairs = KINDS.iter().enumerate().map(pair).collect();
    let path =
        Path { port: 1, dlid: world.lid, sl: 0, src_path_bits: 0, static_rate: 0, grh: None, dmac: [0; 6] };
    let vector = world.hca.address_vector(guests[0].pd, &path).expect("an address vector").0;
    Scene { world, guests, bystander, pairs, vector }
}

/// The changes that take a queue pair from RESET to RTS.
fn transitions(kind: QpKind, dlid: u16, remote: u32) -> [QpModify; 3] {
    let path = Path { port: 1, dlid, sl: 0, src_path_bits: 0, static_rate: 0, grh: None, dmac: [0; 6] };
    let (connected, reliable) = (kind != QpKind::Ud, kind == QpKind::Rc);
    let access = RemoteAccess { read: reliable, write: true, atomic: reliable };
    [
        QpModify {
            pkey_index: Some(0),
            port: Some(1),
            qkey: (!connected).then_some(QKEY),
            access: connected.then_some(access),
            ..QpModify::state(QpState::Reset, QpState::Init)
        },
        QpModify {
            path: connected.then_some(path),
            path_mtu: connected.then_some(5),
            dest_qpn: connected.then_some(remote),
            rq_psn: connected.then_some(0),
            max_dest_rd_atomic: reliable.then_some(4),
            min_rnr_timer: reliable.then_some(1),
            ..QpModify::state(QpState::Init, QpState::Rtr)
        },
        QpModify {
            sq_psn: Some(0),
            timeout: reliable.then_some(1),
            retry_count: reliable.then_some(0),
            rnr_retry: reliable.then_some(0),
            max_rd_atomic: reliable.then_some(4),
            ..QpModify::state(QpState::Rtr, QpState::Rts)
        },
    ]
}

pub(crate) fn run(bytes: &[u8]) {
    let mut scene_slot = SCENE.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = scene_slot.get_or_insert_with(scene);
    let mut input = Input::new(bytes);
    let index = input.below(KINDS.len());
    scene.start(index);
    let mut heads = [0; 2];
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        scene.step(index, &mut heads, &mut input);
    }
    scene.world.work();
    if !scene.end(index) {
        // A CQ that was full is in error for ever: the next input has another world.
        *scene_slot = None;
    }
}

impl Scene {
    fn start(&self, index: usize) {
        let pair = &self.pairs[index];
        for (end, guest) in self.guests.iter().enumerate() {
            let stride = stride(pair.kind);
            for slot in 0..SEND_SLOTS {
                let not_posted = guest.memory.store_be32(QP_RING + index * 0x8000 + slot * stride, 1 << 31);
                not_posted.expect("a slot in memory");
            }
            guest.memory.fill(QP_RECORDS, 4 * KINDS.len(), 0).expect("records in memory");
            for modify in transitions(pair.kind, self.world.lid, pair.ends[1 - end].number) {
                guest.hca.modify_qp(pair.ends[end].id, &modify).expect("a queue pair starts");
            }
        }
    }

    /// Ends an input; answers whether all can be used again.
    fn end(&self, index: usize) -> bool {
        let mut usable = true;
        for (guest, end) in self.guests.iter().zip(&self.pairs[index].ends) {
            let reset = QpModify::state(QpState::Rts, QpState::Reset);
            guest.hca.modify_qp(end.id, &reset).expect("a queue pair ends");
            usable &= guest.forget_completions();
        }
        self.world.work();
        assert_eq!(self.world.device.refused(), 0, "the device reached for memory that it hasn't got");
        let mut bytes = vec![0; MEMORY - DATA];
        self.bystander.memory.read(DATA, &mut bytes).expect("memory");
        assert!(bytes.iter().all(|byte| *byte == PATTERN), "the memory of another guest was changed");
        usable
    }
}

impl Guest {
    /// Tells the CQ that its entries were read; answers whether there was room for all of them.
    fn forget_completions(&self) -> bool {
        let QueueFormat::Mlx4(format) = self.hca.device().queue_format;
        let (stride, last) = (usize::from(format.cqe_bytes), usize::from(format.cqe_bytes) - 4);
        let first = self.memory.load_be32(CONSUMED).unwrap_or(0);
        let mut next = first;
        while next - first < CQ_ENTRIES {
            let at = CQ_RING + (next % CQ_ENTRIES) as usize * stride;
            let owner = self.memory.load_be32(at + last).expect("an entry in memory") >> 7 & 1;
            if owner != next / CQ_ENTRIES % 2 {
                break;
            }
            next += 1;
        }
        self.memory.store_be32(RECORDS, next & 0xff_ffff).expect("the record in memory");
        self.memory.store_be32(CONSUMED, next).expect("memory");
        next - first < CQ_ENTRIES
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.write(at, bytes).expect("a place in memory");
    }
}

/// Distance of send requests in bytes.
fn stride(kind: QpKind) -> usize {
    if kind == QpKind::Ud { 128 } else { 64 }
}

const OPCODES: [Opcode; 15] = [
    Opcode::NOP,
    Opcode::SEND,
    Opcode::SEND_IMM,
    Opcode::LSO,
    Opcode::SEND_INVALIDATE,
    Opcode::RDMA_WRITE,
    Opcode::RDMA_WRITE_IMM,
    Opcode::RDMA_READ,
    Opcode::ATOMIC_CS,
    Opcode::ATOMIC_FA,
    Opcode::MASKED_ATOMIC_CS,
    Opcode::MASKED_ATOMIC_FA,
    Opcode::BIND_MW,
    Opcode::LOCAL_INVALIDATE,
    Opcode::FAST_REGISTER,
];

impl Scene {
    /// One thing that a guest does.
    fn step(&self, index: usize, heads: &mut [usize; 2], input: &mut Input<'_>) {
        let (what, end) = (input.u8(), usize::from(input.u8() & 1));
        let (guest, pair) = (&self.guests[end], &self.pairs[index]);
        let ring = QP_RING + index * 0x8000;
        match what % 10 {
            0..=3 => {
                let slot = ring + (heads[end] % SEND_SLOTS) * stride(pair.kind);
                let owner = heads[end] & SEND_SLOTS != 0;
                guest.write(slot + 4, &self.request(pair, end, owner, input)[4..]);
                let opcode = self.opcode(owner, input);
                guest.write(slot, &opcode);
                heads[end] += 1;
            }
            4 => {
                let receives = ring + SEND_SLOTS * stride(pair.kind);
                let slot = input.below(64);
                guest.write(receives + slot * 32, &self.data(end, input));
                guest.write(receives + slot * 32 + 16, &input.array::<16>());
                let posted = u32::from(input.u8());
                guest.memory.store_be32(QP_RECORDS + 4 * index, posted).expect("a record in memory");
            }
            5 => guest.write(QP_RING + input.below(RINGS - 64), input.bytes(64)),
            6 => guest.write(QP_RECORDS + input.below(0x24), &input.array::<4>()),
            7 => {
                let doorbell = Doorbell { uar: guest.uar, target: Target::Arm(guest.cq.id) };
                guest.hca.ring(doorbell, input.u64());
            }
            8 => {
                let slot = SRQ_RING + input.below(64) * 32;
                guest.write(slot + 16, &self.data(end, input));
                guest.write(SRQ_RECORD, &[0, 0, 0, input.u8()]);
            }
            _ => self.world.work(),
        }
        if what & 0x80 == 0 {
            let doorbell = Doorbell { uar: guest.uar, target: Target::Send(pair.ends[end].id) };
            guest.hca.ring(doorbell, input.u64());
        }
    }

    /// First word of a request: owner and opcode.
    fn opcode(&self, owner: bool, input: &mut Input<'_>) -> [u8; 4] {
        let form = input.u8();
        let opcode = if form & 0xf0 == 0xf0 { Opcode(form & 0x1f) } else { input.pick(&OPCODES) };
        let word = CtrlOpcode::new().with_owner(owner != (form & 0xe0 == 0xe0)).with_opcode(opcode);
        word.into_bits().get().to_be_bytes()
    }

    /// A request: a control segment, what the service wants, and pieces; or any bytes in their places.
    fn request(&self, pair: &Pair, end: usize, owner: bool, input: &mut Input<'_>) -> Vec<u8> {
        let form = input.u8();
        let mut control = CtrlSeg::new_zeroed();
        control.opcode = CtrlOpcode::new().with_owner(owner);
        control.flags = CtrlFlags::new().with_completion(Completion::ALWAYS);
        let mut rest = Vec::new();
        if pair.kind == QpKind::Ud {
            let mut to = self.vector;
            to[32..36].copy_from_slice(&pair.ends[1 - end].number.to_be_bytes());
            to[36..40].copy_from_slice(&QKEY.to_be_bytes());
            rest.extend(to);
        }
        for _ in 0..form & 3 {
            match input.u8() % 4 {
                0 => rest.extend(input.array::<16>()),
                1 => rest.extend(self.remote(1 - end, input)),
                _ => rest.extend(self.data(end, input)),
            }
        }
        let units = u32::try_from(1 + rest.len() / 16).unwrap_or(1);
        control.size =
            CtrlSize::new().with_units(if form & 0x80 == 0 { units } else { u32::from(form & 0x3f) });
        let mut request = control.as_bytes().to_vec();
        request.extend(rest);
        for _ in 0..form >> 2 & 3 {
            let at = input.below(request.len());
            request[at] = input.u8();
        }
        request.truncate(stride(pair.kind));
        request
    }

    /// A data segment with a good key, in memory that the key is of, mostly.
    fn data(&self, end: usize, input: &mut Input<'_>) -> [u8; 16] {
        let mut segment = DataSeg::new_zeroed();
        let count = u32::from(input.u16());
        segment.byte_count =
            ByteCount::new().with_count(if count & 0xff00 == 0xff00 { count << 12 } else { count });
        segment.lkey = U32::new(self.guests[end].mr.1.lkey);
        segment.address = U64::new(ADDRESS + u64::from(input.u16()));
        zerocopy::transmute!(segment)
    }

    fn remote(&self, end: usize, input: &mut Input<'_>) -> [u8; 16] {
        let mut segment = RemoteAddressSeg::new_zeroed();
        segment.rkey = U32::new(self.guests[end].mr.1.rkey);
        segment.address = U64::new(ADDRESS + u64::from(input.u16()));
        zerocopy::transmute!(segment)
    }
}

/// Everything that guests make a driver do, as far as it goes: for a card that lies to it.
pub(crate) fn objects(hca: &Arc<Mlx4Hca>) {
    let Ok(guest) = Guest::new(hca, 0) else { return };
    for (index, kind) in KINDS.into_iter().enumerate() {
        let Ok(qp) = guest.queue_pair(kind, index, index + 1 == KINDS.len()) else { continue };
        for modify in transitions(kind, 1, qp.number) {
            let _refused_or_not = hca.modify_qp(qp.id, &modify);
        }
        let _shown = (hca.query_qp(qp.id), hca.query_srq(guest.srq.id), hca.arm_srq(guest.srq.id, 3));
        hca.ring(Doorbell { uar: guest.uar, target: Target::Send(qp.id) }, 0);
        let _refused_or_not = hca.destroy_qp(qp.id);
    }
    let _refused_or_not = (
        hca.destroy_srq(guest.srq.id),
        hca.destroy_cq(guest.cq.id),
        hca.destroy_mr(guest.mr.0),
        hca.dealloc_uar(guest.uar),
        hca.dealloc_pd(guest.pd),
    );
    hca.detach(guest.id);
    let _unmapped = hca.unmap(Iova(guest.window), MEMORY as u64);
}
