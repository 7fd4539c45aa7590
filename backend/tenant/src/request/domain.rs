//! PDs, UARs, XRC domains.

use virtio_rdma::doorbell::{AREA_ALIGN, DoorbellMode, area_bytes, header};
use virtio_rdma::request::domain::{
    AllocPd, AllocUar, CloseXrcd, DeallocPd, DeallocUar, OpenXrcd, PdAllocated, UarAllocated, XrcdOpened,
};
use virtio_rdma::request::{Done, Request};
use virtio_rdma::{Reason, Reserved, U16, U32, U64};
use zerocopy::IntoBytes;

use super::CarryOut;
use crate::destroy::Kind;
use crate::doorbell::SlotTable;
use crate::memory::Range;
use crate::objects::{Base, Held, Parents, Uar};
use crate::relay::RelayArea;
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
            DoorbellMode::RELAYED => {}
            DoorbellMode::DIRECT | DoorbellMode::REGISTERS => return Err(Reason::NOT_OFFERED),
            _ => return Err(Reason::BAD_TYPE),
        }
        let slots = self.slots.get();
        let bytes = area_bytes(slots).filter(|_| slots <= state.config.limits.slots);
        let bytes = bytes.ok_or(Reason::BEYOND_CAPABILITY)?;
        if !self.area.get().is_multiple_of(AREA_ALIGN) {
            return Err(Reason::MISALIGNED);
        }
        let area = state.table.find_writable(self.area.get(), u64::from(bytes))?;
        state.objects.uars.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        state
            .memory
            .write(&area.entry.region, area.start, header(slots).as_bytes())
            .map_err(|_| Reason::NOT_IN_MEMORY)?;
        let (handle, kick_queue) = open_uar(state, slots, area)?;
        Ok(UarAllocated {
            uar: U32::new(handle),
            kick_queue: U16::new(kick_queue),
            reserved: Reserved::ZERO,
            slots: U32::new(slots),
            area_bytes: U32::new(bytes),
            area_offset: U64::ZERO,
            blueflame_offset: U64::ZERO,
            blueflame_bytes: U32::ZERO,
            reserved_end: Reserved::ZERO,
        })
    }
}

/// A UAR of the HCA with a table of slots, and its area opened; answers its handle and kick queue.
fn open_uar(state: &mut State, slots: u32, area: Range) -> Result<(u32, u16), Reason> {
    let id = state.hca().alloc_uar(state.guest).map_err(|error| error.reason())?;
    let table = SlotTable::new(id, slots, state.counters.clone());
    let base = Base::new(id, 0, Held::default(), Parents::default());
    let kick_queue = state.relay.open(RelayArea {
        region: area.entry.region.clone(),
        offset: area.start,
        slots,
        table: table.clone(),
    });
    let uar = Uar { base, slots: table, area: Some(area) };
    let handle = state.objects.uars.insert(uar).ok_or(Reason::OBJECT_LIMIT)?;
    Ok((handle, kick_queue))
}

impl CarryOut for DeallocUar {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        state.destroy(Kind::Uar, self.uar.get()).map(|_| Done {})
    }
}
