//! Queues in memory that isn't the driver's, as guests have them: the driver makes the objects, and somebody
//! else posts and polls.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::end::connect_object;
use common::{Card, Host, eventually, fabric};
use mlx4::{Access, Cq, CqConfig, Pd, Qp, QpConfig, QpRights, Region, RegionConfig, RingMemoryPages, Uar};
use mlx4_pci::{DmaBuffer, DoorbellKind};
use mlx4_queue::geometry::{CqGeometry, QpLayout, ReceiveGeometry, SendGeometry, SendSize, Service};
use mlx4_queue::request::{Data, Operation, SendFlags, SendRequest, Sge};
use mlx4_queue::{
    Completion, CompletionQueue, Doorbell, Notify, Place, PostedReceive, PostedSend, ReceiveQueue,
    RingMemory, SendQueue, WorkQueues,
};
use mlx4_wire::ctx::qp::ServiceType;

const PAGE: usize = 4096;
/// Where things are in a guest's memory.
const CQ_RING: usize = 0;
const QP_RING: usize = 16 * PAGE;
const RECORDS: usize = 48 * PAGE;
const DATA: usize = 49 * PAGE;
const MEMORY: usize = 64 * PAGE;

/// A guest's memory.
#[derive(Clone)]
struct Memory(Arc<DmaBuffer>);

impl RingMemory for Memory {
    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.0.write(offset, from).unwrap();
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        self.0.read(offset, to).unwrap();
    }

    fn publish(&self, offset: usize, word: [u8; 4]) {
        self.0.store_be32(offset, u32::from_be_bytes(word)).unwrap();
    }

    fn observe(&self, offset: usize) -> [u8; 4] {
        self.0.load_be32(offset).unwrap().to_be_bytes()
    }
}

struct Bell(Arc<dyn mlx4_pci::Doorbell>);

impl Doorbell for Bell {
    fn ring(&self, value: u64) {
        self.0.ring(value);
    }
}

/// The rings of a guest.
struct Rings {
    cq: CompletionQueue<Memory, Bell>,
    work: Work,
}

struct Work {
    send: SendQueue<Memory, Bell>,
    receive: ReceiveQueue<Memory>,
}

impl WorkQueues for Work {
    fn send_completed(&mut self, _qpn: u32, wqe_index: u16) -> Option<PostedSend> {
        self.send.complete(wqe_index)
    }

    fn receive_completed(&mut self, _qpn: u32, wqe_index: u16) -> Option<PostedReceive> {
        self.receive.complete(wqe_index)
    }
}

/// A guest, with the objects that the driver made for it.
struct Guest {
    memory: Memory,
    qp: Qp,
    cq: Cq,
    region: Region,
    _pd: Pd,
    uar: Uar,
    rings: Rings,
    notified: Arc<AtomicU32>,
}

impl Guest {
    fn new(card: &Card, host: &Host) -> Self {
        let hca = &host.hca;
        let (pd, uar) = (hca.pd().unwrap(), hca.uar().unwrap());
        let memory = Memory(Arc::new(card.device.dma().allocate(MEMORY, PAGE as u64).unwrap()));
        let at = |offset: usize| memory.0.iova() + offset as u64;
        let pages = |start: usize, bytes: usize| -> Vec<u64> {
            (start..start + bytes).step_by(PAGE).map(at).collect()
        };
        let limits = hca.capabilities().queues;
        let size = SendSize { requests: 60, sges: 1, inline: 64 };
        let send = SendGeometry::new(Service::Rc, size, &limits).unwrap();
        let receive = ReceiveGeometry::new(32, 1, &limits).unwrap();
        let layout = QpLayout { send, receive: Some(receive) };
        let geometry = CqGeometry::new(100, &limits).unwrap().with_wide_entries(hca.profile().wide_cqes);

        let place = |offset| Place { memory: memory.clone(), offset };
        let cq_pages = pages(CQ_RING, geometry.bytes() as usize);
        let notified = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&notified);
        let config = CqConfig {
            log2_entries: geometry.log2_entries(),
            ring: RingMemoryPages { pages: &cq_pages, log2_page: 12 },
            record: at(RECORDS),
            uar: &uar,
            ignore_overrun: false,
            vector: 0,
        };
        let notify = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let cq = hca.cq(&config, notify).unwrap();
        let bell = |kind| Bell(uar.doorbell(kind).unwrap());
        let arm = bell(DoorbellKind::Arm(cq.number()));
        let cq_ring =
            CompletionQueue::new(place(CQ_RING), place(RECORDS), geometry, cq.number(), arm).unwrap();

        let qp_pages = pages(QP_RING, layout.bytes());
        let qp = hca
            .qp(&QpConfig {
                service: ServiceType::RC,
                send: send.wq_size(),
                receive: Some(receive.wq_size()),
                pd: &pd,
                uar: &uar,
                send_cq: &cq,
                receive_cq: &cq,
                srq: None,
                buffer: RingMemoryPages { pages: &qp_pages, log2_page: 12 },
                record: at(RECORDS + 8),
                rights: QpRights::default(),
            })
            .unwrap();
        let ring = bell(DoorbellKind::Send(qp.number()));
        let mut send =
            SendQueue::new(place(QP_RING + layout.send_offset()), send, qp.number(), ring).unwrap();
        let mut receive =
            ReceiveQueue::new(place(QP_RING + layout.receive_offset()), place(RECORDS + 8), receive).unwrap();
        send.reset();
        receive.reset();
        let region = hca
            .region(&RegionConfig {
                pd: &pd,
                address: 0x5000_0000,
                length: (MEMORY - DATA) as u64,
                pages: &pages(DATA, MEMORY - DATA),
                log2_page: 12,
                access: Access::LOCAL,
                bind: false,
            })
            .unwrap();
        let rings = Rings { cq: cq_ring, work: Work { send, receive } };
        Self { memory, qp, cq, region, _pd: pd, uar, rings, notified }
    }

    fn piece(&self, offset: u64, length: u32) -> Sge {
        Sge { address: 0x5000_0000 + offset, length, lkey: self.region.lkey() }
    }

    fn completion(&mut self) -> Completion {
        let Rings { cq, work } = &mut self.rings;
        let completion = eventually("a completion", || cq.poll(work)).unwrap();
        cq.commit();
        completion
    }

    fn destroy(self) {
        self.qp.destroy().unwrap();
        self.cq.destroy().unwrap();
        self.region.destroy().unwrap();
        drop((self.rings, self.uar));
        Arc::into_inner(self.memory.0).unwrap().release().unwrap();
    }
}

#[test]
fn guests_post_and_poll_in_their_own_memory() {
    let fabric = fabric();
    let card = Card::new(&fabric, 0x0002_c903_0061_0000, 1);
    let before = card.dump();
    let host = card.open();
    let lid = host.active(1);
    let mut guests = [Guest::new(&card, &host), Guest::new(&card, &host)];
    connect_object(&guests[0].qp, lid, guests[1].qp.number());
    connect_object(&guests[1].qp, lid, guests[0].qp.number());
    for round in 0..300u64 {
        let text = format!("message {round}");
        let [near, far] = &mut guests;
        far.rings.cq.arm(Notify::Next);
        far.rings.work.receive.post(round, &[far.piece(64, 64)]).unwrap();
        far.rings.work.receive.commit();
        let request = SendRequest {
            wr_id: round,
            operation: Operation::Send,
            data: Data::Inline(&[text.as_bytes()]),
            flags: SendFlags { signalled: true, ..SendFlags::default() },
            destination: None,
        };
        near.rings.work.send.post(&request).unwrap();
        near.rings.work.send.ring();
        assert_eq!(near.completion().wr_id, round);
        assert_eq!(far.completion().wr_id, round);
        let mut found = vec![0; text.len()];
        far.memory.0.read(DATA + 64, &mut found).unwrap();
        assert_eq!(found, text.as_bytes());
        // The event comes from another thread; the guest's own library counts it.
        let notified = &far.notified;
        eventually("an event", || (notified.swap(0, Ordering::SeqCst) == 1).then_some(()));
        far.rings.cq.sequence().event_taken();
        guests.swap(0, 1);
    }
    guests.into_iter().for_each(Guest::destroy);
    host.hca.close().unwrap();
    assert_eq!(card.dump(), before);
    assert_eq!((card.device.refused(), card.device.dma().quarantined()), (0, 0));
}
