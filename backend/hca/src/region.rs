//! Memory regions and windows of guests.

use std::sync::atomic::Ordering;

use mlx4::{RegionConfig, WindowKind};
use paraverbs_tenant::hca::{
    Created, HcaError, MrChange, MrId, MrKeys, MrSpec, MwId, MwKind, PdId, RegionAccess,
};

use crate::hca::Running;
use crate::objects::{Mr, Mw, Users, known, take_unused};
use crate::pages::{Pages, region_pages};
use crate::table::NUMBER_BITS;

/// What a region is made of besides its PD.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    access: mlx4::Access,
    /// Windows may be bound to it.
    bind: bool,
    start: u64,
    length: u64,
    pages: Pages,
}

fn access(access: RegionAccess) -> mlx4::Access {
    mlx4::Access {
        local_write: access.local_write,
        remote_read: access.remote.read,
        remote_write: access.remote.write,
        remote_atomic: access.remote.atomic,
    }
}

impl Running {
    pub(crate) fn create_mr(&self, spec: &MrSpec<'_>) -> Result<(MrId, MrKeys), HcaError> {
        let shape = Shape {
            access: access(spec.access),
            bind: self.binds(spec.access)?,
            start: spec.start,
            length: spec.length,
            pages: region_pages(spec.start, spec.length, spec.pages)?,
        };
        let mr = self.region(self.new_mr_id(), spec.pd.0, shape)?;
        let created = (MrId(mr.id), keys(&mr));
        self.objects().mrs.insert(mr);
        Ok(created)
    }

    /// An id that no region has. A region keeps its id when it is changed, but not its number, so the two have
    /// nothing to do with each other.
    fn new_mr_id(&self) -> u32 {
        // Twice as many ids as regions: one is free.
        let ids = 2u32 << self.driver.profile().log2_mpts.min(NUMBER_BITS - 1);
        loop {
            let id = self.life.id(self.next_mr.fetch_add(1, Ordering::Relaxed) % ids);
            if self.objects().mrs.get(id).is_none() {
                return id;
            }
        }
    }

    fn region(&self, id: u32, pd: u32, shape: Shape) -> Result<Mr, HcaError> {
        let pd = known(&self.objects().pds, pd)?;
        let config = RegionConfig {
            pd: &pd.driver,
            address: shape.start,
            length: shape.length,
            pages: &shape.pages.addresses,
            log2_page: shape.pages.log2,
            access: shape.access,
            bind: shape.bind,
        };
        let held = (pd.users.one(), pd.share.take(shape.pages.addresses.len(), 0)?);
        let (driver, (held, entries)) = self.made(self.driver.region(&config), held)?;
        Ok(Mr { id, driver, shape, domain: pd.id, pd: held, entries, users: Users::default() })
    }

    /// Makes a changed region beside the old one, which then goes: so the keys change, and a failure to make the
    /// new one changes nothing.
    pub(crate) fn modify_mr(&self, mr: MrId, change: &MrChange<'_>) -> Result<MrKeys, HcaError> {
        let old = known(&self.objects().mrs, mr.0)?;
        let mut shape = old.shape.clone();
        if let Some(rights) = change.access {
            (shape.access, shape.bind) = (access(rights), self.binds(rights)?);
        }
        if let Some((start, length, pieces)) = change.memory {
            (shape.start, shape.length) = (start, length);
            shape.pages = region_pages(start, length, pieces)?;
        }
        let pd = change.pd.map_or(old.domain, |pd| pd.0);
        drop(old);
        let new = self.region(mr.0, pd, shape)?;
        let ended = self.destroy_mr(mr);
        if let Err(error) = ended {
            // Nobody knows its keys: it goes again, or stays with what it uses until the reset.
            let _told_below = self.ended(new.driver.destroy(), (new.pd, new.entries));
            return Err(error);
        }
        let keys = keys(&new);
        self.objects().mrs.insert(new);
        Ok(keys)
    }

    /// Which windows are bound to it only the HCA knows.
    pub(crate) fn destroy_mr(&self, mr: MrId) -> Result<(), HcaError> {
        let Mr { id, driver, shape, domain, pd, entries, users } = take_unused(&self.objects().mrs, mr.0)?;
        match driver.destroy_unbound() {
            Ok(Some(driver)) => {
                self.objects().mrs.insert(Mr { id, driver, shape, domain, pd, entries, users });
                Err(HcaError::Busy)
            }
            ended => self.ended(ended.map(drop), (pd, entries)),
        }
    }

    /// Whether windows may be bound to a region with such rights.
    fn binds(&self, access: RegionAccess) -> Result<bool, HcaError> {
        let caps = self.driver.capabilities();
        if access.mw_bind && !caps.has_windows && !caps.has_windows_2b {
            return Err(HcaError::Unsupported);
        }
        Ok(access.mw_bind)
    }

    pub(crate) fn alloc_mw(&self, pd: PdId, kind: MwKind) -> Result<Created<MwId>, HcaError> {
        let caps = self.driver.capabilities();
        let (kind, offered) = match kind {
            MwKind::Type1 => (WindowKind::Type1, caps.has_windows),
            MwKind::Type2 => (WindowKind::Type2, caps.has_windows_2b),
        };
        if !offered {
            return Err(HcaError::Unsupported);
        }
        let pd = known(&self.objects().pds, pd.0)?;
        let (driver, held) = self.made(self.driver.window(&pd.driver, kind), pd.users.one())?;
        let (id, number) = (self.life.id(driver.index()), driver.rkey());
        self.objects().mws.insert(Mw { id, driver, pd: held, users: Users::default() });
        Ok(Created { id: MwId(id), number })
    }

    pub(crate) fn dealloc_mw(&self, mw: MwId) -> Result<(), HcaError> {
        let mw = take_unused(&self.objects().mws, mw.0)?;
        self.ended(mw.driver.destroy(), mw.pd)
    }
}

fn keys(mr: &Mr) -> MrKeys {
    MrKeys { lkey: mr.driver.lkey(), rkey: mr.driver.rkey() }
}
