//! Completion queues.

use virtio_rdma::doorbell::DoorbellPlace;
use virtio_rdma::request::completion::{CqCreated, CqFlags, CreateCq, DestroyCq, ModifyCq, ResizeCq};
use virtio_rdma::request::{Destroyed, Done, Request};
use virtio_rdma::{Reason, U32};

use super::CarryOut;
use crate::destroy::Kind;
use crate::events::Subject;
use crate::hca::{Cookie, CqGeometry, CqSpec, Target};
use crate::objects::{Base, Cq, Parents, found};
use crate::state::State;

/// The geometry of a CQ, as far as it is no matter of the format.
fn geometry(state: &State, entries: u32) -> Result<CqGeometry, Reason> {
    if !entries.is_power_of_two() {
        return Err(Reason::BAD_GEOMETRY);
    }
    if entries - 1 > state.info.max_cqe {
        return Err(Reason::BEYOND_CAPABILITY);
    }
    Ok(CqGeometry { entries })
}

impl CarryOut for CreateCq {
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<CqCreated, Reason> {
        let (uar, slots) = state.objects.uar(self.uar.get())?;
        if self.comp_vector.get() >= u16::from(state.config.completion_vectors) {
            return Err(Reason::BAD_VECTOR);
        }
        let timestamp = self.flags.contains(CqFlags::TIMESTAMP);
        if timestamp && state.info.timestamp_mask == 0 {
            return Err(Reason::BEYOND_CAPABILITY);
        }
        let geometry = geometry(state, self.entries.get())?;
        let layout = state.hca().cq_layout(&geometry).map_err(|error| error.reason())?;
        let ring = state.ring(request, self.record.get(), layout)?;
        let record = ring.record.clone().ok_or(Reason::BAD_GEOMETRY)?;
        let handle = state.objects.cqs.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let held = state.hold_ring(&ring)?;
        let Some(slot) = slots.take() else {
            state.release(held);
            return Err(Reason::SLOT_LIMIT);
        };
        state.events.open(Subject::Cq, handle, self.comp_vector.get());
        let result = state.hca().create_cq(&CqSpec {
            guest: state.guest,
            cookie: Cookie(handle),
            uar,
            geometry,
            memory: ring.memory(),
            timestamp,
            ignore_overrun: self.flags.contains(CqFlags::IGNORE_OVERRUN),
        });
        let parents = Parents { uar: Some(self.uar.get()), ..Parents::default() };
        let (cq, held) = state.settle(held, &parents, result).inspect_err(|_| {
            slots.free(slot);
            state.events.close(Subject::Cq, handle);
        })?;
        state.objects.use_parents(&parents);
        let base = Base::new(cq.id, cq.number, held, parents);
        let handle = state.objects.cqs.insert(Cq { base, slot, record }).ok_or(Reason::OBJECT_LIMIT)?;
        slots.set(slot, Target::Arm(cq.id));
        Ok(CqCreated { cq: U32::new(handle), cqn: U32::new(cq.number), arm: DoorbellPlace::of_slot(slot) })
    }
}

impl CarryOut for ModifyCq {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let cq = state.objects.cq(self.cq.get())?;
        let (count, period) = (self.count.get(), self.period.get());
        if count > state.info.max_moderation_count || period > state.info.max_moderation_us {
            return Err(Reason::BEYOND_CAPABILITY);
        }
        state.hca().moderate_cq(cq, count, period).map_err(|error| error.reason())?;
        Ok(Done {})
    }
}

impl CarryOut for ResizeCq {
    fn carry_out(&self, state: &mut State, request: &Request<'_>) -> Result<Done, Reason> {
        let id = state.objects.cq(self.cq.get())?;
        let record = found(state.objects.cqs.get(self.cq.get()))?.record.clone();
        let geometry = geometry(state, self.entries.get())?;
        let layout = state.hca().cq_layout(&geometry).map_err(|error| error.reason())?;
        let ring = state.ring(request, record.guest_address(), layout)?;
        let held = state.hold_ring(&ring)?;
        let result = state.hca().resize_cq(id, &geometry, ring.pieces());
        let ((), held) = state.settle(held, &Parents::default(), result)?;
        let cq = found(state.objects.cqs.get_mut(self.cq.get()))?;
        let old = std::mem::replace(&mut cq.base.held, held);
        state.release(old);
        Ok(Done {})
    }
}

impl CarryOut for DestroyCq {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Destroyed, Reason> {
        state.destroy(Kind::Cq, self.cq.get())
    }
}
