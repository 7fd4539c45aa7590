//! Requests that the tests make objects with.

use virtio_rdma::doorbell::DoorbellMode;
use virtio_rdma::request::completion::CreateCq;
use virtio_rdma::request::domain::{AllocPd, AllocUar, UarAllocated};
use virtio_rdma::request::queue_pair::{CreateQp, QpType};
use virtio_rdma::{U16, U32, U64};
use zerocopy::FromZeros;

use crate::guest::{Area, BASE, FREE, Guest};

/// Distance between the areas and rings of two processes of a guest.
const STRIDE: u64 = 0x10_000;

/// The objects of one process: a UAR, a CQ and a queue pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) uar: u32,
    pub(crate) cq: u32,
    pub(crate) qp: u32,
    /// The HCA's number, which the fake has for its own.
    pub(crate) qpn: u32,
    /// Slots of the queue pair and of the CQ.
    pub(crate) send: u32,
    pub(crate) arm: u32,
    area: u64,
}

/// Slots of an area.
pub(crate) const SLOTS: u32 = 130;

impl Process {
    pub(crate) fn new(guest: &mut Guest, number: u64) -> Self {
        Self::on_vector(guest, number, 0)
    }

    pub(crate) fn on_vector(guest: &mut Guest, number: u64, vector: u16) -> Self {
        let uar = guest.call(&alloc_uar(BASE + FREE + STRIDE * number), &[]).unwrap();
        assert_eq!((uar.kick_queue.get(), uar.slots.get()), (0, SLOTS));
        Self::in_uar(guest, number, vector, &uar)
    }

    /// As [`Process::new`], in a UAR that is there.
    pub(crate) fn in_uar(guest: &mut Guest, number: u64, vector: u16, uar: &UarAllocated) -> Self {
        let area = FREE + STRIDE * number;
        let records = BASE + area + 0x4000;
        let pd = guest.call(&AllocPd {}, &[]).unwrap().pd;
        let slots = uar.slots.get();
        let cq = CreateCq {
            uar: uar.uar,
            entries: U32::new(64),
            comp_vector: U16::new(vector),
            record: U64::new(records),
            ..CreateCq::new_zeroed()
        };
        let cq = guest.call(&cq, &[(BASE + area + 0x5000, 0x1000)]).unwrap();
        let qp = CreateQp {
            pd,
            send_cq: cq.cq,
            recv_cq: cq.cq,
            uar: uar.uar,
            qp_type: QpType::RC,
            log2_send_wqes: 6,
            log2_send_stride: 6,
            log2_recv_wqes: 6,
            log2_recv_stride: 4,
            record: U64::new(records + 8),
            ..CreateQp::new_zeroed()
        };
        let qp = guest.call(&qp, &[(BASE + area + 0x6000, 0x2000)]).unwrap();
        Self {
            uar: uar.uar.get(),
            cq: cq.cq.get(),
            qp: qp.qp.get(),
            qpn: qp.qpn.get(),
            send: qp.send.slot(slots).unwrap(),
            arm: cq.arm.slot(slots).unwrap(),
            area,
        }
    }

    pub(crate) fn area<'a>(&self, guest: &'a Guest) -> Area<'a> {
        Area { memory: &guest.memory, offset: self.area }
    }
}

pub(crate) fn alloc_uar(area: u64) -> AllocUar {
    AllocUar {
        mode: DoorbellMode::RELAYED,
        slots: U32::new(SLOTS),
        area: U64::new(area),
        ..AllocUar::new_zeroed()
    }
}
