//! The verbs of tenants, each passed on to where it is done; and doorbells.

use std::sync::Arc;

use mlx4_wire::doorbell::SendDoorbell;
use paraverbs_tenant::GuestPiece;
use paraverbs_tenant::hca::{
    AddressVector, CqGeometry, CqId, CqSpec, Created, DeviceInfo, DmaInfo, Doorbell, EventSink, Gid, GuestId,
    Hca, HcaError, Iova, McastGroup, MrChange, MrId, MrKeys, MrSpec, MwId, MwKind, Path, PdId, Piece,
    PortInfo, QpAttributes, QpGeometry, QpId, QpModify, QpSpec, RingLayout, SrqGeometry, SrqId, SrqSpec,
    SrqState, Target, UarId, XrcdId,
};

use crate::geometry;
use crate::hca::{Mlx4Hca, Running};
use crate::objects::{Pd, Uar, Users, take_unused};
use crate::share::Share;
use crate::table::number;

/// What a guest may say when it arms a CQ: sequence and command, and the consumer index.
const ARM_OF_GUEST: u64 = 0x3700_0000_00ff_ffff;

impl Running {
    fn alloc_pd(&self, guest: GuestId) -> Result<Created<PdId>, HcaError> {
        let guest = self.objects().guests.get(guest.0).ok_or(HcaError::Refused)?;
        let driver = self.driver.pd().map_err(|error| self.fail(&error))?;
        let number = driver.number();
        let id = self.life.id(number);
        self.objects().pds.insert(Pd {
            id,
            driver,
            share: Arc::clone(&guest.share),
            users: Users::default(),
        });
        Ok(Created { id: PdId(id), number })
    }

    fn alloc_uar(&self, guest: GuestId) -> Result<UarId, HcaError> {
        self.objects().guests.get(guest.0).ok_or(HcaError::Refused)?;
        let driver = self.driver.uar().map_err(|error| self.fail(&error))?;
        let id = self.life.id(driver.index());
        self.objects().uars.insert(Uar { id, driver, users: Users::default() });
        Ok(UarId(id))
    }
}

impl Hca for Mlx4Hca {
    fn device(&self) -> DeviceInfo {
        self.device_info()
    }

    fn query_port(&self, port: u8) -> Result<PortInfo, HcaError> {
        self.with(|running| running.query_port(port))
    }

    fn query_gid(&self, port: u8, index: u16) -> Result<Gid, HcaError> {
        self.with(|running| running.query_gid(port, index))
    }

    fn query_pkey(&self, port: u8, index: u16) -> Result<u16, HcaError> {
        self.with(|running| running.query_pkey(port, index))
    }

    fn attach(&self, events: Arc<dyn EventSink>) -> Result<GuestId, HcaError> {
        self.with(|running| {
            let share = Share::of(running.driver.profile().log2_mtts);
            Ok(GuestId(running.objects().guests.attach(running.life, events, share)))
        })
    }

    fn detach(&self, guest: GuestId) {
        self.router.objects.guests.detach(guest.0);
    }

    fn dma(&self) -> DmaInfo {
        self.mappings.info()
    }

    fn map(&self, iova: Iova, piece: &GuestPiece<'_>) -> Result<(), HcaError> {
        self.mappings.map(iova, piece)
    }

    fn unmap(&self, iova: Iova, length: u64) -> Result<(), HcaError> {
        self.mappings.unmap(iova, length)
    }

    fn alloc_pd(&self, guest: GuestId) -> Result<Created<PdId>, HcaError> {
        self.with(|running| running.alloc_pd(guest))
    }

    fn dealloc_pd(&self, pd: PdId) -> Result<(), HcaError> {
        self.with(|running| take_unused(&running.objects().pds, pd.0).map(drop))
    }

    fn alloc_uar(&self, guest: GuestId) -> Result<UarId, HcaError> {
        self.with(|running| running.alloc_uar(guest))
    }

    fn dealloc_uar(&self, uar: UarId) -> Result<(), HcaError> {
        self.with(|running| take_unused(&running.objects().uars, uar.0).map(drop))
    }

    fn alloc_xrcd(&self, guest: GuestId) -> Result<Created<XrcdId>, HcaError> {
        self.with(|running| running.alloc_xrcd(guest))
    }

    fn dealloc_xrcd(&self, xrcd: XrcdId) -> Result<(), HcaError> {
        self.with(|running| running.dealloc_xrcd(xrcd))
    }

    fn create_mr(&self, spec: &MrSpec<'_>) -> Result<(MrId, MrKeys), HcaError> {
        self.with(|running| running.create_mr(spec))
    }

    fn modify_mr(&self, mr: MrId, change: &MrChange<'_>) -> Result<MrKeys, HcaError> {
        self.with(|running| running.modify_mr(mr, change))
    }

    fn destroy_mr(&self, mr: MrId) -> Result<(), HcaError> {
        self.with(|running| running.destroy_mr(mr))
    }

    fn alloc_mw(&self, pd: PdId, kind: MwKind) -> Result<Created<MwId>, HcaError> {
        self.with(|running| running.alloc_mw(pd, kind))
    }

    fn dealloc_mw(&self, mw: MwId) -> Result<(), HcaError> {
        self.with(|running| running.dealloc_mw(mw))
    }

    fn cq_layout(&self, geometry: &CqGeometry) -> Result<RingLayout, HcaError> {
        self.with(|running| geometry::cq(running.limits(), geometry))
    }

    fn create_cq(&self, spec: &CqSpec<'_>) -> Result<Created<CqId>, HcaError> {
        self.with(|running| running.create_cq(spec))
    }

    fn moderate_cq(&self, cq: CqId, count: u16, period_us: u16) -> Result<(), HcaError> {
        self.with(|running| running.moderate_cq(cq, count, period_us))
    }

    fn resize_cq(&self, cq: CqId, geometry: &CqGeometry, ring: &[Piece]) -> Result<(), HcaError> {
        self.with(|running| running.resize_cq(cq, geometry, ring))
    }

    fn destroy_cq(&self, cq: CqId) -> Result<(), HcaError> {
        self.with(|running| running.destroy_cq(cq))
    }

    fn srq_layout(&self, geometry: &SrqGeometry) -> Result<RingLayout, HcaError> {
        self.with(|running| geometry::srq(running.limits(), geometry))
    }

    fn create_srq(&self, spec: &SrqSpec<'_>) -> Result<Created<SrqId>, HcaError> {
        self.with(|running| running.create_srq(spec))
    }

    fn arm_srq(&self, srq: SrqId, limit: u32) -> Result<(), HcaError> {
        self.with(|running| running.arm_srq(srq, limit))
    }

    fn query_srq(&self, srq: SrqId) -> Result<SrqState, HcaError> {
        self.with(|running| running.query_srq(srq))
    }

    fn destroy_srq(&self, srq: SrqId) -> Result<(), HcaError> {
        self.with(|running| running.destroy_srq(srq))
    }

    fn qp_layout(&self, geometry: &QpGeometry) -> Result<RingLayout, HcaError> {
        self.with(|running| geometry::qp(running.limits(), geometry))
    }

    fn create_qp(&self, spec: &QpSpec<'_>) -> Result<Created<QpId>, HcaError> {
        self.with(|running| running.create_qp(spec))
    }

    fn modify_qp(&self, qp: QpId, modify: &QpModify) -> Result<(), HcaError> {
        self.with(|running| running.modify_qp(qp, modify))
    }

    fn query_qp(&self, qp: QpId) -> Result<QpAttributes, HcaError> {
        self.with(|running| running.query_qp(qp))
    }

    fn destroy_qp(&self, qp: QpId) -> Result<(), HcaError> {
        self.with(|running| running.destroy_qp(qp))
    }

    fn address_vector(&self, pd: PdId, path: &Path) -> Result<AddressVector, HcaError> {
        self.with(|running| running.address_vector(pd, path))
    }

    /// The guest waits, with nothing of the card locked, until packets are on their way to the port; not for long if nobody
    /// answers.
    fn attach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError> {
        let joining = self.with(|running| running.attach_mcast(qp, group))?;
        if let Some(joining) = joining {
            self.router.groups.wait(&joining);
        }
        Ok(())
    }

    fn detach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError> {
        self.with(|running| running.detach_mcast(qp, group))
    }

    /// Through the page of the object itself, and only if the doorbell names that one: the HCA would refuse any
    /// other.
    fn ring(&self, doorbell: Doorbell, value: u64) {
        let objects = &self.router.objects;
        match doorbell.target {
            Target::Send(qp) => objects.qps.with(qp.0, |qp| {
                if let Some((uar, bell)) = &qp.bell
                    && *uar == doorbell.uar.0
                {
                    bell.ring(send_value(number(qp.id)));
                }
            }),
            Target::Arm(cq) => objects.cqs.with(cq.0, |cq| {
                if cq.uar == doorbell.uar.0 {
                    cq.bell.ring(arm_value(number(cq.id), value));
                }
            }),
        };
    }

    fn poll_events(&self) -> bool {
        self.poll()
    }
}

fn send_value(qpn: u32) -> u64 {
    SendDoorbell::new().with_qpn(qpn).into_bits().get().into()
}

/// The content of an arm doorbell: of a guest's value, what it may say; and the CQ's own number.
fn arm_value(cqn: u32, of_guest: u64) -> u64 {
    of_guest & ARM_OF_GUEST | u64::from(cqn) << 32
}

#[cfg(test)]
mod tests {
    use mlx4_wire::doorbell::{CqArm, CqArmCommand};

    use super::*;

    #[test]
    fn guest_says_sequence_command_and_index_only() {
        let arm = CqArm::new().with_sequence(3).with_command(CqArmCommand(7)).with_cqn(0x12_3456);
        let wanted = u64::from(arm.into_bits().get()) << 32 | 0xff_ffff;
        assert_eq!(arm_value(0x12_3456, u64::MAX), wanted);
        let none = CqArm::new().with_cqn(0x12_3456);
        assert_eq!(arm_value(0x12_3456, !ARM_OF_GUEST), u64::from(none.into_bits().get()) << 32);
        assert_eq!(send_value(0xab_cdef), 0xabcd_ef00);
    }
}
