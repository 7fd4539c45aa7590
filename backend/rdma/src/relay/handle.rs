//! The relay as a guest's tenant and kick queues see it.

use std::sync::Arc;

use paraverbs_tenant::{DirectArea, Relay, RelayArea, SlotTable};

use super::area::{Area, GuestNumber};
use super::direct::Direct;
use super::role::Shared;
use crate::memory::mapping_of;

/// The relay, for one guest.
#[derive(Clone, Debug)]
pub(crate) struct RelayHandle {
    shared: Arc<Shared>,
    guest: GuestNumber,
    direct: Option<Arc<Direct>>,
}

/// All areas are read together, so one kick queue serves them.
const KICK_QUEUE: u16 = 0;

impl RelayHandle {
    /// For a guest that wasn't there before.
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), guest: shared.next_guest(), direct: None }
    }

    /// The same, for a guest with a region for areas.
    pub(crate) fn with_region(self, direct: Option<Arc<Direct>>) -> Self {
        Self { direct, ..self }
    }

    fn read(&self, area: Area) {
        self.shared.areas().push(Arc::new(area));
        self.shared.tell_change();
    }

    /// Somebody has rung while nobody read the areas. This thread reads them now, unless another one does meanwhile.
    pub(crate) fn kick(&self) {
        self.shared.serve_kick();
    }
}

impl Relay for RelayHandle {
    fn open(&self, area: RelayArea) -> u16 {
        let place = mapping_of(&area.region).map(|mapping| (mapping, area.offset));
        match place.and_then(|place| Area::new(self.guest, place, area.slots, &area.table)) {
            Some(area) => self.read(area),
            None => log::error!("a doorbell area is not in mapped guest memory: it is not read"),
        }
        KICK_QUEUE
    }

    fn has_region(&self) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.exposure().is_known())
    }

    fn open_direct(&self, slots: u32, table: &Arc<SlotTable>) -> Option<DirectArea> {
        let direct = self.direct.as_ref()?;
        let place = direct.take(slots)?;
        let offset = u64::from(place.offset);
        let Some(area) = Area::new(self.guest, (place.mapping, offset), slots, table) else {
            direct.give_back(place.offset);
            return None;
        };
        self.read(area.at(place.offset));
        Some(DirectArea { offset, kick_queue: KICK_QUEUE })
    }

    fn close(&self, table: &Arc<SlotTable>) {
        let closed: Vec<_> = self.shared.areas().extract_if(.., |area| area.is_of(table)).collect();
        for area in &closed {
            area.close();
            if let (Some(direct), Some(offset)) = (&self.direct, area.direct()) {
                direct.give_back(offset);
            }
        }
        // The area's memory is let go of.
        self.shared.tell_change();
    }
}
