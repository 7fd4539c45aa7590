//! The end of many objects: on a guest's reset or disconnect, when memory goes away, when the HCA is lost.
//!
//! The order: doorbells, then for each kind of object users before what they use (a queue pair leaves its groups
//! first), then the mappings, then the memory itself. What the HCA doesn't give back stays mapped until its reset.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::destroy::Kind;
use crate::hca::{AsyncKind, Cookie, EventSink, HcaEvent};
use crate::memory::{GuestRegion, MemoryError, RegionId, RegionTable};
use crate::objects::{AreaPlace, Held, Objects, Parents};
use crate::state::{Phase, State};

/// How a teardown went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TeardownReport {
    /// Objects that the HCA did not give back.
    pub not_given_back: u32,
    /// Bytes of this guest's memory that stay mapped until the HCA's reset.
    pub bytes_left_mapped: u64,
}

impl State {
    /// Takes in another memory table.
    pub(crate) fn update_memory(&mut self, regions: Vec<GuestRegion>) -> Result<(), MemoryError> {
        let window = self.pins.window().bytes();
        let update = self.table.compare(regions, window, self.config.limits.regions)?;
        let removed: BTreeSet<RegionId> = update.removed.iter().map(|entry| entry.id).collect();
        if !removed.is_empty() {
            self.take_back_users(&removed);
            let hca = self.hca();
            for region in &removed {
                self.pins.remove_region(&*hca, *region);
            }
        }
        self.table.apply(update);
        Ok(())
    }

    /// Takes from the HCA what uses memory of these regions, and what uses that. The owner is told.
    fn take_back_users(&mut self, regions: &BTreeSet<RegionId>) {
        let users = Users::of(&self.objects, regions);
        for kind in Kind::IN_ORDER {
            if kind == Kind::Mr {
                self.take_back_windows(users.handles(kind));
            }
            for handle in users.handles(kind) {
                if !self.take_back_anyway(kind, *handle) {
                    log::debug!("HCA did not give back {kind:?} {handle:#x} of {:?}", self.guest);
                }
                self.tell_loss(kind, *handle);
            }
        }
    }

    /// Takes the windows of the regions' PDs from the HCA, each once: which are bound to which only the HCA knows.
    fn take_back_windows(&mut self, mrs: &BTreeSet<u32>) {
        let pd = |mr: &u32| self.objects.mrs.get(*mr).and_then(|mr| mr.base.parents.pd);
        let pds: BTreeSet<u32> = mrs.iter().filter_map(pd).collect();
        for mw in matching(self.objects.mws.iter(), |mw| mw.parents.pd.is_some_and(|pd| pds.contains(&pd))) {
            self.take_back_anyway(Kind::Mw, mw);
        }
    }

    fn tell_loss(&self, kind: Kind, handle: u32) {
        let kind = match kind {
            Kind::Qp => AsyncKind::QpFatal,
            Kind::Cq => AsyncKind::CqError,
            Kind::Srq => AsyncKind::SrqError,
            _ => return,
        };
        self.events.raise(HcaEvent::Object { cookie: Cookie(handle), kind, syndrome: 0 });
    }

    fn silence_all(&self) {
        for (_, uar) in self.objects.uars.iter() {
            uar.slots.silence_all();
        }
    }

    fn destroy_all(&mut self) -> u32 {
        self.silence_all();
        let mut not_given_back = 0;
        for kind in Kind::IN_ORDER {
            for handle in self.objects.handles(kind) {
                if !self.destroy_anyway(kind, handle) {
                    log::debug!("HCA did not give back {kind:?} {handle:#x} of {:?}", self.guest);
                    not_given_back += 1;
                }
            }
        }
        self.unregister_all();
        not_given_back
    }

    fn unregister_all(&mut self) {
        for registration in self.objects.registrations.drain() {
            self.host.service_ids().unregister(registration.id);
        }
    }

    /// The guest has reset its device.
    pub(crate) fn reset(&mut self) -> TeardownReport {
        let not_given_back = self.destroy_all();
        self.events.clear();
        self.counters.reset();
        TeardownReport { not_given_back, bytes_left_mapped: self.pins.stuck_bytes() }
    }

    /// The guest's driver doesn't know that its device began anew.
    pub(crate) fn renew(&mut self, generation: u32) -> TeardownReport {
        if self.closed {
            return TeardownReport::default();
        }
        let report = self.reset();
        self.generation = generation;
        self.events.device_lost(generation);
        if self.phase == Phase::Ready {
            self.events.device_ready();
        }
        report
    }

    /// The guest is gone.
    pub(crate) fn close(&mut self) -> TeardownReport {
        if self.closed {
            return TeardownReport::default();
        }
        let report = self.reset();
        let hca = self.hca();
        let stuck = self.pins.clear(&*hca);
        let bytes_left_mapped = stuck.iter().map(|stuck| stuck.length).sum();
        self.host.quarantine(stuck);
        self.table = RegionTable::default();
        self.phase = Phase::Failed;
        self.closed = true;
        hca.detach(self.guest);
        TeardownReport { bytes_left_mapped, ..report }
    }

    /// The tenant is dropped without having been closed: its memory stays mapped.
    pub(crate) fn abandon(&mut self) {
        if self.closed {
            return;
        }
        log::error!("{:?} was dropped without being closed: its memory stays mapped", self.guest);
        self.silence_all();
        self.close_areas();
        self.unregister_all();
        self.host.links().lose_all(self.guest);
        self.pins.abandon();
        let hca = self.hca();
        let stuck = self.pins.clear(&*hca);
        self.host.quarantine(stuck);
        self.closed = true;
    }

    fn close_areas(&mut self) {
        for handle in self.objects.uars.handles() {
            let Some(uar) = self.objects.uars.get_mut(handle) else { continue };
            if uar.area.take().is_some() {
                self.relay.close(&uar.slots);
            }
        }
    }

    /// The HCA is lost.
    pub(crate) fn stop(&mut self) {
        if self.closed {
            return;
        }
        self.phase = Phase::Starting;
        self.silence_all();
        self.close_areas();
    }

    /// The HCA was reset.
    pub(crate) fn device_lost(&mut self, generation: u32) {
        if self.closed {
            return;
        }
        self.stop();
        self.unregister_all();
        self.host.links().forget(self.guest);
        self.objects = Objects::new(&self.config.limits);
        let hca = self.hca();
        self.pins.absolve(&*hca);
        (self.registered_bytes, self.quarantined, self.attachments) = (0, 0, 0);
        self.generation = generation;
        self.events.device_lost(generation);
    }

    /// The HCA is lost for good, and may not even have been reset.
    pub(crate) fn device_failed(&mut self, generation: u32) {
        if self.closed {
            return;
        }
        self.stop();
        self.phase = Phase::Failed;
        self.unregister_all();
        self.host.links().forget(self.guest);
        self.generation = generation;
        self.events.device_lost(generation);
    }

    /// The HCA works again.
    pub(crate) fn device_ready(&mut self, sink: Arc<dyn EventSink>) -> Result<(), MemoryError> {
        if self.closed || self.phase == Phase::Ready {
            return Ok(());
        }
        self.guest = self.hca().attach(sink).map_err(|error| {
            self.phase = Phase::Failed;
            MemoryError::Attach(error)
        })?;
        let hca = self.hca();
        self.pins.absolve(&*hca);
        self.info = hca.device();
        self.capabilities = crate::config::capabilities(&self.info, &self.config);
        self.phase = Phase::Ready;
        self.events.device_ready();
        Ok(())
    }
}

/// The objects that use some memory, or use such objects.
#[derive(Debug, Default)]
struct Users {
    uars: BTreeSet<u32>,
    cqs: BTreeSet<u32>,
    srqs: BTreeSet<u32>,
    qps: BTreeSet<u32>,
    mrs: BTreeSet<u32>,
    none: BTreeSet<u32>,
}

impl Users {
    fn of(objects: &Objects, regions: &BTreeSet<RegionId>) -> Self {
        let held = |held: &Held| held.chunks.iter().any(|chunk| regions.contains(&chunk.region()));
        let mut users = Self::default();
        users.uars = matching(
            objects.uars.iter(),
            |uar| matches!(&uar.area, Some(AreaPlace::Guest(area)) if regions.contains(&area.entry.id)),
        );
        users.cqs = matching(objects.cqs.iter(), |cq| held(&cq.base.held) || users.use_any(&cq.base.parents));
        users.srqs =
            matching(objects.srqs.iter(), |srq| held(&srq.base.held) || users.use_any(&srq.base.parents));
        users.qps = matching(objects.qps.iter(), |qp| held(&qp.base.held) || users.use_any(&qp.base.parents));
        users.mrs = matching(objects.mrs.iter(), |mr| held(&mr.base.held));
        users
    }

    /// Whether one of these objects, so far as they are found, is a parent.
    fn use_any(&self, parents: &Parents) -> bool {
        let cqs = [parents.send_cq, parents.recv_cq].into_iter().flatten();
        parents.uar.is_some_and(|uar| self.uars.contains(&uar))
            || parents.srq.is_some_and(|srq| self.srqs.contains(&srq))
            || cqs.into_iter().any(|cq| self.cqs.contains(&cq))
    }

    fn handles(&self, kind: Kind) -> &BTreeSet<u32> {
        match kind {
            Kind::Qp => &self.qps,
            Kind::Srq => &self.srqs,
            Kind::Cq => &self.cqs,
            Kind::Mr => &self.mrs,
            Kind::Uar => &self.uars,
            Kind::Mw | Kind::Xrcd | Kind::Pd => &self.none,
        }
    }
}

fn matching<'a, T: 'a>(
    objects: impl Iterator<Item = (u32, &'a T)>,
    wanted: impl Fn(&T) -> bool,
) -> BTreeSet<u32> {
    objects.filter(|(_, object)| wanted(object)).map(|(handle, _)| handle).collect()
}
