//! Queue pairs and SRQs of guests.

use std::sync::Mutex;

use mlx4::{QpConfig, QpRights, RingMemoryPages, SrqConfig};
use mlx4_pci::DoorbellKind;
use mlx4_wire::ctx::qp::ServiceType;
use paraverbs_tenant::hca::{Created, HcaError, QpId, QpKind, QpSpec, SrqId, SrqKind, SrqSpec, SrqState};

use crate::geometry::{self, wq_size};
use crate::hca::Running;
use crate::objects::{Membership, NewQp, Qp, Srq, Users, known, take_unused};
use crate::pages::{LOG2_RING_PAGE, ring_pages};

impl Running {
    pub(crate) fn create_srq(&self, spec: &SrqSpec<'_>) -> Result<Created<SrqId>, HcaError> {
        if !self.driver.capabilities().has_srqs {
            return Err(HcaError::Unsupported);
        }
        let layout = geometry::srq(self.limits(), &spec.geometry)?;
        let owner = self.owner(spec.guest, spec.cookie)?;
        let pd = known(&self.objects().pds, spec.pd.0)?;
        let pages = ring_pages(spec.memory.ring, layout.ring_bytes)?;
        let xrc = match spec.kind {
            SrqKind::Basic => None,
            SrqKind::Xrc { xrcd, cq } => {
                self.offers_xrc()?;
                Some((known(&self.objects().xrcds, xrcd.0)?, known(&self.objects().cqs, cq.0)?))
            }
        };
        let mut held = vec![pd.users.one()];
        held.extend(xrc.iter().flat_map(|(xrcd, cq)| [xrcd.users.one(), cq.users.one()]));
        let config = SrqConfig {
            log2_entries: spec.geometry.log2_wqes,
            log2_stride: spec.geometry.log2_stride,
            pd: &pd.driver,
            ring: RingMemoryPages { pages: &pages, log2_page: LOG2_RING_PAGE },
            record: spec.memory.record.ok_or(HcaError::Geometry)?.0,
            xrc: xrc.as_ref().map(|(xrcd, cq)| (&xrcd.driver, &cq.driver)),
        };
        let held = (held, owner.guest.share.ring(&pages)?);
        let (driver, held) = self.made(self.driver.srq(&config), held)?;
        let number = driver.number();
        let id = self.life.id(number);
        self.objects().srqs.insert(Srq { id, driver, owner, held, users: Users::default() });
        Ok(Created { id: SrqId(id), number })
    }

    pub(crate) fn arm_srq(&self, srq: SrqId, limit: u32) -> Result<(), HcaError> {
        let srq = known(&self.objects().srqs, srq.0)?;
        let limit = u16::try_from(limit).map_err(|_| HcaError::Refused)?;
        srq.driver.arm(limit).map_err(|error| self.fail(&error))
    }

    pub(crate) fn query_srq(&self, srq: SrqId) -> Result<SrqState, HcaError> {
        let srq = known(&self.objects().srqs, srq.0)?;
        let limit = srq.driver.limit().map_err(|error| self.fail(&error))?;
        Ok(SrqState { limit: limit.into() })
    }

    pub(crate) fn destroy_srq(&self, srq: SrqId) -> Result<(), HcaError> {
        let srq = take_unused(&self.objects().srqs, srq.0)?;
        self.ended(srq.driver.destroy(), srq.held)
    }

    pub(crate) fn create_qp(&self, spec: &QpSpec<'_>) -> Result<Created<QpId>, HcaError> {
        let service = self.service(spec)?;
        let layout = geometry::qp(self.limits(), &spec.geometry)?;
        if spec.geometry.kind == QpKind::XrcRecv {
            return self.create_xrc_target(spec);
        }
        let send = spec.geometry.send.ok_or(HcaError::Geometry)?;
        let receive = spec.geometry.receive;
        let sends_only = spec.geometry.kind == QpKind::XrcSend;
        if u8::from(receive.is_some()) + u8::from(spec.srq.is_some()) != u8::from(!sends_only) {
            return Err(HcaError::Geometry);
        }
        let owner = self.owner(spec.guest, spec.cookie)?;
        let objects = self.objects();
        let pd = known(&objects.pds, spec.pd.ok_or(HcaError::Refused)?.0)?;
        let uar = known(&objects.uars, spec.uar.ok_or(HcaError::Refused)?.0)?;
        let send_cq = known(&objects.cqs, spec.send_cq.ok_or(HcaError::Refused)?.0)?;
        // What only sends has the same in the place of the other.
        let receive_cq = if sends_only { spec.send_cq } else { spec.recv_cq };
        let receive_cq = known(&objects.cqs, receive_cq.ok_or(HcaError::Refused)?.0)?;
        let srq = spec.srq.map(|srq| known(&objects.srqs, srq.0)).transpose()?;
        let pages = ring_pages(spec.memory.ring, layout.ring_bytes)?;
        let record = match (receive, spec.memory.record) {
            (Some(_), Some(record)) => record.0,
            (None, None) => 0,
            _ => return Err(HcaError::Geometry),
        };
        let mut held = vec![pd.users.one(), uar.users.one(), send_cq.users.one(), receive_cq.users.one()];
        held.extend(srq.as_ref().map(|srq| srq.users.one()));
        let config = QpConfig {
            service,
            send: wq_size(&send),
            receive: receive.as_ref().map(wq_size),
            pd: &pd.driver,
            uar: &uar.driver,
            send_cq: &send_cq.driver,
            receive_cq: &receive_cq.driver,
            srq: srq.as_ref().map(|srq| &srq.driver),
            buffer: RingMemoryPages { pages: &pages, log2_page: LOG2_RING_PAGE },
            record,
            rights: QpRights { fast_register: false, lso: spec.lso, forced_gid: forced_gid(spec)? },
        };
        let held = (held, owner.guest.share.ring(&pages)?);
        let (driver, held) = self.made(self.driver.qp(&config), held)?;
        let number = driver.number();
        let bell = match uar.driver.doorbell(DoorbellKind::Send(number)) {
            Ok(bell) => bell,
            Err(error) => return Err(self.undone(&error, driver.destroy(), held)),
        };
        Ok(self.keep_qp(spec, NewQp { driver, bell: Some((uar.id, bell)), owner, held }))
    }

    /// Puts a new queue pair into the table. Its id has the number without what tells of an XRC target, which
    /// events may leave out.
    pub(crate) fn keep_qp(&self, spec: &QpSpec<'_>, new: NewQp) -> Created<QpId> {
        let NewQp { driver, bell, owner, held } = new;
        let number = driver.number();
        let id = self.life.id(number & !mlx4::XRC_TARGET);
        self.objects().qps.insert(Qp {
            id,
            driver,
            kind: spec.geometry.kind,
            bell,
            owner,
            block_loopback: spec.block_loopback,
            membership: Mutex::new(Membership::default()),
            held,
            users: Users::default(),
        });
        Created { id: QpId(id), number }
    }

    /// The services that guests may have, as far as the card has them.
    fn service(&self, spec: &QpSpec<'_>) -> Result<ServiceType, HcaError> {
        let caps = self.driver.capabilities();
        if (spec.lso && caps.log2_max_lso == 0) || (spec.srq.is_some() && !caps.has_srqs) {
            return Err(HcaError::Unsupported);
        }
        match spec.geometry.kind {
            QpKind::Rc => Ok(ServiceType::RC),
            QpKind::Uc if caps.has_uc => Ok(ServiceType::UC),
            QpKind::Ud => Ok(ServiceType::UD),
            QpKind::XrcSend | QpKind::XrcRecv if caps.xrcds.is_some() => Ok(ServiceType::XRC),
            QpKind::Uc | QpKind::XrcSend | QpKind::XrcRecv => Err(HcaError::Unsupported),
        }
    }

    pub(crate) fn destroy_qp(&self, qp: QpId) -> Result<(), HcaError> {
        let found = known(&self.objects().qps, qp.0)?;
        if !found.membership().groups.is_empty() {
            return Err(HcaError::Busy);
        }
        drop(found);
        let mut qp = take_unused(&self.objects().qps, qp.0)?;
        if qp.membership().uncertain {
            qp.driver.keep_number();
        }
        self.ended(qp.driver.destroy(), qp.held)
    }
}

/// The source GID that a guest's datagrams have whatever they say, as the driver takes it.
fn forced_gid(spec: &QpSpec<'_>) -> Result<Option<u8>, HcaError> {
    spec.forced_gid.map(|index| u8::try_from(index).map_err(|_| HcaError::Refused)).transpose()
}
