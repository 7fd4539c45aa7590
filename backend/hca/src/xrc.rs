//! XRC domains of guests, and the queue pairs that receive for them.

use paraverbs_tenant::hca::{Created, GuestId, HcaError, QpId, QpSpec, XrcdId};

use crate::hca::Running;
use crate::objects::{NewQp, Users, Xrcd, known, take_unused};

impl Running {
    pub(crate) fn alloc_xrcd(&self, guest: GuestId) -> Result<Created<XrcdId>, HcaError> {
        self.offers_xrc()?;
        self.objects().guests.get(guest.0).ok_or(HcaError::Refused)?;
        let (driver, ()) = self.made(self.driver.xrcd(), ())?;
        let number = driver.number().into();
        let id = self.life.id(number);
        self.objects().xrcds.insert(Xrcd { id, driver, users: Users::default() });
        Ok(Created { id: XrcdId(id), number })
    }

    pub(crate) fn dealloc_xrcd(&self, xrcd: XrcdId) -> Result<(), HcaError> {
        let Xrcd { id, driver, users } = take_unused(&self.objects().xrcds, xrcd.0)?;
        match driver.destroy_unused() {
            Ok(Some(driver)) => {
                self.objects().xrcds.insert(Xrcd { id, driver, users });
                Err(HcaError::Busy)
            }
            ended => self.ended(ended.map(drop), ()),
        }
    }

    pub(crate) fn offers_xrc(&self) -> Result<(), HcaError> {
        if self.driver.capabilities().xrcds.is_some() { Ok(()) } else { Err(HcaError::Unsupported) }
    }

    /// A queue pair that receives for a domain. It has no memory, and nothing of it is rung.
    pub(crate) fn create_xrc_target(&self, spec: &QpSpec<'_>) -> Result<Created<QpId>, HcaError> {
        let others = [spec.send_cq, spec.recv_cq];
        if spec.pd.is_some() || spec.uar.is_some() || spec.srq.is_some() || others.iter().any(Option::is_some)
        {
            return Err(HcaError::Refused);
        }
        let owner = self.owner(spec.guest, spec.cookie)?;
        let xrcd = known(&self.objects().xrcds, spec.xrcd.ok_or(HcaError::Refused)?.0)?;
        // Its send queue is a page of the domain's.
        let held = (vec![xrcd.users.one()], owner.guest.share.take(1, 1)?);
        let (driver, held) = self.made(self.driver.xrc_target(&xrcd.driver), held)?;
        Ok(self.keep_qp(spec, NewQp { driver, bell: None, owner, held }))
    }
}
