//! Changes of memory regions.

use virtio_rdma::Reason;
use virtio_rdma::request::Request;
use virtio_rdma::request::memory::{MrRegistered, ReregFlags, ReregMr};

use super::CarryOut;
use super::memory::{access, region_memory, registered, sum};
use crate::hca::{HcaError, MrChange, MrKeys, PdId, RegionAccess};
use crate::memory::Range;
use crate::objects::{Held, Parents, found};
use crate::state::State;

/// A change of a region, checked.
struct Change {
    pd: Option<(u32, PdId)>,
    access: Option<RegionAccess>,
    memory: Option<(Vec<Range>, bool)>,
}

fn checked(body: &ReregMr, state: &State, request: &Request<'_>) -> Result<Change, Reason> {
    let mr = found(state.objects.mrs.get(body.mr.get()))?;
    mr.base.live()?;
    let has = |flag| body.change.contains(flag);
    if body.change == ReregFlags::NONE {
        return Err(Reason::BAD_ATTRIBUTE_MASK);
    }
    let pd =
        has(ReregFlags::PD).then(|| Ok((body.pd.get(), state.objects.pd(body.pd.get())?))).transpose()?;
    let access = has(ReregFlags::ACCESS).then(|| access(body.access)).transpose()?;
    let writes = access.map_or(mr.writes, |access| access.local_write);
    let memory = if has(ReregFlags::TRANSLATION) {
        Some(region_memory(state, request, (body.iova.get(), body.length.get()), writes)?)
    } else if !request.segments.is_empty() {
        return Err(Reason::BAD_LENGTH);
    } else if writes && !mr.writable {
        return Err(Reason::READ_ONLY_MEMORY);
    } else {
        None
    };
    Ok(Change { pd, access, memory })
}

/// What stays of the region after the HCA changed it, or did not.
fn settle(
    body: &ReregMr,
    state: &mut State,
    change: &Change,
    new: Option<Held>,
    result: Result<MrKeys, HcaError>,
) -> Result<MrKeys, Reason> {
    let keys = match result {
        Ok(keys) => keys,
        Err(error) if error.leaves_open() => {
            lose(body, state, change, new);
            return Err(error.reason());
        }
        Err(error) => {
            new.into_iter().for_each(|held| state.release(held));
            return Err(error.reason());
        }
    };
    let mr = found(state.objects.mrs.get_mut(body.mr.get()))?;
    mr.writes = change.access.map_or(mr.writes, |access| access.local_write);
    mr.writable = change.memory.as_ref().map_or(mr.writable, |(_, writable)| *writable);
    let old = new.map(|new| std::mem::replace(&mut mr.base.held, new));
    let old_parents = mr.base.parents;
    if let Some((pd, _)) = change.pd {
        mr.base.parents = Parents::pd(pd);
        state.objects.leave_parents(&old_parents);
        state.objects.use_parents(&Parents::pd(pd));
    }
    old.into_iter().for_each(|held| state.release(held));
    Ok(keys)
}

/// The HCA may use both memories and both PDs now: the region can only be deregistered.
fn lose(body: &ReregMr, state: &mut State, change: &Change, new: Option<Held>) {
    let Some(mr) = state.objects.mrs.get_mut(body.mr.get()) else { return };
    mr.base.id = None;
    let (old, parents) = (std::mem::take(&mut mr.base.held), mr.base.parents);
    state.objects.mark_parents_stuck(&parents);
    if let Some((pd, _)) = change.pd {
        state.objects.mark_parents_stuck(&Parents::pd(pd));
    }
    state.quarantine(&old);
    if let Some(new) = new {
        state.quarantine(&new);
    }
}

impl CarryOut for ReregMr {
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<MrRegistered, Reason> {
        let change = checked(self, state, request)?;
        let id = found(state.objects.mrs.get(self.mr.get()))?.base.live()?;
        let ranges = change.memory.as_ref().map(|(ranges, _)| ranges);
        let new = ranges.map(|ranges| state.hold(ranges, sum(ranges))).transpose()?;
        let pages = ranges.map(|ranges| state.pieces(ranges));
        let memory = pages.as_deref().map(|pages| (self.iova.get(), self.length.get(), pages));
        let pd = change.pd.map(|(_, pd)| pd);
        let result = state.hca().modify_mr(id, &MrChange { pd, access: change.access, memory });
        let keys = settle(self, state, &change, new, result)?;
        Ok(registered(self.mr.get(), keys))
    }
}
