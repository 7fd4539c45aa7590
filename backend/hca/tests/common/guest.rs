//! A guest: memory of its own, mapped in a window, and the objects of one connection.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use mlx4_pci::HostMemory;
use mlx4_wire::wqe::Opcode;
use paraverbs_hca::Mlx4Hca;
use paraverbs_tenant::GuestPiece;
use paraverbs_tenant::hca::*;

use super::rings::{CompletionRing, DATAGRAM_STRIDE, Done, ReceiveRing, SEND_STRIDE, SendRing, data};
use super::{Sink, Told, eventually};

pub const PAGE: usize = 4096;
/// Where things are in a guest's memory.
pub const CQ_RING: usize = 0;
pub const QP_RING: usize = 0x1_0000;
pub const RECORDS: usize = 0x8_0000;
pub const DATA: usize = 0x9_0000;
pub const MEMORY: usize = 0x10_0000;
/// Address of the data in work requests.
pub const ADDRESS: u64 = 0x5000_0000;
pub const CQ_COOKIE: Cookie = Cookie(0xc9);
pub const QP_COOKIE: Cookie = Cookie(0x90);
const CQ_ENTRIES: u32 = 128;
const LOG2_SLOTS: u8 = 6;

pub const ALL: RegionAccess = RegionAccess {
    local_write: true,
    remote: RemoteAccess { read: true, write: true, atomic: true },
    mw_bind: false,
};

/// A guest with memory, and nothing else.
pub struct Bare {
    pub hca: Arc<Mlx4Hca>,
    pub id: GuestId,
    pub told: Receiver<Told>,
    pub memory: HostMemory,
    pub window: u64,
}

impl Bare {
    /// Guest number `n`, with a window of 1 GiB.
    pub fn new(hca: &Arc<Mlx4Hca>, n: u64) -> Self {
        let ranges = hca.dma().ranges;
        let window = ranges.last().unwrap().start.next_multiple_of(1 << 30) + (n << 30);
        let memory = HostMemory::allocate(MEMORY).unwrap();
        let (sink, told) = Sink::pair();
        let id = hca.attach(sink).unwrap();
        let guest = Self { hca: Arc::clone(hca), id, told, memory, window };
        guest.map().unwrap();
        guest
    }

    pub fn map(&self) -> Result<(), HcaError> {
        let keep: Arc<dyn Any + Send + Sync> = Arc::new(self.memory.clone());
        let piece = GuestPiece {
            fd: self.memory.fd(),
            offset: 0,
            length: MEMORY as u64,
            host_address: self.memory.address().as_ptr().expose_provenance(),
            writable: true,
            keep: &keep,
        };
        self.hca.map(Iova(self.window), &piece)
    }

    pub fn piece(&self, offset: usize, length: usize) -> Piece {
        Piece { iova: self.at(offset), length: length as u64 }
    }

    pub fn at(&self, offset: usize) -> Iova {
        Iova(self.window + offset as u64)
    }

    pub fn mr(&self, pd: PdId, access: RegionAccess) -> Result<(MrId, MrKeys), HcaError> {
        let length = MEMORY - DATA;
        let pages = [self.piece(DATA, length)];
        self.hca.create_mr(&MrSpec { pd, access, start: ADDRESS, length: length as u64, pages: &pages })
    }

    pub fn cq(&self, uar: UarId) -> Result<Created<CqId>, HcaError> {
        let layout = self.hca.cq_layout(&CqGeometry { entries: CQ_ENTRIES }).unwrap();
        let ring = [self.piece(CQ_RING, usize::try_from(layout.ring_bytes).unwrap())];
        self.hca.create_cq(&CqSpec {
            guest: self.id,
            cookie: CQ_COOKIE,
            uar,
            geometry: CqGeometry { entries: CQ_ENTRIES },
            memory: RingMemory { ring: &ring, record: Some(self.at(RECORDS)) },
            timestamp: false,
            ignore_overrun: false,
        })
    }

    /// A queue pair that uses nothing.
    pub fn nothing(&self, geometry: QpGeometry) -> QpSpec<'static> {
        QpSpec {
            guest: self.id,
            cookie: QP_COOKIE,
            pd: None,
            uar: None,
            send_cq: None,
            recv_cq: None,
            srq: None,
            xrcd: None,
            geometry,
            memory: RingMemory { ring: &[], record: None },
            lso: false,
            block_loopback: false,
            forced_gid: None,
        }
    }

    pub fn leave(self) {
        self.hca.detach(self.id);
        self.hca.unmap(Iova(self.window), MEMORY as u64).unwrap();
    }
}

/// A geometry of 64 send and receive requests; with `send_last`, the send queue is behind the receive queue and
/// ends with the ring.
pub fn geometry(kind: QpKind, send_last: bool) -> QpGeometry {
    let log2_stride = if kind == QpKind::Ud { 7 } else { 6 };
    let headroom = (2048 >> log2_stride) + 1;
    let send = QueueGeometry { log2_wqes: LOG2_SLOTS, log2_stride, max_wr: 64 - headroom, max_sge: 2 };
    let receive = QueueGeometry {
        log2_wqes: if send_last { 5 } else { LOG2_SLOTS },
        log2_stride: if send_last { 7 } else { 6 },
        max_wr: 32,
        max_sge: 1,
    };
    QpGeometry { kind, send: Some(send), receive: Some(receive), max_inline: 0 }
}

/// A guest with a connection.
pub struct Guest {
    pub bare: Bare,
    pub pd: PdId,
    pub uar: UarId,
    pub mr: MrId,
    pub keys: MrKeys,
    pub cq: Created<CqId>,
    pub qp: Created<QpId>,
    pub send: SendRing,
    pub receive: ReceiveRing,
    pub completions: CompletionRing,
}

impl Guest {
    pub fn new(hca: &Arc<Mlx4Hca>, n: u64) -> Self {
        Self::of(hca, n, QpKind::Rc, false)
    }

    /// One whose queue pair takes datagrams.
    pub fn of_datagrams(hca: &Arc<Mlx4Hca>, n: u64) -> Self {
        Self::of(hca, n, QpKind::Ud, false)
    }

    /// One whose send queue ends with the ring.
    pub fn with_send_last(hca: &Arc<Mlx4Hca>, n: u64) -> Self {
        Self::of(hca, n, QpKind::Rc, true)
    }

    fn of(hca: &Arc<Mlx4Hca>, n: u64, kind: QpKind, send_last: bool) -> Self {
        Self::on(Bare::new(hca, n), kind, send_last)
    }

    /// One on memory that is there already.
    pub fn on(bare: Bare, kind: QpKind, send_last: bool) -> Self {
        let hca = &Arc::clone(&bare.hca);
        let pd = hca.alloc_pd(bare.id).unwrap().id;
        let uar = hca.alloc_uar(bare.id).unwrap();
        let (mr, keys) = bare.mr(pd, ALL).unwrap();
        let cq = bare.cq(uar).unwrap();
        let geometry = geometry(kind, send_last);
        let layout = hca.qp_layout(&geometry).unwrap();
        let ring = [bare.piece(QP_RING, usize::try_from(layout.ring_bytes).unwrap())];
        let spec = QpSpec {
            pd: Some(pd),
            uar: Some(uar),
            send_cq: Some(cq.id),
            recv_cq: Some(cq.id),
            memory: RingMemory { ring: &ring, record: Some(bare.at(RECORDS + 8)) },
            ..bare.nothing(geometry)
        };
        let qp = hca.create_qp(&spec).unwrap();
        let stride = if kind == QpKind::Ud { DATAGRAM_STRIDE } else { SEND_STRIDE };
        let (send_at, receive_at) = if send_last { (PAGE, 0) } else { (0, stride << LOG2_SLOTS) };
        let send = SendRing::new(&bare.memory, QP_RING + send_at, 1 << LOG2_SLOTS, stride);
        let receive = ReceiveRing {
            offset: QP_RING + receive_at,
            entries: if send_last { 32 } else { 64 },
            stride: if send_last { 128 } else { 64 },
            record: RECORDS + 8,
            posted: 0,
        };
        let QueueFormat::Mlx4(format) = hca.device().queue_format;
        let (entries, stride) = (CQ_ENTRIES as usize, usize::from(format.cqe_bytes));
        let completions =
            CompletionRing { offset: CQ_RING, entries, stride, record: RECORDS, consumer: 0, sequence: 1 };
        Self { bare, pd, uar, mr, keys, cq, qp, send, receive, completions }
    }

    /// Takes the queue pair from RESET to RTS.
    pub fn connect(&self, dlid: u16, dest_qpn: u32) {
        let hca = &self.bare.hca;
        for modify in transitions(dlid, dest_qpn) {
            hca.modify_qp(self.qp.id, &modify).unwrap();
        }
    }

    /// Takes the queue pair of datagrams from RESET to RTS.
    pub fn start(&self, qkey: u32) {
        let init = QpModify {
            pkey_index: Some(0),
            port: Some(1),
            qkey: Some(qkey),
            ..QpModify::state(QpState::Reset, QpState::Init)
        };
        let rts = QpModify { sq_psn: Some(1), ..QpModify::state(QpState::Rtr, QpState::Rts) };
        for modify in [init, QpModify::state(QpState::Init, QpState::Rtr), rts] {
            self.bare.hca.modify_qp(self.qp.id, &modify).unwrap();
        }
    }

    /// Two guests, connected to each other.
    pub fn pair(hca: &Arc<Mlx4Hca>, lid: u16) -> [Self; 2] {
        let guests = [Self::new(hca, 0), Self::new(hca, 1)];
        guests[0].connect(lid, guests[1].qp.number);
        guests[1].connect(lid, guests[0].qp.number);
        guests
    }

    /// A piece of the data.
    pub fn data(&self, offset: u64, count: u32) -> Vec<u8> {
        data(self.keys.lkey, ADDRESS + offset, count)
    }

    pub fn post(&mut self, opcode: Opcode, body: &[u8]) {
        self.send.post(&self.bare.memory, opcode, body);
        self.ring();
    }

    pub fn ring(&self) {
        let target = Target::Send(self.qp.id);
        self.bare.hca.ring(Doorbell { uar: self.uar, target }, u64::MAX);
    }

    pub fn post_receive(&mut self, offset: u64, count: u32) {
        let piece = self.data(offset, count);
        self.receive.post(&self.bare.memory, &piece);
    }

    pub fn arm(&self) {
        let value = self.completions.arm(&self.bare.memory);
        self.bare.hca.ring(Doorbell { uar: self.uar, target: Target::Arm(self.cq.id) }, value);
    }

    pub fn completion(&mut self) -> Done {
        let Self { completions, bare, .. } = self;
        eventually("a completion", || completions.poll(&bare.memory))
    }

    /// A send that completed well.
    pub fn sent(&mut self) {
        let done = self.completion();
        assert_eq!((done.is_send, done.syndrome, done.qpn), (true, None, self.qp.number));
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.bare.memory.write(DATA + offset, bytes).unwrap();
    }

    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.bare.memory.read(DATA + offset, &mut bytes).unwrap();
        bytes
    }

    pub fn destroy(self) {
        let hca = &self.bare.hca;
        hca.destroy_qp(self.qp.id).unwrap();
        hca.destroy_cq(self.cq.id).unwrap();
        hca.destroy_mr(self.mr).unwrap();
        hca.dealloc_uar(self.uar).unwrap();
        hca.dealloc_pd(self.pd).unwrap();
        self.bare.leave();
    }
}

/// RESET to INIT to RTR to RTS of a reliable connection.
pub fn transitions(dlid: u16, dest_qpn: u32) -> [QpModify; 3] {
    let path = Path { port: 1, dlid, sl: 0, src_path_bits: 0, static_rate: 0, grh: None, dmac: [0; 6] };
    [
        QpModify {
            pkey_index: Some(0),
            port: Some(1),
            access: Some(ALL.remote),
            ..QpModify::state(QpState::Reset, QpState::Init)
        },
        QpModify {
            path: Some(path),
            path_mtu: Some(5),
            dest_qpn: Some(dest_qpn),
            rq_psn: Some(0x1234),
            max_dest_rd_atomic: Some(4),
            min_rnr_timer: Some(12),
            ..QpModify::state(QpState::Init, QpState::Rtr)
        },
        QpModify {
            sq_psn: Some(0x1234),
            timeout: Some(14),
            retry_count: Some(7),
            rnr_retry: Some(7),
            max_rd_atomic: Some(4),
            ..QpModify::state(QpState::Rtr, QpState::Rts)
        },
    ]
}
