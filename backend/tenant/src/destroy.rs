//! The end of one object: taken from the HCA, then forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtio_rdma::request::Destroyed;
use virtio_rdma::{Reason, U32};

use crate::events::Subject;
use crate::hca::{HcaError, McastGroup, QpId, Target};
use crate::objects::{Objects, Parents};
use crate::state::State;

/// Kinds of objects that the HCA has too, in the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Qp,
    Srq,
    Cq,
    Mw,
    Mr,
    Uar,
    Xrcd,
    Pd,
}

impl Kind {
    /// All kinds, users before what they use.
    pub(crate) const IN_ORDER: [Self; 8] =
        [Self::Qp, Self::Srq, Self::Cq, Self::Mw, Self::Mr, Self::Uar, Self::Xrcd, Self::Pd];

    /// What events are about objects of this kind.
    pub(crate) const fn subject(self) -> Option<Subject> {
        match self {
            Self::Qp => Some(Subject::Qp),
            Self::Srq => Some(Subject::Srq),
            Self::Cq => Some(Subject::Cq),
            _ => None,
        }
    }
}

/// What all kinds have.
struct Common<'a> {
    users: u32,
    stuck: &'a mut bool,
}

impl Objects {
    pub(crate) fn handles(&self, kind: Kind) -> Vec<u32> {
        match kind {
            Kind::Qp => self.qps.handles(),
            Kind::Srq => self.srqs.handles(),
            Kind::Cq => self.cqs.handles(),
            Kind::Mw => self.mws.handles(),
            Kind::Mr => self.mrs.handles(),
            Kind::Uar => self.uars.handles(),
            Kind::Xrcd => self.xrcds.handles(),
            Kind::Pd => self.pds.handles(),
        }
    }

    fn common(&mut self, kind: Kind, handle: u32) -> Option<Common<'_>> {
        let (users, stuck) = match kind {
            Kind::Qp => self.qps.get_mut(handle).map(|qp| {
                let groups = u32::try_from(qp.groups.len()).unwrap_or(u32::MAX);
                (qp.base.users.saturating_add(groups), &mut qp.base.stuck)
            }),
            Kind::Srq => self.srqs.get_mut(handle).map(|srq| (srq.base.users, &mut srq.base.stuck)),
            Kind::Cq => self.cqs.get_mut(handle).map(|cq| (cq.base.users, &mut cq.base.stuck)),
            Kind::Mw => self.mws.get_mut(handle).map(|mw| (mw.users, &mut mw.stuck)),
            Kind::Mr => self.mrs.get_mut(handle).map(|mr| (mr.base.users, &mut mr.base.stuck)),
            Kind::Uar => self.uars.get_mut(handle).map(|uar| (uar.base.users, &mut uar.base.stuck)),
            Kind::Xrcd => self.xrcds.get_mut(handle).map(|xrcd| (xrcd.users, &mut xrcd.stuck)),
            Kind::Pd => self.pds.get_mut(handle).map(|pd| (pd.users, &mut pd.stuck)),
        }?;
        Some(Common { users, stuck })
    }

    /// Removes an object; answers what it used, and the slot that it had.
    fn remove(&mut self, kind: Kind, handle: u32) -> Option<(Parents, Option<u32>)> {
        match kind {
            Kind::Qp => self.qps.remove(handle).map(|qp| (qp.base.parents, qp.slot)),
            Kind::Srq => self.srqs.remove(handle).map(|srq| (srq.base.parents, None)),
            Kind::Cq => self.cqs.remove(handle).map(|cq| (cq.base.parents, Some(cq.slot))),
            Kind::Mw => self.mws.remove(handle).map(|mw| (mw.parents, None)),
            Kind::Mr => self.mrs.remove(handle).map(|mr| (mr.base.parents, None)),
            Kind::Uar => self.uars.remove(handle).map(|uar| (uar.base.parents, None)),
            Kind::Xrcd => self.xrcds.remove(handle).map(|xrcd| (xrcd.parents, None)),
            Kind::Pd => self.pds.remove(handle).map(|pd| (pd.parents, None)),
        }
    }
}

impl State {
    /// Destroys an object that nothing uses, as its owner asked.
    pub(crate) fn destroy(&mut self, kind: Kind, handle: u32) -> Result<Destroyed, Reason> {
        let common = self.objects.common(kind, handle).ok_or(Reason::BAD_HANDLE)?;
        if common.users != 0 {
            return Err(Reason::IN_USE);
        }
        match self.take_back(kind, handle) {
            Err(HcaError::Busy) => Err(Reason::IN_USE),
            Err(error) => {
                self.forget(kind, handle);
                Err(error.reason_of_destruction())
            }
            Ok(()) => Ok(self.forget(kind, handle)),
        }
    }

    /// Destroys an object whatever the HCA says, after all that use it. Answers whether the HCA gave it back.
    pub(crate) fn destroy_anyway(&mut self, kind: Kind, handle: u32) -> bool {
        let given_back = self.take_back_anyway(kind, handle);
        self.forget(kind, handle);
        given_back
    }

    /// Takes an object from the HCA, or gives it up; its handle stays. Answers whether the HCA gave it back.
    pub(crate) fn take_back_anyway(&mut self, kind: Kind, handle: u32) -> bool {
        let mut result = self.take_back(kind, handle);
        if result == Err(HcaError::Busy) {
            if let Some(common) = self.objects.common(kind, handle) {
                *common.stuck = true;
            }
            result = self.take_back(kind, handle);
        }
        result.is_ok()
    }

    /// Takes an object from the HCA; its handle stays. With [`HcaError::Busy`] nothing has changed.
    pub(crate) fn take_back(&mut self, kind: Kind, handle: u32) -> Result<(), HcaError> {
        match kind {
            Kind::Qp => self.take_back_qp(handle),
            Kind::Cq => self.take_back_cq(handle),
            Kind::Uar => self.take_back_uar(handle),
            Kind::Srq => {
                let Some(mut srq) = self.objects.srqs.take(handle) else { return Ok(()) };
                let result = self.withdraw(&mut srq.base, |hca, id| hca.destroy_srq(id));
                self.objects.srqs.put_back(handle, srq);
                result
            }
            Kind::Mw => {
                let Some(mut mw) = self.objects.mws.take(handle) else { return Ok(()) };
                let result = self.withdraw(&mut mw, |hca, id| hca.dealloc_mw(id));
                self.objects.mws.put_back(handle, mw);
                result
            }
            Kind::Mr => {
                let Some(mut mr) = self.objects.mrs.take(handle) else { return Ok(()) };
                let result = self.withdraw(&mut mr.base, |hca, id| hca.destroy_mr(id));
                self.objects.mrs.put_back(handle, mr);
                result
            }
            Kind::Xrcd => {
                let Some(mut xrcd) = self.objects.xrcds.take(handle) else { return Ok(()) };
                let result = self.withdraw(&mut xrcd, |hca, id| hca.dealloc_xrcd(id));
                self.objects.xrcds.put_back(handle, xrcd);
                result
            }
            Kind::Pd => {
                let Some(mut pd) = self.objects.pds.take(handle) else { return Ok(()) };
                let result = self.withdraw(&mut pd, |hca, id| hca.dealloc_pd(id));
                self.objects.pds.put_back(handle, pd);
                result
            }
        }
    }

    /// Doorbell off, groups left, RESET.
    fn take_back_qp(&mut self, handle: u32) -> Result<(), HcaError> {
        let Some(mut qp) = self.objects.qps.take(handle) else { return Ok(()) };
        self.silence(&qp.base.parents, qp.slot);
        self.leave_groups(std::mem::take(&mut qp.groups), qp.base.id);
        // Its number and its id may be another's as soon as it is destroyed.
        let (host, number) = (Arc::clone(&self.host), qp.base.number);
        let end = qp.base.id.and_then(|id| host.links().remove(number, id));
        let result = self.withdraw(&mut qp.base, |hca, id| hca.destroy_qp(id));
        match (result, end) {
            (Err(HcaError::Busy), Some(end)) => host.links().put_back(number, end),
            (Err(_), Some(end)) => host.links().lose(number, end),
            _ => {}
        }
        if let (Err(HcaError::Busy), Some(id)) = (result, qp.base.id) {
            self.let_ring(&qp.base.parents, qp.slot, Target::Send(id));
        }
        self.objects.qps.put_back(handle, qp);
        result
    }

    fn leave_groups(&mut self, groups: BTreeSet<McastGroup>, qp: Option<QpId>) {
        for group in groups {
            self.attachments = self.attachments.saturating_sub(1);
            let result = qp.map_or(Ok(()), |qp| self.hca().detach_mcast(qp, &group));
            if let Err(error) = result {
                log::warn!("{qp:?} can't be taken out of a multicast group: {error}");
            }
        }
    }

    fn take_back_cq(&mut self, handle: u32) -> Result<(), HcaError> {
        let Some(mut cq) = self.objects.cqs.take(handle) else { return Ok(()) };
        self.silence(&cq.base.parents, Some(cq.slot));
        let result = self.withdraw(&mut cq.base, |hca, id| hca.destroy_cq(id));
        if let (Err(HcaError::Busy), Some(id)) = (result, cq.base.id) {
            self.let_ring(&cq.base.parents, Some(cq.slot), Target::Arm(id));
        }
        self.objects.cqs.put_back(handle, cq);
        result
    }

    /// The area is not read any more, even if the HCA keeps the page.
    fn take_back_uar(&mut self, handle: u32) -> Result<(), HcaError> {
        let Some(mut uar) = self.objects.uars.take(handle) else { return Ok(()) };
        uar.slots.silence_all();
        if uar.area.take().is_some() {
            self.relay.close(&uar.slots);
        }
        let result = self.withdraw(&mut uar.base, |hca, id| hca.dealloc_uar(id));
        self.objects.uars.put_back(handle, uar);
        result
    }

    fn silence(&self, parents: &Parents, slot: Option<u32>) {
        if let (Some(uar), Some(slot)) = (parents.uar.and_then(|uar| self.objects.uars.get(uar)), slot) {
            uar.slots.silence(slot);
        }
    }

    /// Lets the slot of an object ring it.
    pub(crate) fn let_ring(&self, parents: &Parents, slot: Option<u32>, target: Target) {
        if let (Some(uar), Some(slot)) = (parents.uar.and_then(|uar| self.objects.uars.get(uar)), slot) {
            uar.slots.set(slot, target);
        }
    }

    /// Forgets an object: its handle, its slot, its events, its use of others.
    fn forget(&mut self, kind: Kind, handle: u32) -> Destroyed {
        if let Some((parents, slot)) = self.objects.remove(kind, handle) {
            if let (Some(uar), Some(slot)) = (parents.uar.and_then(|uar| self.objects.uars.get(uar)), slot) {
                uar.slots.free(slot);
            }
            self.objects.leave_parents(&parents);
        }
        match kind.subject() {
            Some(subject) => self.events.close(subject, handle),
            None => Destroyed { completion_events: U32::ZERO, async_events: U32::ZERO },
        }
    }
}
