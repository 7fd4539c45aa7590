//! Service IDs.

use virtio_rdma::request::management::{RegisterServiceId, ServiceIdRegistered, UnregisterServiceId};
use virtio_rdma::request::{Done, Request};
use virtio_rdma::{Reason, Reserved, U32};

use super::{CarryOut, path};
use crate::state::State;

/// A registration names at least these bits: a port number's worth of IDs may be asked for, not everyone's.
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
        state.objects.registrations.next_handle().ok_or(Reason::OBJECT_LIMIT)?;
        let ids = state.host.service_ids();
        let id = ids.register(state.guest, self.service_id.get(), mask, self.port)?;
        let handle = state.objects.registrations.insert(id).ok_or(Reason::OBJECT_LIMIT)?;
        Ok(ServiceIdRegistered { registration: U32::new(handle), reserved: Reserved::ZERO })
    }
}

impl CarryOut for UnregisterServiceId {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let id = state.objects.registrations.remove(self.registration.get()).ok_or(Reason::BAD_HANDLE)?;
        state.host.service_ids().unregister(id);
        Ok(Done {})
    }
}
