//! ServiceRecord (IBTA vol. 1, 15.2.5.14): services that ports offer, for others to find.

use std::time::Duration;

use mlx4_wire::mad::DEFAULT_PKEY;
use mlx4_wire::mad::header::{Method, Status};
use mlx4_wire::mad::sa::record::ServiceRecord;
use mlx4_wire::{U16, U32};

use super::records::{Components, Outcome, Records, one};
use super::request::Request;
use crate::fabric::sm::subnet::Subnet;

/// Services of all ports together.
const MAX_SERVICES: usize = 1024;
/// Services of one port.
const MAX_PER_PORT: usize = 64;

const SERVICE: Components = Components(&[
    64, 128, 16, 16, 32, 128, 512, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 16, 16,
    16, 16, 32, 32, 32, 32, 64, 64,
]);

/// A service as its port registered it.
struct Service {
    /// The switch's port of the owner.
    port: u8,
    record: ServiceRecord,
    /// When the lease ends; `None` for never.
    ends: Option<Duration>,
}

/// All services of the subnet.
#[derive(Default)]
pub(super) struct Services(Vec<Service>);

impl Services {
    /// Answers Get and GetTable. Keys aren't shown.
    pub(super) fn query(&self, now: Duration, request: &Request<'_>) -> Outcome {
        let wanted: ServiceRecord = request.mad.attribute();
        let mask = request.mask() & !ServiceRecord::MASK_SERVICE_KEY;
        let seen =
            self.0.iter().filter(|service| request.end.shares_pkey(service.record.service_p_key.get()));
        let picked = seen.filter(|service| SERVICE.match_masked(mask, &wanted, &service.record));
        Ok(Records::pack(&picked.map(|service| service.shown(now)).collect::<Vec<_>>()))
    }

    /// Answers Set and Delete.
    pub(super) fn change(&mut self, now: Duration, request: &Request<'_>, subnet: &Subnet) -> Outcome {
        let record: ServiceRecord = request.mad.attribute();
        if !request.has(ServiceRecord::MASK_SERVICE_ID | ServiceRecord::MASK_SERVICE_GID) {
            return Err(Status::SA_REQ_INVALID);
        }
        match subnet.by_gid(&record.service_gid) {
            None => return Err(Status::SA_REQ_INVALID_GID),
            Some((port, _)) if port != request.port => return Err(Status::SA_REQ_DENIED),
            Some(_) => (),
        }
        let record = completed(request, record);
        if !request.end.shares_pkey(record.service_p_key.get()) {
            return Err(Status::SA_REQ_INVALID);
        }
        let known = self.0.iter().position(|service| is_same(&service.record, &record));
        match (request.method(), known) {
            (Method::DELETE, Some(at)) => one(&self.0.remove(at).shown(now)),
            (Method::DELETE, None) => Err(Status::SA_NO_RECORDS),
            (_, Some(at)) => {
                self.0[at] = Service::new(request.port, record, now);
                one(&self.0[at].shown(now))
            }
            (_, None) => self.add(Service::new(request.port, record, now), now),
        }
    }

    /// Ends the leases that are over.
    pub(super) fn expire(&mut self, now: Duration) {
        self.0.retain(|service| service.ends.is_none_or(|end| end > now));
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.0.iter().filter_map(|service| service.ends).min()
    }

    /// Forgets the services of a port that is gone.
    pub(super) fn forget(&mut self, port: u8) {
        self.0.retain(|service| service.port != port);
    }

    fn add(&mut self, service: Service, now: Duration) -> Outcome {
        let of_port = self.0.iter().filter(|other| other.port == service.port).count();
        if self.0.len() >= MAX_SERVICES || of_port >= MAX_PER_PORT {
            return Err(Status::SA_NO_RESOURCES);
        }
        let answer = one(&service.shown(now));
        self.0.push(service);
        answer
    }
}

impl Service {
    fn new(port: u8, record: ServiceRecord, now: Duration) -> Self {
        let lease = record.service_lease.get();
        let ends = (lease != ServiceRecord::LEASE_INFINITE).then(|| now + Duration::from_secs(lease.into()));
        Self { port, record, ends }
    }

    /// The record with what is left of its lease, and without the key.
    fn shown(&self, now: Duration) -> ServiceRecord {
        let left = self.ends.map(|end| end.saturating_sub(now).as_secs());
        let left = left.and_then(|left| u32::try_from(left).ok()).unwrap_or(ServiceRecord::LEASE_INFINITE);
        ServiceRecord { service_key: [0; 16], service_lease: U32::new(left), ..self.record }
    }
}

/// The record with defaults for what wasn't given: an endless lease, and the default partition.
fn completed(request: &Request<'_>, mut record: ServiceRecord) -> ServiceRecord {
    if !request.has(ServiceRecord::MASK_SERVICE_LEASE) {
        record.service_lease = U32::new(ServiceRecord::LEASE_INFINITE);
    }
    if !request.has(ServiceRecord::MASK_SERVICE_P_KEY) {
        record.service_p_key = U16::new(DEFAULT_PKEY);
    }
    record
}

fn is_same(a: &ServiceRecord, b: &ServiceRecord) -> bool {
    a.service_id == b.service_id && a.service_gid == b.service_gid && a.service_p_key == b.service_p_key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_add_up_to_the_record() {
        assert_eq!(SERVICE.0.iter().sum::<usize>(), 8 * size_of::<ServiceRecord>());
        let offset = |mask: u64| SERVICE.0[..mask.trailing_zeros() as usize].iter().sum::<usize>() / 8;
        assert_eq!(offset(ServiceRecord::MASK_SERVICE_NAME), 0x30);
        assert_eq!(offset(ServiceRecord::MASK_SERVICE_DATA64_0), 0xa0);
    }
}
