//! Doorbells: areas that the device reads, in its own memory where it has that mapped, else in the arena.

use std::sync::{Arc, PoisonError};

use mlx4_queue::Doorbell;
use virtio_rdma::Reason;
use virtio_rdma::config::Capabilities;
use virtio_rdma::doorbell::{DoorbellMode, DoorbellPlace, area_bytes, ring};
use virtio_rdma::queue::{FIRST_KICK, MAX_KICKS};
use virtio_rdma::request::domain::{AllocUar, DeallocUar, UarAllocated};
use virtio_rdma::{Reserved, U32, U64};
use zerocopy::FromZeros;

use super::Open;
use crate::arena::{Block, PAGE};
use crate::error::{Error, Result};
use crate::memory::Span;

/// How doorbells reach the HCA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doorbells {
    /// Through memory of this program, which the device reads.
    Relayed,
    /// Through memory of the device, which this program has mapped.
    Direct,
}

/// A doorbell area that the device reads, and the UAR that it is of. CQs and queue pairs keep it.
#[derive(Debug)]
pub(crate) struct Uar {
    open: Arc<Open>,
    handle: u32,
    area: Span,
    /// The area's memory; none if it is the device's.
    own: Option<Block>,
    slots: u32,
    kick_queue: u16,
}

impl Uar {
    fn new(open: &Arc<Open>) -> Result<Arc<Self>> {
        let uar = match Self::direct(open)? {
            Some(uar) => uar,
            None => Self::relayed(open)?,
        };
        Ok(Arc::new(uar))
    }

    /// A UAR in the device's memory, if the device has it mapped.
    fn direct(open: &Arc<Open>) -> Result<Option<Self>> {
        let can = open.device.transport.wanted().is_some();
        if !can || !open.config().capabilities.contains(Capabilities::DOORBELLS_DIRECT) {
            return Ok(None);
        }
        let body = AllocUar { mode: DoorbellMode::DIRECT, ..AllocUar::new_zeroed() };
        let uar: UarAllocated = match open.call(&body) {
            Err(Error::Refused { errno: libc::EOPNOTSUPP, .. }) => return Ok(None),
            answer => answer?,
        };
        let slots = uar.slots.get();
        let area = area_bytes(slots)
            .and_then(|bytes| open.device.transport.region(uar.area_offset.get(), bytes as usize));
        let Some(area) = area else {
            open.loss().set("it named doorbells that are not mapped");
            return Err(Error::Lost("it named doorbells that are not mapped"));
        };
        Ok(Some(Self::with(open, &uar, (area, None), slots)))
    }

    /// A UAR in memory of this program.
    fn relayed(open: &Arc<Open>) -> Result<Self> {
        let slots = open.config().max_slots.get();
        let bytes = area_bytes(slots).ok_or_else(|| Error::Device(format!("it has {slots} slots")))?;
        let area = open.arena().allocate(bytes as usize, PAGE)?;
        let body = AllocUar {
            mode: DoorbellMode::RELAYED,
            slots: U32::new(slots),
            area: U64::new(area.guest_address()),
            ..AllocUar::new_zeroed()
        };
        let uar: UarAllocated = open.keep_if_unsure(open.call(&body), &[&area])?;
        Ok(Self::with(open, &uar, (area.span().clone(), Some(area)), slots))
    }

    fn with(open: &Arc<Open>, uar: &UarAllocated, (area, own): (Span, Option<Block>), slots: u32) -> Self {
        if uar.kick_queue.get() >= MAX_KICKS {
            open.loss().set("it named a kick queue that there can't be");
        }
        let kick_queue = FIRST_KICK + uar.kick_queue.get() % MAX_KICKS;
        Self { open: Arc::clone(open), handle: uar.uar.get(), area, own, slots, kick_queue }
    }

    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }
}

impl Drop for Uar {
    fn drop(&mut self) {
        let body = DeallocUar { uar: U32::new(self.handle), reserved: Reserved::ZERO };
        let memory: Vec<&Block> = self.own.iter().collect();
        if let Err(error) = self.open.end(&body, &memory) {
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

    /// How objects that are made now ring.
    pub(crate) fn doorbells(self: &Arc<Self>) -> Result<Doorbells> {
        let own = self.uar(None)?.own.is_some();
        Ok(if own { Doorbells::Relayed } else { Doorbells::Direct })
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
        if ring(&self.uar.area, self.slot, value) {
            self.uar.open.device.transport.kick(self.uar.kick_queue);
        }
    }
}
