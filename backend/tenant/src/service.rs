//! Which guest listens to which service ID, where a port's GID doesn't tell guests apart.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_rdma::Reason;

use crate::hca::GuestId;

/// Names a registration among those of all guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RegistrationId(u64);

#[derive(Clone, Copy, Debug)]
struct Registration {
    guest: GuestId,
    service_id: u64,
    mask: u64,
    /// 0: every port.
    port: u8,
}

impl Registration {
    fn overlaps(&self, other: &Self) -> bool {
        let both = self.mask & other.mask;
        let ports = self.port == 0 || other.port == 0 || self.port == other.port;
        ports && (self.service_id ^ other.service_id) & both == 0
    }
}

#[derive(Debug, Default)]
struct State {
    registrations: BTreeMap<RegistrationId, Registration>,
    next: u64,
}

/// The service IDs of all guests.
#[derive(Debug, Default)]
pub(crate) struct ServiceIds(Mutex<State>);

impl ServiceIds {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers IDs, unless another guest has one of them.
    pub(crate) fn register(
        &self,
        guest: GuestId,
        service_id: u64,
        mask: u64,
        port: u8,
    ) -> Result<RegistrationId, Reason> {
        let new = Registration { guest, service_id, mask, port };
        let mut state = self.lock();
        if state.registrations.values().any(|other| other.guest != guest && other.overlaps(&new)) {
            return Err(Reason::TAKEN);
        }
        state.next += 1;
        let id = RegistrationId(state.next);
        state.registrations.insert(id, new);
        Ok(id)
    }

    pub(crate) fn unregister(&self, id: RegistrationId) {
        self.lock().registrations.remove(&id);
    }

    /// The guest that a connection request for a service ID at a port is for.
    pub(crate) fn owner(&self, service_id: u64, port: u8) -> Option<GuestId> {
        let asked = Registration { guest: GuestId(0), service_id, mask: u64::MAX, port };
        self.lock().registrations.values().find(|found| found.overlaps(&asked)).map(|found| found.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_id_of_another_guest_is_taken() {
        let (ids, one, two) = (ServiceIds::default(), GuestId(1), GuestId(2));
        let held = ids.register(one, 0x0106_0000, !0xffff, 1).unwrap();
        assert!(ids.register(one, 0x0106_0001, u64::MAX, 0).is_ok());
        assert_eq!(ids.register(two, 0x0106_1234, u64::MAX, 0), Err(Reason::TAKEN));
        assert_eq!(ids.register(two, 0, 0, 1), Err(Reason::TAKEN));
        assert!(ids.register(two, 0x0106_1234, u64::MAX, 2).is_ok());
        assert_eq!((ids.owner(0x0106_1234, 1), ids.owner(0x0106_1234, 2)), (Some(one), Some(two)));
        assert_eq!(ids.owner(0x0107_0000, 1), None);
        ids.unregister(held);
        assert_eq!(ids.owner(0x0106_1234, 1), None);
    }
}
