//! Memory regions and windows.

use virtio_rdma::request::memory::{
    AccessFlags, AllocMw, DeallocMw, DeregMr, MrRegistered, MwAllocated, MwType, RegMr,
};
use virtio_rdma::request::{Done, Request};
use virtio_rdma::{Reason, Reserved, U32};

use super::CarryOut;
use crate::destroy::Kind;
use crate::hca::{MrKeys, MrSpec, MwKind, RegionAccess};
use crate::memory::Range;
use crate::objects::{Base, Held, Mr, Parents};
use crate::state::State;

/// The rights that a request names.
pub(super) fn access(flags: AccessFlags) -> Result<RegionAccess, Reason> {
    let access = RegionAccess {
        local_write: flags.contains(AccessFlags::LOCAL_WRITE),
        remote: super::queue_pair::remote_access(flags),
        mw_bind: flags.contains(AccessFlags::MW_BIND),
    };
    if (access.remote.write || access.remote.atomic) && !access.local_write {
        return Err(Reason::BAD_ACCESS);
    }
    Ok(access)
}

/// The bytes of the pages that a list of ranges is.
pub(super) fn sum(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.length).sum()
}

pub(super) fn registered(handle: u32, keys: MrKeys) -> MrRegistered {
    MrRegistered {
        mr: U32::new(handle),
        lkey: U32::new(keys.lkey),
        rkey: U32::new(keys.rkey),
        reserved: Reserved::ZERO,
    }
}

/// The memory of a region, and whether all of it may be written.
pub(super) fn region_memory(
    state: &State,
    request: &Request<'_>,
    (start, length): (u64, u64),
    written: bool,
) -> Result<(Vec<Range>, bool), Reason> {
    if length > state.info.max_mr_bytes {
        return Err(Reason::BEYOND_CAPABILITY);
    }
    let segments = state.segments(request)?;
    let ranges = state.cover(&segments, start, length, written)?;
    let writable = ranges.iter().all(|range| range.entry.region.writable);
    Ok((ranges, writable))
}

impl CarryOut for RegMr {
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<MrRegistered, Reason> {
        let pd = state.objects.pd(self.pd.get())?;
        let access = access(self.access)?;
        let (start, length) = (self.iova.get(), self.length.get());
        let (ranges, writable) = region_memory(state, request, (start, length), access.local_write)?;
        state.objects.mrs.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let held = state.hold(&ranges, sum(&ranges))?;
        let pages = state.pieces(&ranges);
        let result = state.hca().create_mr(&MrSpec { pd, access, start, length, pages: &pages });
        let parents = Parents::pd(self.pd.get());
        let ((id, keys), held) = state.settle(held, &parents, result)?;
        state.objects.use_parents(&parents);
        let base = Base::new(id, keys.lkey, held, parents);
        let mr = Mr { base, writes: access.local_write, writable };
        let handle = state.objects.mrs.insert(mr).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(registered(handle, keys))
    }
}

impl CarryOut for DeregMr {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        state.destroy(Kind::Mr, self.mr.get()).map(|_| Done {})
    }
}

impl CarryOut for AllocMw {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<MwAllocated, Reason> {
        let features = &state.info.features;
        let kind = match self.mw_type {
            MwType::TYPE_1 if features.mw_type1 => MwKind::Type1,
            MwType::TYPE_2 if features.mw_type2 => MwKind::Type2,
            MwType::TYPE_1 | MwType::TYPE_2 => return Err(Reason::NOT_OFFERED),
            _ => return Err(Reason::BAD_TYPE),
        };
        let pd = state.objects.pd(self.pd.get())?;
        state.objects.mws.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let parents = Parents::pd(self.pd.get());
        let result = state.hca().alloc_mw(pd, kind);
        let (mw, held) = state.settle(Held::default(), &parents, result)?;
        state.objects.use_parents(&parents);
        let base = Base::new(mw.id, mw.number, held, parents);
        let handle = state.objects.mws.insert(base).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(MwAllocated { mw: U32::new(handle), rkey: U32::new(mw.number) })
    }
}

impl CarryOut for DeallocMw {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        state.destroy(Kind::Mw, self.mw.get()).map(|_| Done {})
    }
}
