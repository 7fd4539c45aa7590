//! A guest's memory, his queue pairs, and his memory windows.

use std::any::Any;
use std::sync::Arc;

use mlx4_pci::HostMemory;
use paraverbs_hca::Mlx4Hca;
use paraverbs_tenant::GuestPiece;
use paraverbs_tenant::hca::{
    Cookie, CqGeometry, CqId, CqSpec, Created, EventSink, GuestId, Hca, HcaEvent, Iova, MrId, MrKeys, MrSpec,
    MwId, MwKind, Path, PdId, Piece, QpGeometry, QpId, QpKind, QpModify, QpSpec, QpState, QueueGeometry,
    RegionAccess, RemoteAccess, RingMemory, SrqGeometry, SrqId, SrqKind, SrqSpec, UarId, XrcdId,
};

/// Where things are in a guest's memory.
const CQ_RING: usize = 0;
const QP_RINGS: usize = 0x1_0000;
const SRQ_RINGS: usize = 0x7_0000;
const SRQ_RING_BYTES: usize = 0x1000;
pub(super) const RECORDS: usize = 0x8_0000;
pub(super) const DATA: usize = 0x9_0000;
pub(super) const DATA_BYTES: usize = 0x1_0000;
const MEMORY: usize = 0x10_0000;
/// Bytes from one queue pair's ring to the next.
pub(super) const RING_BYTES: usize = 0x8000;
/// Address of the data in work requests.
pub(super) const ADDRESS: u64 = 0x5000_0000;

const CQ_ENTRIES: u32 = 128;
/// Requests of each queue.
const LOG2_WQES: u8 = 6;
/// Bytes of a request for a receive.
const RECEIVE_STRIDE: usize = 64;
pub(super) const QKEY: u32 = 0x1234;

/// Queue pairs with rings, and whom they are connected to: two of RC, two of UC, one of datagrams, one of RC with an
/// SRQ, connected to itself, and the sending end of an extended connection, whose target has no rings.
const KINDS: [(QpKind, usize); QPS] = [
    (QpKind::Rc, 1),
    (QpKind::Rc, 0),
    (QpKind::Uc, 3),
    (QpKind::Uc, 2),
    (QpKind::Ud, 4),
    (QpKind::Rc, 5),
    (QpKind::XrcSend, TARGET),
];
pub(super) const QPS: usize = 7;
/// The one of datagrams.
pub(super) const DATAGRAMS: u8 = 4;
/// The one with the SRQ, and the one that sends to the other SRQ.
const SHARED: usize = 5;
const EXTENDED: usize = 6;
/// No queue pair with rings.
const TARGET: usize = QPS;
/// SRQs.
const SRQS: usize = 2;

pub(super) type Keys = MrKeys;

const ALL: RegionAccess = RegionAccess {
    local_write: true,
    remote: RemoteAccess { read: true, write: true, atomic: true },
    mw_bind: true,
};

/// Takes events, and forgets them.
#[derive(Debug)]
struct Deaf;

impl EventSink for Deaf {
    fn completion(&self, _: Cookie) {}

    fn raise(&self, _: HcaEvent) {}
}

/// A guest with memory, and nothing else.
pub(super) struct Bare {
    id: GuestId,
    pub(super) memory: HostMemory,
    pub(super) window: u64,
}

impl Bare {
    pub(super) fn new(hca: &Arc<Mlx4Hca>, number: u64) -> Self {
        let window = hca.dma().ranges.last().unwrap().start.next_multiple_of(1 << 30) + (number << 30);
        let memory = HostMemory::allocate(MEMORY).unwrap();
        let id = hca.attach(Arc::new(Deaf)).unwrap();
        let keep: Arc<dyn Any + Send + Sync> = Arc::new(memory.clone());
        let piece = GuestPiece {
            fd: memory.fd(),
            offset: 0,
            length: MEMORY as u64,
            host_address: memory.address().as_ptr().expose_provenance(),
            writable: true,
            keep: &keep,
        };
        hca.map(Iova(window), &piece).unwrap();
        Self { id, memory, window }
    }

    fn at(&self, offset: usize) -> Iova {
        Iova(self.window + offset as u64)
    }

    fn piece(&self, offset: usize, length: u64) -> [Piece; 1] {
        [Piece { iova: self.at(offset), length }]
    }
}

/// A queue pair, and what was posted on it.
#[derive(Debug)]
pub(super) struct OwnQp {
    pub(super) id: QpId,
    pub(super) number: u32,
    pub(super) ring: usize,
    pub(super) stride: usize,
    sent: usize,
    received: usize,
}

/// What a guest has made.
pub(super) struct Guest {
    pub(super) uar: UarId,
    pub(super) pd_number: u32,
    pub(super) keys: Keys,
    pub(super) cq: CqId,
    pub(super) qps: Vec<OwnQp>,
    /// The SRQ of the queue pair that has one, and that of the extended connection's domain.
    pub(super) srqs: [Created<SrqId>; SRQS],
    pd: PdId,
    mr: MrId,
    mws: [Created<MwId>; 2],
    xrcd: XrcdId,
    target: QpId,
}

impl Guest {
    /// Makes everything, and connects what is to be.
    pub(super) fn new(hca: &Arc<Mlx4Hca>, bare: &Bare, lid: u16) -> Self {
        // What the last one has left must not be valid.
        bare.memory.write(0, &[0; DATA]).unwrap();
        let Created { id: pd, number: pd_number, .. } = hca.alloc_pd(bare.id).unwrap();
        let uar = hca.alloc_uar(bare.id).unwrap();
        let pages = bare.piece(DATA, DATA_BYTES as u64);
        let spec = MrSpec { pd, access: ALL, start: ADDRESS, length: DATA_BYTES as u64, pages: &pages };
        let (mr, keys) = hca.create_mr(&spec).unwrap();
        let mws = [MwKind::Type1, MwKind::Type2].map(|kind| hca.alloc_mw(pd, kind).unwrap());
        let cq = cq(hca, bare, uar);
        let xrcd = hca.alloc_xrcd(bare.id).unwrap().id;
        let kinds = [SrqKind::Basic, SrqKind::Xrc { xrcd, cq }];
        let srqs = [0, 1].map(|index| srq(hca, bare, pd, (index, kinds[index])));
        let parts = Parts { pd, uar, cq, srq: srqs[0].id };
        let qps: Vec<OwnQp> = (0..QPS).map(|index| parts.qp(hca, bare, index)).collect();
        let target = target(hca, bare, xrcd);
        for (qp, (kind, peer)) in qps.iter().zip(KINDS) {
            let peer = qps.get(peer).map_or(target.number, |peer| peer.number);
            for modify in transitions(kind, lid, peer) {
                hca.modify_qp(qp.id, &modify).unwrap();
            }
        }
        for modify in &transitions(QpKind::XrcRecv, lid, qps[EXTENDED].number)[..2] {
            hca.modify_qp(target.id, modify).unwrap();
        }
        Self { uar, pd_number, keys, cq, qps, srqs, pd, mr, mws, xrcd, target: target.id }
    }

    /// Keys of his windows, of type 1 and 2, as they were at first.
    pub(super) fn windows(&self) -> [u32; 2] {
        self.mws.map(|mw| mw.number)
    }

    /// The number of the SRQ that a queue pair's requests are for, in its place of their flags; else 0.
    pub(super) fn far_srq(&self, qp: usize) -> u32 {
        if qp == EXTENDED { self.srqs[1].number << 8 } else { 0 }
    }

    /// Destroys everything, whatever has become of it.
    pub(super) fn destroy(self, hca: &Mlx4Hca) {
        self.qps.iter().for_each(|qp| hca.destroy_qp(qp.id).unwrap());
        hca.destroy_qp(self.target).unwrap();
        self.srqs.iter().for_each(|srq| hca.destroy_srq(srq.id).unwrap());
        hca.dealloc_xrcd(self.xrcd).unwrap();
        hca.destroy_cq(self.cq).unwrap();
        self.mws.iter().for_each(|mw| hca.dealloc_mw(mw.id).unwrap());
        hca.destroy_mr(self.mr).unwrap();
        hca.dealloc_uar(self.uar).unwrap();
        hca.dealloc_pd(self.pd).unwrap();
    }

    /// The slot of a queue pair's next request, and its owner bit.
    pub(super) fn next_slot(&mut self, qp: usize) -> (usize, u32) {
        let qp = &mut self.qps[qp];
        let entries = 1 << LOG2_WQES;
        let slot = qp.ring + qp.sent % entries * qp.stride;
        let pass = if qp.sent & entries == 0 { 0 } else { 1 << 31 };
        qp.sent += 1;
        (slot, pass)
    }

    /// Posts a request for a receive, on the SRQ where there is one: of the extended connection on its target's.
    pub(super) fn post_receive(&mut self, memory: &HostMemory, index: usize, body: &[u8]) {
        let body = &body[..body.len().min(RECEIVE_STRIDE - 16)];
        let qp = &mut self.qps[index];
        let slot = qp.received % (1 << LOG2_WQES) * RECEIVE_STRIDE;
        qp.received += 1;
        let count = u32::try_from(qp.received & 0xffff).unwrap();
        if let Some(srq) = index.checked_sub(SHARED) {
            // Behind the segment that links the free requests.
            let ring = SRQ_RINGS + srq * SRQ_RING_BYTES;
            let next = u16::try_from((qp.received) % (1 << LOG2_WQES)).unwrap();
            memory.write(ring + slot + 2, &next.to_be_bytes()).unwrap();
            memory.write(ring + slot + 16, body).unwrap();
            memory.store_be32(srq_record(srq), count).unwrap();
        } else {
            memory.write(qp.ring + (qp.stride << LOG2_WQES) + slot, body).unwrap();
            memory.store_be32(record(index), count).unwrap();
        }
    }
}

fn record(qp: usize) -> usize {
    RECORDS + 8 + 4 * qp
}

fn srq_record(srq: usize) -> usize {
    record(QPS + srq)
}

fn cq(hca: &Mlx4Hca, bare: &Bare, uar: UarId) -> CqId {
    let geometry = CqGeometry { entries: CQ_ENTRIES };
    let ring = bare.piece(CQ_RING, hca.cq_layout(&geometry).unwrap().ring_bytes);
    let spec = CqSpec {
        guest: bare.id,
        cookie: Cookie(1),
        uar,
        geometry,
        memory: RingMemory { ring: &ring, record: Some(bare.at(RECORDS)) },
        timestamp: false,
        ignore_overrun: false,
    };
    hca.create_cq(&spec).unwrap().id
}

fn srq(hca: &Mlx4Hca, bare: &Bare, pd: PdId, (index, kind): (usize, SrqKind)) -> Created<SrqId> {
    let geometry = SrqGeometry { log2_wqes: LOG2_WQES, log2_stride: 6, max_wr: 63, max_sge: 2 };
    let place = SRQ_RINGS + index * SRQ_RING_BYTES;
    let ring = bare.piece(place, hca.srq_layout(&geometry).unwrap().ring_bytes);
    let spec = SrqSpec {
        guest: bare.id,
        cookie: Cookie(2),
        pd,
        kind,
        geometry,
        memory: RingMemory { ring: &ring, record: Some(bare.at(srq_record(index))) },
    };
    hca.create_srq(&spec).unwrap()
}

/// The end of an extended connection that receives, for a domain.
fn target(hca: &Mlx4Hca, bare: &Bare, xrcd: XrcdId) -> Created<QpId> {
    let spec = QpSpec {
        guest: bare.id,
        cookie: Cookie(0x80),
        pd: None,
        uar: None,
        send_cq: None,
        recv_cq: None,
        srq: None,
        xrcd: Some(xrcd),
        geometry: QpGeometry { kind: QpKind::XrcRecv, send: None, receive: None, max_inline: 0 },
        memory: RingMemory { ring: &[], record: None },
        lso: false,
        block_loopback: false,
        forced_gid: None,
    };
    hca.create_qp(&spec).unwrap()
}

/// What queue pairs are made of.
struct Parts {
    pd: PdId,
    uar: UarId,
    cq: CqId,
    srq: SrqId,
}

impl Parts {
    fn qp(&self, hca: &Mlx4Hca, bare: &Bare, index: usize) -> OwnQp {
        let (kind, _) = KINDS[index];
        // A large send has a header and an address vector, a masked atomic operation four numbers.
        let log2_stride = if kind == QpKind::Ud { 8 } else { 7 };
        let headroom = (2048 >> log2_stride) + 1;
        let send = QueueGeometry { log2_wqes: LOG2_WQES, log2_stride, max_wr: 64 - headroom, max_sge: 2 };
        let receive = QueueGeometry { log2_wqes: LOG2_WQES, log2_stride: 6, max_wr: 32, max_sge: 2 };
        let (shared, receives) = (index == SHARED, index < SHARED);
        let receive = Some(receive).filter(|_| receives);
        let geometry = QpGeometry { kind, send: Some(send), receive, max_inline: 0 };
        let place = QP_RINGS + index * RING_BYTES;
        let ring = bare.piece(place, hca.qp_layout(&geometry).unwrap().ring_bytes);
        let spec = QpSpec {
            guest: bare.id,
            cookie: Cookie(0x90 + u32::try_from(index).unwrap()),
            pd: Some(self.pd),
            uar: Some(self.uar),
            send_cq: Some(self.cq),
            recv_cq: Some(self.cq).filter(|_| kind != QpKind::XrcSend),
            srq: shared.then_some(self.srq),
            xrcd: None,
            geometry,
            memory: RingMemory { ring: &ring, record: receives.then(|| bare.at(record(index))) },
            lso: kind == QpKind::Ud,
            block_loopback: false,
            forced_gid: None,
        };
        let Created { id, number, .. } = hca.create_qp(&spec).unwrap();
        let stride = 1 << log2_stride;
        // No request is posted: the owner bit of the pass before the first.
        for slot in 0..1 << LOG2_WQES {
            bare.memory.store_be32(place + slot * stride, 1 << 31).unwrap();
        }
        OwnQp { id, number, ring: place, stride, sent: 0, received: 0 }
    }
}

/// RESET to INIT to RTR to RTS.
fn transitions(kind: QpKind, dlid: u16, dest_qpn: u32) -> [QpModify; 3] {
    let path = Path { port: 1, dlid, sl: 0, src_path_bits: 0, static_rate: 0, grh: None, dmac: [0; 6] };
    let (reliable, connected) = (kind == QpKind::Rc, kind != QpKind::Ud);
    let of_sender = |value| Some(value).filter(|_| reliable || kind == QpKind::XrcSend);
    let of_receiver = |value| Some(value).filter(|_| reliable || kind == QpKind::XrcRecv);
    [
        QpModify {
            pkey_index: Some(0),
            port: Some(1),
            access: connected.then_some(ALL.remote),
            qkey: (!connected).then_some(QKEY),
            ..QpModify::state(QpState::Reset, QpState::Init)
        },
        QpModify {
            path: connected.then_some(path),
            path_mtu: connected.then_some(3),
            dest_qpn: connected.then_some(dest_qpn),
            rq_psn: connected.then_some(0x1234),
            max_dest_rd_atomic: of_receiver(4),
            min_rnr_timer: of_receiver(1),
            ..QpModify::state(QpState::Init, QpState::Rtr)
        },
        QpModify {
            sq_psn: Some(0x1234),
            timeout: of_sender(1),
            retry_count: of_sender(1),
            rnr_retry: of_sender(1),
            max_rd_atomic: of_sender(4),
            ..QpModify::state(QpState::Rtr, QpState::Rts)
        },
    ]
}
