//! An HCA that does nothing but count what it is asked for, and lets a test hold up one of its commands.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use paraverbs_tenant::GuestPiece;
use paraverbs_tenant::hca::*;

/// Most queue pairs and CQs whose rings are counted.
const COUNTED: usize = 4096;

#[derive(Debug, Default)]
struct State {
    sinks: BTreeMap<u32, Arc<dyn EventSink>>,
    objects: BTreeMap<u32, &'static str>,
    mapped: BTreeMap<u64, u64>,
    log: Vec<String>,
    held_up: bool,
    waiting: u32,
    lost: bool,
}

/// The HCA.
#[derive(Debug)]
pub(crate) struct FakeHca {
    state: Mutex<State>,
    changed: Condvar,
    next: AtomicU32,
    sends: Vec<AtomicU64>,
    last: AtomicU64,
    pub(crate) arms: AtomicU64,
}

impl FakeHca {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            next: AtomicU32::new(1),
            sends: (0..COUNTED).map(|_| AtomicU64::new(0)).collect(),
            last: AtomicU64::new(0),
            arms: AtomicU64::new(0),
        })
    }

    fn create<T>(&self, kind: &'static str, make: impl Fn(u32) -> T) -> Result<T, HcaError> {
        let mut state = self.state.lock().unwrap();
        if state.lost {
            return Err(HcaError::Lost);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        state.objects.insert(id, kind);
        state.log.push(format!("create {kind}"));
        Ok(make(id))
    }

    fn destroy(&self, id: u32) -> Result<(), HcaError> {
        let mut state = self.state.lock().unwrap();
        let kind = state.objects.remove(&id).ok_or(HcaError::Refused)?;
        state.log.push(format!("destroy {kind}"));
        Ok(())
    }

    /// Objects that exist, and bytes that are mapped.
    pub(crate) fn left(&self) -> (usize, u64) {
        let state = self.state.lock().unwrap();
        (state.objects.len(), state.mapped.values().sum())
    }

    /// What was asked for that changed something.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn guests(&self) -> usize {
        self.state.lock().unwrap().sinks.len()
    }

    /// Commands for PDs wait from now on, or no longer.
    pub(crate) fn hold_up(&self, held_up: bool) {
        self.state.lock().unwrap().held_up = held_up;
        self.changed.notify_all();
    }

    /// Waits until so many commands are held up.
    pub(crate) fn wait_for_held_up(&self, count: u32) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.waiting < count).unwrap());
    }

    /// Rings of a queue pair so far, and the greatest value of all rings.
    pub(crate) fn sends(&self, qp: u32) -> (u64, u64) {
        (self.sends[qp as usize].load(Ordering::Acquire), self.last.load(Ordering::Acquire))
    }

    /// The HCA is gone: every guest is forgotten, and commands fail until it is back.
    pub(crate) fn lose(&self, lost: bool) {
        let mut state = self.state.lock().unwrap();
        state.lost = lost;
        if lost {
            state.sinks.clear();
            state.objects.clear();
        }
    }

    /// Tells all guests of something.
    pub(crate) fn tell(&self, tell: impl Fn(&dyn EventSink)) {
        let sinks: Vec<_> = self.state.lock().unwrap().sinks.values().cloned().collect();
        sinks.iter().for_each(|sink| tell(&**sink));
    }
}

/// Bus addresses.
const RANGES: Range<u64> = 0..1 << 60;

impl Hca for FakeHca {
    fn device(&self) -> DeviceInfo {
        device()
    }

    fn query_port(&self, _: u8) -> Result<PortInfo, HcaError> {
        Ok(PortInfo::default())
    }

    fn query_gid(&self, _: u8, _: u16) -> Result<Gid, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn query_pkey(&self, _: u8, _: u16) -> Result<u16, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn attach(&self, events: Arc<dyn EventSink>) -> Result<GuestId, HcaError> {
        let mut state = self.state.lock().unwrap();
        if state.lost {
            return Err(HcaError::Lost);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        state.sinks.insert(id, events);
        Ok(GuestId(id))
    }

    fn detach(&self, guest: GuestId) {
        self.state.lock().unwrap().sinks.remove(&guest.0);
    }

    fn dma(&self) -> DmaInfo {
        DmaInfo { ranges: vec![RANGES], mappings: u64::MAX }
    }

    fn map(&self, iova: Iova, piece: &GuestPiece<'_>) -> Result<(), HcaError> {
        let mut state = self.state.lock().unwrap();
        state.log.push("map".into());
        state.mapped.insert(iova.0, piece.length);
        Ok(())
    }

    fn unmap(&self, iova: Iova, _: u64) -> Result<(), HcaError> {
        let mut state = self.state.lock().unwrap();
        state.log.push("unmap".into());
        state.mapped.remove(&iova.0).map(|_| ()).ok_or(HcaError::Refused)
    }

    fn alloc_pd(&self, _: GuestId) -> Result<Created<PdId>, HcaError> {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.held_up).unwrap();
        state.waiting -= 1;
        drop(state);
        self.create("pd", |id| Created { id: PdId(id), number: id })
    }

    fn dealloc_pd(&self, pd: PdId) -> Result<(), HcaError> {
        self.destroy(pd.0)
    }

    fn alloc_uar(&self, _: GuestId) -> Result<UarId, HcaError> {
        self.create("uar", UarId)
    }

    fn dealloc_uar(&self, uar: UarId) -> Result<(), HcaError> {
        self.destroy(uar.0)
    }

    fn alloc_xrcd(&self, _: GuestId) -> Result<Created<XrcdId>, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn dealloc_xrcd(&self, _: XrcdId) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn create_mr(&self, _: &MrSpec<'_>) -> Result<(MrId, MrKeys), HcaError> {
        self.create("mr", |id| (MrId(id), MrKeys { lkey: id, rkey: id }))
    }

    fn modify_mr(&self, _: MrId, _: &MrChange<'_>) -> Result<MrKeys, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn destroy_mr(&self, mr: MrId) -> Result<(), HcaError> {
        self.destroy(mr.0)
    }

    fn alloc_mw(&self, _: PdId, _: MwKind) -> Result<Created<MwId>, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn dealloc_mw(&self, _: MwId) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn cq_layout(&self, geometry: &CqGeometry) -> Result<RingLayout, HcaError> {
        Ok(RingLayout { ring_bytes: pages(u64::from(geometry.entries) * 32), record_bytes: 8, written: true })
    }

    fn create_cq(&self, spec: &CqSpec<'_>) -> Result<Created<CqId>, HcaError> {
        // The number is what the guest called it, so that a test can tell of its events.
        self.create("cq", |id| Created { id: CqId(id), number: spec.cookie.0 })
    }

    fn moderate_cq(&self, _: CqId, _: u16, _: u16) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn resize_cq(&self, _: CqId, _: &CqGeometry, _: &[Piece]) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn destroy_cq(&self, cq: CqId) -> Result<(), HcaError> {
        self.destroy(cq.0)
    }

    fn srq_layout(&self, _: &SrqGeometry) -> Result<RingLayout, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn create_srq(&self, _: &SrqSpec<'_>) -> Result<Created<SrqId>, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn arm_srq(&self, _: SrqId, _: u32) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn query_srq(&self, _: SrqId) -> Result<SrqState, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn destroy_srq(&self, _: SrqId) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn qp_layout(&self, geometry: &QpGeometry) -> Result<RingLayout, HcaError> {
        let bytes = |queue: Option<QueueGeometry>| {
            queue.map_or(0, |queue| 1u64 << (queue.log2_wqes + queue.log2_stride))
        };
        let record_bytes = if geometry.receive.is_some() { 4 } else { 0 };
        let ring_bytes = pages(bytes(geometry.send) + bytes(geometry.receive));
        Ok(RingLayout { ring_bytes, record_bytes, written: false })
    }

    fn create_qp(&self, _: &QpSpec<'_>) -> Result<Created<QpId>, HcaError> {
        self.create("qp", |id| Created { id: QpId(id), number: id })
    }

    fn modify_qp(&self, _: QpId, _: &QpModify) -> Result<(), HcaError> {
        Ok(())
    }

    fn query_qp(&self, _: QpId) -> Result<QpAttributes, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn destroy_qp(&self, qp: QpId) -> Result<(), HcaError> {
        self.destroy(qp.0)
    }

    fn address_vector(&self, _: PdId, _: &Path) -> Result<AddressVector, HcaError> {
        Err(HcaError::Unsupported)
    }

    fn attach_mcast(&self, _: QpId, _: &McastGroup) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn detach_mcast(&self, _: QpId, _: &McastGroup) -> Result<(), HcaError> {
        Err(HcaError::Unsupported)
    }

    fn ring(&self, doorbell: Doorbell, value: u64) {
        match doorbell.target {
            Target::Send(QpId(qp)) => {
                self.last.fetch_max(value, Ordering::AcqRel);
                self.sends[qp as usize].fetch_add(1, Ordering::AcqRel);
            }
            Target::Arm(_) => {
                self.arms.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

fn device() -> DeviceInfo {
    DeviceInfo {
        node_guid: [1; 8],
        sys_image_guid: [2; 8],
        firmware: (2, 42, 5000),
        vendor_id: 0x2c9,
        part_id: 4099,
        hw_revision: 1,
        board_id: [0; 16],
        ports: 2,
        features: Features::default(),
        atomics: AtomicSupport::Hca,
        masked_atomics: AtomicSupport::None,
        queue_format: QueueFormat::Mlx4(Mlx4Parameters {
            cqe_bytes: 32,
            log2_min_send_stride: 6,
            log2_min_receive_stride: 4,
            log2_min_srq_stride: 5,
            cq_record_bytes: 8,
            receive_record_bytes: 4,
            ..Mlx4Parameters::default()
        }),
        max_mr_bytes: 1 << 40,
        page_sizes: 0xffff_f000,
        timestamp_mask: 0,
        core_clock_khz: 0,
        max_qp: 1 << 17,
        max_qp_wr: 16351,
        max_sge: 32,
        max_sge_rd: 30,
        max_cq: 1 << 16,
        max_cqe: (1 << 22) - 1,
        max_mr: 1 << 19,
        max_pd: 1 << 15,
        max_mw: 0,
        max_srq: 0,
        max_srq_wr: 0,
        max_srq_sge: 0,
        max_xrcd: 0,
        max_dest_rd_atomic: 16,
        max_rd_atomic: 128,
        max_mcast_groups: 0,
        max_mcast_qps: 0,
        ack_delay: 15,
        max_moderation_count: 0,
        max_moderation_us: 0,
        max_lso_bytes: 0,
    }
}
