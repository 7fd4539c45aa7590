//! What all guests of one HCA share: its bus addresses, what is quarantined, who listens to which service ID, who is
//! connected to whom.

use std::sync::{Arc, Mutex, PoisonError};

use crate::hca::{GuestId, Hca};
use crate::links::Links;
use crate::memory::{Stuck, Windows, unmap};
use crate::service::ServiceIds;

/// One HCA and what its guests share.
#[derive(Debug)]
pub struct Host {
    hca: Arc<dyn Hca>,
    windows: Arc<Windows>,
    quarantine: Mutex<Vec<Stuck>>,
    service_ids: ServiceIds,
    links: Links,
}

impl Host {
    /// The guests' side of an HCA that works.
    pub fn new(hca: Arc<dyn Hca>) -> Arc<Self> {
        let windows = Windows::new(hca.dma().ranges);
        Arc::new(Self {
            hca,
            windows,
            quarantine: Mutex::default(),
            service_ids: ServiceIds::default(),
            links: Links::default(),
        })
    }

    /// The HCA.
    pub fn hca(&self) -> &Arc<dyn Hca> {
        &self.hca
    }

    pub(crate) fn windows(&self) -> &Arc<Windows> {
        &self.windows
    }

    /// The guest that listens to a service ID at a port.
    pub fn owner_of_service_id(&self, service_id: u64, port: u8) -> Option<GuestId> {
        self.service_ids.owner(service_id, port)
    }

    pub(crate) fn service_ids(&self) -> &ServiceIds {
        &self.service_ids
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    /// Keeps memory mapped until the HCA was reset.
    pub(crate) fn quarantine(&self, stuck: Vec<Stuck>) {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner).extend(stuck);
    }

    /// Bytes of memory of guests that are gone, which stays mapped.
    pub fn quarantined_bytes(&self) -> u64 {
        let quarantine = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
        quarantine.iter().map(|stuck| stuck.length).sum()
    }

    /// The HCA was reset and uses no memory: unmaps what was quarantined. What can't be unmapped even now stays.
    /// After [`crate::Tenant::device_lost`] of every guest: one that is closed before it may quarantine more.
    pub fn after_reset(&self) {
        self.links.after_reset();
        let mut quarantine = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
        quarantine.retain(|stuck| !unmap(&*self.hca, stuck.iova, stuck.length));
    }
}
