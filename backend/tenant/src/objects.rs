//! A guest's objects, and which of them use which.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtio_rdma::Reason;

use crate::doorbell::SlotTable;
use crate::hca::{
    CqId, McastGroup, MrId, MwId, PdId, QpGeometry, QpId, QpState, SrqGeometry, SrqId, SrqKind, UarId, XrcdId,
};
use crate::limits::Limits;
use crate::memory::{ChunkKey, Range};
use crate::service::RegistrationId;
use crate::slab::Slab;

/// Memory that an object holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) chunks: BTreeSet<ChunkKey>,
    /// What counts as registered.
    pub(crate) bytes: u64,
}

/// The handles of the objects that an object uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parents {
    pub(crate) pd: Option<u32>,
    pub(crate) uar: Option<u32>,
    pub(crate) xrcd: Option<u32>,
    pub(crate) send_cq: Option<u32>,
    pub(crate) recv_cq: Option<u32>,
    pub(crate) srq: Option<u32>,
}

impl Parents {
    /// Of an object that uses a PD only.
    pub(crate) const fn pd(pd: u32) -> Self {
        Self { pd: Some(pd), uar: None, xrcd: None, send_cq: None, recv_cq: None, srq: None }
    }
}

/// What all objects have.
#[derive(Debug)]
pub(crate) struct Base<I> {
    /// The HCA's id; `None` once the HCA doesn't have it any more, or was last heard of failing to destroy it.
    pub(crate) id: Option<I>,
    /// The HCA's number.
    pub(crate) number: u32,
    /// How many objects use it.
    pub(crate) users: u32,
    /// Whether an object that the HCA did not give back uses it: it can't be destroyed either.
    pub(crate) stuck: bool,
    /// Its memory.
    pub(crate) held: Held,
    /// What it uses.
    pub(crate) parents: Parents,
}

impl<I: Copy> Base<I> {
    pub(crate) fn new(id: I, number: u32, held: Held, parents: Parents) -> Self {
        Self { id: Some(id), number, users: 0, stuck: false, held, parents }
    }

    /// The id of an object that can be worked with.
    pub(crate) fn live(&self) -> Result<I, Reason> {
        match self.id {
            Some(_) if self.stuck => Err(Reason::COMMAND_FAILED),
            Some(id) => Ok(id),
            None => Err(Reason::NOT_IN_MEMORY),
        }
    }
}

/// Where a doorbell area is.
#[derive(Debug)]
pub(crate) enum AreaPlace {
    /// In guest memory.
    Guest(Range),
    /// In the device's shared-memory region.
    Region,
}

/// A UAR with its doorbell area.
#[derive(Debug)]
pub(crate) struct Uar {
    pub(crate) base: Base<UarId>,
    pub(crate) slots: Arc<SlotTable>,
    /// The area, while it is read.
    pub(crate) area: Option<AreaPlace>,
}

/// A memory region.
#[derive(Debug)]
pub(crate) struct Mr {
    pub(crate) base: Base<MrId>,
    /// Whether its memory may be written by anyone.
    pub(crate) writes: bool,
    /// Whether all of its memory is in writable regions.
    pub(crate) writable: bool,
}

/// A CQ.
#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) base: Base<CqId>,
    pub(crate) slot: u32,
    /// The chunk that its doorbell record is in, which stays when the ring changes.
    pub(crate) record: Range,
}

/// An SRQ.
#[derive(Debug)]
pub(crate) struct Srq {
    pub(crate) base: Base<SrqId>,
    pub(crate) kind: SrqKind,
    pub(crate) geometry: SrqGeometry,
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) base: Base<QpId>,
    pub(crate) slot: Option<u32>,
    /// The state that it is assumed in: the HCA may have gone on to SQE or ERR.
    pub(crate) state: QpState,
    /// Its primary port; 0: none yet, or unknown.
    pub(crate) port: u8,
    /// Whether it was given an alternate path by another port: the HCA may have moved it there by itself.
    pub(crate) strays: bool,
    pub(crate) geometry: QpGeometry,
    pub(crate) groups: BTreeSet<McastGroup>,
}

/// A registration of service IDs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registration {
    pub(crate) id: RegistrationId,
    /// How many IDs it has.
    pub(crate) ids: u32,
}

/// All objects of a guest.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) pds: Slab<Base<PdId>>,
    pub(crate) uars: Slab<Uar>,
    pub(crate) xrcds: Slab<Base<XrcdId>>,
    pub(crate) mrs: Slab<Mr>,
    pub(crate) mws: Slab<Base<MwId>>,
    pub(crate) cqs: Slab<Cq>,
    pub(crate) srqs: Slab<Srq>,
    pub(crate) qps: Slab<Qp>,
    pub(crate) registrations: Slab<Registration>,
}

/// The object of a handle, or the reason why there is none.
pub(crate) fn found<T>(object: Option<T>) -> Result<T, Reason> {
    object.ok_or(Reason::BAD_HANDLE)
}

impl Objects {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            pds: Slab::new(limits.pds),
            uars: Slab::new(limits.uars),
            xrcds: Slab::new(limits.xrcds),
            mrs: Slab::new(limits.mrs),
            mws: Slab::new(limits.mws),
            cqs: Slab::new(limits.cqs),
            srqs: Slab::new(limits.srqs),
            qps: Slab::new(limits.qps),
            registrations: Slab::new(limits.service_ids),
        }
    }

    /// How many there are of all kinds.
    pub(crate) fn count(&self) -> usize {
        self.pds.len()
            + self.uars.len()
            + self.xrcds.len()
            + self.mrs.len()
            + self.mws.len()
            + self.cqs.len()
            + self.srqs.len()
            + self.qps.len()
            + self.registrations.len()
    }

    pub(crate) fn pd(&self, handle: u32) -> Result<PdId, Reason> {
        found(self.pds.get(handle))?.live()
    }

    pub(crate) fn uar(&self, handle: u32) -> Result<(UarId, Arc<SlotTable>), Reason> {
        let uar = found(self.uars.get(handle))?;
        Ok((uar.base.live()?, Arc::clone(&uar.slots)))
    }

    pub(crate) fn xrcd(&self, handle: u32) -> Result<XrcdId, Reason> {
        found(self.xrcds.get(handle))?.live()
    }

    pub(crate) fn cq(&self, handle: u32) -> Result<CqId, Reason> {
        found(self.cqs.get(handle))?.base.live()
    }

    /// Applies `change` to users and mark of each parent.
    fn each_parent(&mut self, parents: &Parents, mut change: impl FnMut(&mut u32, &mut bool)) {
        let mut apply = |users: &mut u32, stuck: &mut bool| change(users, stuck);
        if let Some(pd) = parents.pd.and_then(|handle| self.pds.get_mut(handle)) {
            apply(&mut pd.users, &mut pd.stuck);
        }
        if let Some(uar) = parents.uar.and_then(|handle| self.uars.get_mut(handle)) {
            apply(&mut uar.base.users, &mut uar.base.stuck);
        }
        if let Some(xrcd) = parents.xrcd.and_then(|handle| self.xrcds.get_mut(handle)) {
            apply(&mut xrcd.users, &mut xrcd.stuck);
        }
        for handle in [parents.send_cq, parents.recv_cq].into_iter().flatten() {
            if let Some(cq) = self.cqs.get_mut(handle) {
                apply(&mut cq.base.users, &mut cq.base.stuck);
            }
        }
        if let Some(srq) = parents.srq.and_then(|handle| self.srqs.get_mut(handle)) {
            apply(&mut srq.base.users, &mut srq.base.stuck);
        }
    }

    /// An object begins to use its parents.
    pub(crate) fn use_parents(&mut self, parents: &Parents) {
        self.each_parent(parents, |users, _| *users += 1);
    }

    /// An object doesn't use its parents any more.
    pub(crate) fn leave_parents(&mut self, parents: &Parents) {
        self.each_parent(parents, |users, _| *users = users.saturating_sub(1));
    }

    /// The HCA did not give an object back: what it uses can't be given back either, and so on.
    pub(crate) fn mark_parents_stuck(&mut self, parents: &Parents) {
        self.each_parent(parents, |_, stuck| *stuck = true);
        let srq = parents.srq.and_then(|handle| self.srqs.get(handle)).map(|srq| srq.base.parents);
        let cqs = [parents.send_cq, parents.recv_cq].into_iter().flatten();
        let cqs: Vec<Parents> = cqs.filter_map(|cq| Some(self.cqs.get(cq)?.base.parents)).collect();
        for parents in srq.iter().chain(&cqs) {
            self.mark_parents_stuck(parents);
        }
    }
}
