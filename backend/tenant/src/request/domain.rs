//! PDs, UARs, XRC domains.

use std::sync::Arc;

use virtio_rdma::doorbell::{AREA_ALIGN, DoorbellMode, MAX_SLOTS, area_bytes, header};
use virtio_rdma::request::domain::{
    AllocPd, AllocUar, CloseXrcd, DeallocPd, DeallocUar, OpenXrcd, PdAllocated, UarAllocated, XrcdOpened,
};
use virtio_rdma::request::{Done, Request};
use virtio_rdma::{Reason, Reserved, U16, U32, U64};
use zerocopy::IntoBytes;

use super::CarryOut;
use crate::destroy::Kind;
use crate::doorbell::SlotTable;
use crate::hca::UarId;
use crate::objects::{AreaPlace, Base, Held, Parents, Uar};
use crate::relay::{DirectArea, RelayArea};
use crate::state::State;

impl CarryOut for AllocPd {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<PdAllocated, Reason> {
        state.objects.pds.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let pd = state.hca().alloc_pd(state.guest).map_err(|error| error.reason())?;
        let base = Base::new(pd.id, pd.number, Held::default(), Parents::default());
        let handle = state.objects.pds.insert(base).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(PdAllocated { pd: U32::new(handle), pdn: U32::new(pd.number) })
    }
}

impl CarryOut for DeallocPd {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        state.destroy(Kind::Pd, self.pd.get()).map(|_| Done {})
    }
}

impl CarryOut for OpenXrcd {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<XrcdOpened, Reason> {
        state.objects.xrcds.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let xrcd = state.hca().alloc_xrcd(state.guest).map_err(|error| error.reason())?;
        let base = Base::new(xrcd.id, xrcd.number, Held::default(), Parents::default());
        let handle = state.objects.xrcds.insert(base).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(XrcdOpened { xrcd: U32::new(handle), xrcdn: U32::new(xrcd.number) })
    }
}

impl CarryOut for CloseXrcd {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        state.destroy(Kind::Xrcd, self.xrcd.get()).map(|_| Done {})
    }
}

impl CarryOut for AllocUar {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<UarAllocated, Reason> {
        match self.mode {
            DoorbellMode::RELAYED => relayed(state, self),
            DoorbellMode::DIRECT => direct(state, self),
            DoorbellMode::REGISTERS => Err(Reason::NOT_OFFERED),
            _ => Err(Reason::BAD_TYPE),
        }
    }
}

/// A UAR with an area in guest memory.
fn relayed(state: &mut State, request: &AllocUar) -> Result<UarAllocated, Reason> {
    let slots = request.slots.get();
    let bytes = area_bytes(slots).filter(|_| slots <= state.config.limits.slots);
    let bytes = bytes.ok_or(Reason::BEYOND_CAPABILITY)?;
    if !request.area.get().is_multiple_of(AREA_ALIGN) {
        return Err(Reason::MISALIGNED);
    }
    let area = state.table.find_writable(request.area.get(), u64::from(bytes))?;
    state.objects.uars.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
    state
        .memory
        .write(&area.entry.region, area.start, header(slots).as_bytes())
        .map_err(|_| Reason::NOT_IN_MEMORY)?;
    let (id, table) = alloc_uar(state, slots)?;
    let kick_queue = state.relay.open(RelayArea {
        region: area.entry.region.clone(),
        offset: area.start,
        slots,
        table: table.clone(),
    });
    let handle = keep_uar(state, id, table, AreaPlace::Guest(area))?;
    Ok(allocated(handle, slots, DirectArea { offset: 0, kick_queue }))
}

/// A UAR with an area in the device's shared-memory region.
fn direct(state: &mut State, request: &AllocUar) -> Result<UarAllocated, Reason> {
    if !state.relay.has_region() {
        return Err(Reason::NOT_OFFERED);
    }
    if (request.slots.get(), request.area.get()) != (0, 0) {
        return Err(Reason::BAD_ATTRIBUTE);
    }
    state.objects.uars.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
    let slots = state.config.limits.slots.min(MAX_SLOTS);
    let (id, table) = alloc_uar(state, slots)?;
    let Some(area) = state.relay.open_direct(slots, &table) else {
        if let Err(error) = state.hca().dealloc_uar(id) {
            log::debug!("HCA did not give back {id:?} of {:?}: {error}", state.guest);
        }
        return Err(Reason::NOT_OFFERED);
    };
    let handle = keep_uar(state, id, table, AreaPlace::Region)?;
    Ok(allocated(handle, slots, area))
}

/// A UAR of the HCA, and a table of its slots.
fn alloc_uar(state: &mut State, slots: u32) -> Result<(UarId, Arc<SlotTable>), Reason> {
    let id = state.hca().alloc_uar(state.guest).map_err(|error| error.reason())?;
    Ok((id, SlotTable::new(id, slots, state.counters.clone())))
}

/// Keeps a UAR whose area is read; answers its handle.
fn keep_uar(state: &mut State, id: UarId, slots: Arc<SlotTable>, area: AreaPlace) -> Result<u32, Reason> {
    let base = Base::new(id, 0, Held::default(), Parents::default());
    state.objects.uars.insert(Uar { base, slots, area: Some(area) }).ok_or(Reason::OBJECT_LIMIT)
}

fn allocated(uar: u32, slots: u32, area: DirectArea) -> UarAllocated {
    UarAllocated {
        uar: U32::new(uar),
        kick_queue: U16::new(area.kick_queue),
        reserved: Reserved::ZERO,
        slots: U32::new(slots),
        area_bytes: U32::new(area_bytes(slots).unwrap_or(0)),
        area_offset: U64::new(area.offset),
        blueflame_offset: U64::ZERO,
        blueflame_bytes: U32::ZERO,
        reserved_end: Reserved::ZERO,
    }
}

impl CarryOut for DeallocUar {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        state.destroy(Kind::Uar, self.uar.get()).map(|_| Done {})
    }
}
