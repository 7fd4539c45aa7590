//! CQs of guests: which event queue each has, and whom its completions wake.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use log::Level;
use mlx4::{CqConfig, RingMemoryPages};
use paraverbs_tenant::hca::{CqGeometry, CqId, CqSpec, Created, HcaError, Piece};

use crate::error::told_of_destruction;
use crate::geometry;
use crate::hca::Running;
use crate::objects::{Cq, Owner, Users, known, take_unused};
use crate::pages::{LOG2_RING_PAGE, ring_pages};
use crate::table::sole;

/// Whom completion events of a CQ are for, until it is closed.
#[derive(Debug)]
pub(crate) struct Gate(ArcSwapOption<Owner>);

impl Gate {
    fn open(owner: Owner) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::from_pointee(owner)))
    }

    fn pass(&self) {
        if let Some(owner) = &*self.0.load() {
            owner.guest.sink.completion(owner.cookie);
        }
    }

    /// When this returns no event is under way, and none comes.
    pub(crate) fn close(&self) {
        if let Some(owner) = self.0.swap(None) {
            drop(sole(owner));
        }
    }
}

/// How many CQs each event queue has.
#[derive(Debug)]
pub(crate) struct Eqs {
    counts: Mutex<Vec<u32>>,
    room: u32,
}

/// The place of a CQ on an event queue, until it is dropped.
#[derive(Debug)]
pub(crate) struct EqPlace {
    of: Arc<Eqs>,
    vector: usize,
}

impl Eqs {
    /// Event queues that have room for so many CQs each.
    pub(crate) fn new(eqs: usize, room: u32) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::new(vec![0; eqs]), room })
    }

    /// A place on the event queue that has the fewest.
    fn place(self: &Arc<Self>) -> Result<EqPlace, HcaError> {
        let mut counts = self.counts();
        let fewest = counts.iter_mut().enumerate().min_by_key(|(_, count)| **count);
        match fewest {
            Some((vector, count)) if *count < self.room => {
                *count += 1;
                Ok(EqPlace { of: Arc::clone(self), vector })
            }
            _ => Err(HcaError::NoResources),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Vec<u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EqPlace {
    fn drop(&mut self) {
        if let Some(count) = self.of.counts().get_mut(self.vector) {
            *count = count.saturating_sub(1);
        }
    }
}

/// log2 of the entries of a CQ, which are a power of two.
fn log2_entries(geometry: &CqGeometry) -> u8 {
    u8::try_from(geometry.entries.ilog2()).unwrap_or(u8::MAX)
}

impl Running {
    pub(crate) fn create_cq(&self, spec: &CqSpec<'_>) -> Result<Created<CqId>, HcaError> {
        let layout = geometry::cq(self.limits(), &spec.geometry)?;
        if spec.timestamp {
            return Err(HcaError::Unsupported);
        }
        let owner = self.owner(spec.guest, spec.cookie)?;
        let uar = known(&self.objects().uars, spec.uar.0)?;
        let pages = ring_pages(spec.memory.ring, layout.ring_bytes)?;
        let record = spec.memory.record.ok_or(HcaError::Geometry)?;
        let place = self.eqs.place()?;
        let gate = Gate::open(owner.clone());
        let held = ((uar.users.one(), place), owner.guest.share.ring(&pages)?);
        let config = CqConfig {
            log2_entries: log2_entries(&spec.geometry),
            ring: RingMemoryPages { pages: &pages, log2_page: LOG2_RING_PAGE },
            record: record.0,
            uar: &uar.driver,
            ignore_overrun: spec.ignore_overrun,
            vector: held.0.1.vector,
        };
        let notified = Arc::clone(&gate);
        let (driver, held) = self.made(self.driver.cq(&config, move || notified.pass()), held)?;
        let cqn = driver.number();
        let bell = match self.driver.arm_doorbell(&driver) {
            Ok(bell) => bell,
            Err(error) => return Err(self.undone(&error, driver.destroy(), held)),
        };
        let id = self.life.id(cqn);
        let (held, entries) = (held.0, Mutex::new(held.1));
        let users = Users::default();
        self.objects().cqs.insert(Cq { id, driver, uar: uar.id, bell, owner, gate, held, entries, users });
        Ok(Created { id: CqId(id), number: cqn })
    }

    pub(crate) fn moderate_cq(&self, cq: CqId, count: u16, period_us: u16) -> Result<(), HcaError> {
        let cq = known(&self.objects().cqs, cq.0)?;
        cq.driver.moderate(count, period_us).map_err(|error| self.fail(&error))
    }

    /// Gives a CQ another ring. What is unread in the old one its guest takes over.
    pub(crate) fn resize_cq(&self, cq: CqId, geometry: &CqGeometry, ring: &[Piece]) -> Result<(), HcaError> {
        let layout = geometry::cq(self.limits(), geometry)?;
        let cq = known(&self.objects().cqs, cq.0)?;
        let pages = ring_pages(ring, layout.ring_bytes)?;
        let ring = RingMemoryPages { pages: &pages, log2_page: LOG2_RING_PAGE };
        let entries = cq.owner.guest.share.ring(&pages)?;
        let resized = cq.driver.resize(log2_entries(geometry), &ring);
        let ((), entries) = self.made(resized, entries)?;
        *cq.entries.lock().unwrap_or_else(PoisonError::into_inner) = entries;
        Ok(())
    }

    pub(crate) fn destroy_cq(&self, cq: CqId) -> Result<(), HcaError> {
        let cq = take_unused(&self.objects().cqs, cq.0)?;
        cq.gate.close();
        drop(cq.bell);
        self.ended(cq.driver.destroy(), (cq.held, cq.entries))
    }

    /// What of a creation was made must go again, because something else failed.
    pub(crate) fn undone(
        &self,
        error: &mlx4::Error,
        destroyed: mlx4::Result<()>,
        held: impl Send + 'static,
    ) -> HcaError {
        match self.ended(destroyed, held) {
            Ok(()) => self.fail(error),
            Err(open) => open,
        }
    }

    /// The result of a creation, and what the object uses; if the HCA may have it although it failed, that is
    /// kept.
    pub(crate) fn made<T, H: Send + 'static>(
        &self,
        result: mlx4::Result<T>,
        held: H,
    ) -> Result<(T, H), HcaError> {
        match result {
            Ok(made) => Ok((made, held)),
            Err(error) => {
                let error = self.fail(&error);
                if error.leaves_open() {
                    self.objects().lose(held);
                }
                Err(error)
            }
        }
    }

    /// The result of a destruction; if the HCA may still have the object, what it uses is kept.
    pub(crate) fn ended(&self, result: mlx4::Result<()>, held: impl Send + 'static) -> Result<(), HcaError> {
        result.map_err(|error| {
            self.fail(&error);
            log::log!(self.log.level(Level::Warn), "object was not given back: {error}");
            self.objects().lose(held);
            told_of_destruction(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_spread_and_no_event_queue_has_more_than_its_room() {
        let eqs = Eqs::new(3, 2);
        let mut places: Vec<_> = (0..6).map(|_| eqs.place().unwrap()).collect();
        assert_eq!(places.iter().map(|place| place.vector).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(eqs.place().err(), Some(HcaError::NoResources));
        let freed = places.remove(1).vector;
        assert_eq!(eqs.place().unwrap().vector, freed);
    }
}
