//! Doorbells: areas in the arena that the device reads.

use std::sync::{Arc, PoisonError};

use mlx4_queue::Doorbell;
use virtio_rdma::Reason;
use virtio_rdma::doorbell::{DoorbellMode, DoorbellPlace, area_bytes, ring};
use virtio_rdma::queue::{FIRST_KICK, MAX_KICKS};
use virtio_rdma::request::domain::{AllocUar, DeallocUar, UarAllocated};
use virtio_rdma::{Reserved, U32, U64};

use super::Open;
use crate::arena::{Block, PAGE};
use crate::error::{Error, Result};

/// A doorbell area that the device reads, and the UAR that it is of. CQs and queue pairs keep it.
#[derive(Debug)]
pub(crate) struct Uar {
    open: Arc<Open>,
    handle: u32,
    area: Block,
    slots: u32,
    kick_queue: u16,
}

impl Uar {
    fn new(open: &Arc<Open>) -> Result<Arc<Self>> {
        let slots = open.config().max_slots.get();
        let bytes = area_bytes(slots).ok_or_else(|| Error::Device(format!("it has {slots} slots")))?;
        let area = open.arena().allocate(bytes as usize, PAGE)?;
        let body = AllocUar {
            mode: DoorbellMode::RELAYED,
            reserved: Reserved::ZERO,
            slots: U32::new(slots),
            area: U64::new(area.guest_address()),
            reserved_end: Reserved::ZERO,
        };
        let uar: UarAllocated = open.keep_if_unsure(open.call(&body), &[&area])?;
        if uar.kick_queue.get() >= MAX_KICKS {
            open.loss().set("it named a kick queue that there can't be");
        }
        let kick_queue = FIRST_KICK + uar.kick_queue.get() % MAX_KICKS;
        Ok(Arc::new(Self { open: Arc::clone(open), handle: uar.uar.get(), area, slots, kick_queue }))
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }
}

impl Drop for Uar {
    fn drop(&mut self) {
        let body = DeallocUar { uar: U32::new(self.handle), reserved: Reserved::ZERO };
        if let Err(error) = self.open.end(&body, &[&self.area]) {
            log::warn!("{error}");
        }
    }
}

impl Open {
    /// Makes an object with a doorbell: in the newest area, or a new one if that is full.
    pub(crate) fn with_uar<T>(
        self: &Arc<Self>,
        make: impl Fn(&Arc<Uar>) -> Result<T>,
    ) -> Result<(T, Arc<Uar>)> {
        let uar = self.uar(None)?;
        match make(&uar) {
            Err(Error::Refused { reason, .. }) if Some(reason) == Reason::SLOT_LIMIT.name() => {
                let uar = self.uar(Some(&uar))?;
                make(&uar).map(|made| (made, uar))
            }
            result => result.map(|made| (made, uar)),
        }
    }

    /// The newest area, made anew if there is none or if it is `full`.
    fn uar(self: &Arc<Self>, full: Option<&Arc<Uar>>) -> Result<Arc<Uar>> {
        let mut uars = self.uars.lock().unwrap_or_else(PoisonError::into_inner);
        uars.retain(|uar| uar.strong_count() != 0);
        let newest = uars.last().and_then(std::sync::Weak::upgrade);
        match newest {
            Some(uar) if full.is_none_or(|full| !Arc::ptr_eq(full, &uar)) => Ok(uar),
            _ => {
                let uar = Uar::new(self)?;
                uars.push(Arc::downgrade(&uar));
                Ok(uar)
            }
        }
    }
}

/// The doorbell of a send queue or a CQ.
#[derive(Debug)]
pub(crate) struct Bell {
    uar: Arc<Uar>,
    slot: u32,
}

impl Bell {
    /// The doorbell at the place that the device gave.
    pub(crate) fn new(uar: &Arc<Uar>, place: &DoorbellPlace) -> Result<Self> {
        let slot = place.slot(uar.slots).ok_or_else(|| {
            uar.open.loss().set("it named a doorbell that there can't be");
            Error::Lost("it named a doorbell that there can't be")
        })?;
        Ok(Self { uar: Arc::clone(uar), slot })
    }
}

impl Doorbell for Bell {
    fn ring(&self, value: u64) {
        if ring(self.uar.area.span(), self.slot, value) {
            self.uar.open.device.transport.kick(self.uar.kick_queue);
        }
    }
}
