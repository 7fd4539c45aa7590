//! Service IDs.

use virtio_rdma::request::management::{RegisterServiceId, ServiceIdRegistered, UnregisterServiceId};
use virtio_rdma::request::{Done, Request};
use virtio_rdma::{Reason, Reserved, U32};

use super::{CarryOut, path};
use crate::objects::Registration;
use crate::state::State;

/// A registration names at least these bits.
const NAMED_BITS: u64 = !0xffff;

impl CarryOut for RegisterServiceId {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<ServiceIdRegistered, Reason> {
        if self.port != 0 {
            path::check_port(state, self.port)?;
        }
        let mask = self.mask.get();
        if mask & NAMED_BITS != NAMED_BITS {
            return Err(Reason::BAD_ATTRIBUTE);
        }
        let ids = 1 << mask.count_zeros();
        let registrations = &mut state.objects.registrations;
        let registered: u32 = registrations.iter().map(|(_, registration)| registration.ids).sum();
        if registered.saturating_add(ids) > state.config.limits.service_ids {
            return Err(Reason::OBJECT_LIMIT);
        }
        registrations.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let service_ids = state.host.service_ids();
        let id = service_ids.register(state.guest, self.service_id.get(), mask, self.port)?;
        let handle = registrations.insert(Registration { id, ids }).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(ServiceIdRegistered { registration: U32::new(handle), reserved: Reserved::ZERO })
    }
}

impl CarryOut for UnregisterServiceId {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let registration = state.objects.registrations.remove(self.registration.get());
        state.host.service_ids().unregister(registration.ok_or(Reason::BAD_HANDLE)?.id);
        Ok(Done {})
    }
}
