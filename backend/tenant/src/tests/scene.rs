//! A guest on the fake HCA, and its requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use virtio_rdma::doorbell::DoorbellMode;
use virtio_rdma::memory::Segment;
use virtio_rdma::request::completion::CreateCq;
use virtio_rdma::request::domain::{AllocPd, AllocUar};
use virtio_rdma::request::memory::{AccessFlags, RegMr};
use virtio_rdma::request::queue_pair::{CreateQp, QpType};
use virtio_rdma::request::{ReplyError, SegmentMode, decode, encode};
use virtio_rdma::{Reason, U32, U64, Verb};
use zerocopy::FromZeros;

use super::fake::FakeHca;
use super::memory::region;
use crate::hca::*;
use crate::{
    GuestConfig, GuestFault, GuestMemory, GuestRegion, Host, Limits, Notify, Relay, RelayArea, SlotTable,
    Surroundings, Tenant,
};

/// The transport's side of a guest.
#[derive(Debug, Default)]
pub(crate) struct Around {
    bytes: Mutex<HashMap<u64, u8>>,
    pub(crate) areas: Mutex<Vec<RelayArea>>,
}

impl GuestMemory for Around {
    fn read(&self, region: &GuestRegion, offset: u64, to: &mut [u8]) -> Result<(), GuestFault> {
        let bytes = self.bytes.lock().unwrap();
        for (at, byte) in (region.guest_address + offset..).zip(to) {
            *byte = bytes.get(&at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, region: &GuestRegion, offset: u64, from: &[u8]) -> Result<(), GuestFault> {
        self.bytes.lock().unwrap().extend((region.guest_address + offset..).zip(from.iter().copied()));
        Ok(())
    }
}

impl Relay for Around {
    fn open(&self, area: RelayArea) -> u16 {
        self.areas.lock().unwrap().push(area);
        0
    }

    fn close(&self, table: &Arc<SlotTable>) {
        let mut areas = self.areas.lock().unwrap();
        let before = areas.len();
        areas.retain(|area| !Arc::ptr_eq(&area.table, table));
        assert_eq!(areas.len() + 1, before);
    }
}

impl Notify for Around {
    fn events(&self) {}

    fn completions(&self, _: u16) {}
}

pub(crate) struct Scene {
    pub(crate) hca: Arc<FakeHca>,
    pub(crate) host: Arc<Host>,
    pub(crate) tenant: Tenant,
    pub(crate) around: Arc<Around>,
}

/// Handles of what most tests need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Basics {
    pub(crate) pd: u32,
    pub(crate) uar: u32,
    pub(crate) cq: u32,
    pub(crate) qp: u32,
}

pub(crate) const MEMORY: u64 = 64 << 20;

pub(crate) fn guest(host: &Arc<Host>, config: GuestConfig) -> (Tenant, Arc<Around>) {
    let around = Arc::new(Around::default());
    let surroundings = Surroundings { memory: around.clone(), relay: around.clone(), notify: around.clone() };
    let tenant = Tenant::new(host, config, surroundings).unwrap();
    tenant.update_memory(vec![region(0, MEMORY, 0), region(1 << 32, MEMORY, MEMORY)]).unwrap();
    (tenant, around)
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let hca = FakeHca::new();
        let host = Host::new(hca.clone());
        let (tenant, around) = guest(&host, GuestConfig { limits, ..GuestConfig::default() });
        Self { hca, host, tenant, around }
    }

    pub(crate) fn call<V: Verb>(&self, verb: &V, memory: &[(u64, u64)]) -> Result<V::Answer, Reason> {
        call(&self.tenant, verb, memory, SegmentMode::DIRECT, 1)
    }

    pub(crate) fn basics(&self) -> Basics {
        let pd = self.call(&AllocPd {}, &[]).unwrap().pd.get();
        let uar = self.call(&alloc_uar(0x10_0000), &[]).unwrap().uar.get();
        let cq = self.call(&create_cq(uar, 0x20_0000), &[(0x21_0000, 0x1000)]).unwrap().cq.get();
        let qp = self.call(&create_qp(pd, cq, uar, 0x20_0040), &[(0x22_0000, 0x2000)]).unwrap().qp.get();
        Basics { pd, uar, cq, qp }
    }
}

pub(crate) fn call<V: Verb>(
    tenant: &Tenant,
    verb: &V,
    memory: &[(u64, u64)],
    mode: SegmentMode,
    generation: u32,
) -> Result<V::Answer, Reason> {
    let segments: Vec<Segment> = memory
        .iter()
        .map(|(address, length)| Segment { address: U64::new(*address), length: U64::new(*length) })
        .collect();
    let (mut request, mut reply) = ([0; 8192], [0; 1024]);
    let length = encode(&mut request, verb, &segments, mode, 5, generation).unwrap();
    let length = tenant.handle(&request[..length], &mut reply).unwrap();
    decode::<V>(&reply[..length], 5).map_err(|error| match error {
        ReplyError::Refused { status, reason } => {
            assert_eq!(reason.status(), status);
            reason
        }
        ReplyError::Malformed { .. } => panic!("malformed reply"),
    })
}

pub(crate) fn alloc_uar(area: u64) -> AllocUar {
    AllocUar {
        mode: DoorbellMode::RELAYED,
        slots: U32::new(4),
        area: U64::new(area),
        ..AllocUar::new_zeroed()
    }
}

pub(crate) fn reg_mr(pd: u32, iova: u64, length: u64) -> RegMr {
    RegMr {
        pd: U32::new(pd),
        access: AccessFlags::LOCAL_WRITE,
        iova: U64::new(iova),
        length: U64::new(length),
    }
}

pub(crate) fn create_cq(uar: u32, record: u64) -> CreateCq {
    CreateCq { uar: U32::new(uar), entries: U32::new(64), record: U64::new(record), ..CreateCq::new_zeroed() }
}

pub(crate) fn create_qp(pd: u32, cq: u32, uar: u32, record: u64) -> CreateQp {
    CreateQp {
        pd: U32::new(pd),
        send_cq: U32::new(cq),
        recv_cq: U32::new(cq),
        uar: U32::new(uar),
        qp_type: QpType::RC,
        log2_send_wqes: 6,
        log2_send_stride: 6,
        log2_recv_wqes: 6,
        log2_recv_stride: 4,
        record: U64::new(record),
        ..CreateQp::new_zeroed()
    }
}

pub(crate) fn device() -> DeviceInfo {
    DeviceInfo {
        node_guid: [1; 8],
        sys_image_guid: [2; 8],
        firmware: (2, 42, 5000),
        vendor_id: 0x2c9,
        part_id: 4099,
        hw_revision: 1,
        board_id: [0; 16],
        ports: 2,
        features: Features {
            uc: true,
            ud: true,
            multicast: true,
            srq: true,
            xrc: true,
            mw_type1: true,
            mw_type2: true,
            modify_mr: true,
            resize_cq: true,
            moderate_cq: true,
            path_migration: true,
        },
        atomics: AtomicSupport::Hca,
        masked_atomics: AtomicSupport::None,
        queue_format: QueueFormat::Mlx4(Mlx4Parameters { cqe_bytes: 32, ..Mlx4Parameters::default() }),
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
        max_mw: 1 << 19,
        max_srq: 1 << 16,
        max_srq_wr: 16383,
        max_srq_sge: 31,
        max_xrcd: 1 << 12,
        max_dest_rd_atomic: 16,
        max_rd_atomic: 128,
        max_mcast_groups: 8192,
        max_mcast_qps: 248,
        ack_delay: 15,
        max_moderation_count: 100,
        max_moderation_us: 100,
        max_lso_bytes: 0,
    }
}

pub(crate) fn attributes() -> QpAttributes {
    QpAttributes {
        state: QpState::Err,
        draining: false,
        access: RemoteAccess::default(),
        pkey_index: 1,
        port: 1,
        qkey: 0,
        path: None,
        alternate: None,
        path_mtu: 0,
        timeout: 0,
        retry_count: 0,
        rnr_retry: 0,
        rq_psn: 0,
        sq_psn: 0,
        max_rd_atomic: 0,
        max_dest_rd_atomic: 0,
        min_rnr_timer: 0,
        migration: Migration::Migrated,
        dest_qpn: 0,
    }
}
