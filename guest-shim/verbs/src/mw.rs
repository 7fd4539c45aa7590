//! Memory windows: keys for parts of a region that work requests give out and take back.
//!
//! A window keeps the region that it is bound to, until it is bound elsewhere or a message has invalidated its key:
//! regions are given back after the windows on them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_queue::request::{Bind, Operation};
use mlx4_wire::wqe::BindAccess;
use virtio_rdma::request::memory::{AllocMw, DeallocMw, MwType as MwTypeCode};
use virtio_rdma::{Reserved, U32};

use crate::access::Access;
use crate::error::{Error, Result};
use crate::mr::{Mr, Region};
use crate::pd::Domain;
use crate::wr::SendFlags;

/// Type of a memory window (`ibv_mw_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MwType {
    /// Bound with [`Qp::bind_mw`](crate::Qp::bind_mw); any queue pair of its PD takes its key.
    Type1,
    /// Bound with [`Qp::post_bind_mw`](crate::Qp::post_bind_mw); only that queue pair takes its key, and the other
    /// side can invalidate it.
    Type2,
}

impl MwType {
    const fn code(self) -> MwTypeCode {
        match self {
            Self::Type1 => MwTypeCode::TYPE_1,
            Self::Type2 => MwTypeCode::TYPE_2,
        }
    }
}

/// The part of a key that a bind changes.
const KEY_BYTE: u32 = 0xff;

/// The key that follows a key (`ibv_inc_rkey`): it differs in the low 8 bits.
pub const fn inc_rkey(rkey: u32) -> u32 {
    rkey & !KEY_BYTE | rkey.wrapping_add(1) & KEY_BYTE
}

#[derive(Debug, Default)]
struct Held {
    /// The regions that the window may be bound to, and its key then; most of the time one or none.
    regions: Vec<(u32, Arc<Region>)>,
    /// The key that a message has invalidated, maybe before it was known here that the bind had ended.
    invalidated: Option<u32>,
}

/// What a window keeps.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<Held>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What windows have let go of. It may be the last of a region, which is then given back by a request to the device:
/// this is dropped while no lock is held that others wait for.
#[derive(Debug, Default)]
pub(crate) struct Released {
    regions: Vec<Arc<Region>>,
    holds: Vec<Arc<Holds>>,
}

/// A bind that was posted.
#[derive(Debug)]
pub(crate) struct Bound {
    holds: Arc<Holds>,
    rkey: u32,
    /// `None`: it unbinds.
    region: Option<Arc<Region>>,
}

impl Bound {
    /// The request is done. One that failed leaves the window as it was.
    pub(crate) fn ended(self, well: bool, released: &mut Released) {
        let Self { holds, rkey, region } = self;
        if well {
            let mut held = holds.lock();
            released.regions.extend(held.regions.drain(..).map(|(_, region)| region));
            if held.invalidated == Some(rkey) {
                released.regions.extend(region);
            } else {
                held.regions.extend(region.map(|region| (rkey, region)));
            }
        } else {
            released.regions.extend(region);
        }
        // The window itself may be gone.
        released.holds.push(holds);
    }

    /// What became of the request nobody will tell: the window may be bound to either region.
    pub(crate) fn unknown(self) {
        let region = self.region.map(|region| (self.rkey, region));
        self.holds.lock().regions.extend(region);
    }
}

/// The windows of a device whose keys messages can invalidate, by the part of the key that no bind changes.
#[derive(Debug, Default)]
pub(crate) struct Windows(Mutex<HashMap<u32, Arc<Holds>>>);

impl Windows {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Holds>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message has invalidated a key: what was bound under it isn't bound any more.
    pub(crate) fn invalidated(&self, rkey: u32, released: &mut Released) {
        let Some(holds) = self.lock().get(&(rkey & !KEY_BYTE)).map(Arc::clone) else { return };
        let mut held = holds.lock();
        held.invalidated = Some(rkey);
        let gone = held.regions.extract_if(.., |(key, _)| *key == rkey);
        released.regions.extend(gone.map(|(_, region)| region));
        drop(held);
        released.holds.push(holds);
    }
}

/// What a window is bound to (`ibv_mw_bind`).
#[derive(Clone, Copy, Debug)]
pub struct MwBind<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// The region, which needs [`Access::MW_BIND`].
    pub mr: &'a Mr,
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Bytes; 0 unbinds the window.
    pub length: u64,
    /// What the other side may do.
    pub access: Access,
    /// Switches of the request.
    pub flags: SendFlags,
}

/// A memory window (`ibv_mw`).
#[derive(Debug)]
pub struct Mw {
    domain: Arc<Domain>,
    handle: u32,
    mw_type: MwType,
    rkey: AtomicU32,
    /// Held from where a bind reads the key to where it sets the next one.
    binding: Mutex<()>,
    holds: Arc<Holds>,
    ended: bool,
}

impl Mw {
    pub(crate) fn new(domain: &Arc<Domain>, mw_type: MwType) -> Result<Self> {
        let pd = U32::new(domain.handle());
        let body = AllocMw { pd, mw_type: mw_type.code(), reserved: Reserved::ZERO };
        let made = domain.open().call(&body)?;
        let holds = Arc::default();
        if mw_type == MwType::Type2 {
            domain.open().windows().lock().insert(made.rkey.get() & !KEY_BYTE, Arc::clone(&holds));
        }
        Ok(Self {
            domain: Arc::clone(domain),
            handle: made.mw.get(),
            mw_type,
            rkey: AtomicU32::new(made.rkey.get()),
            binding: Mutex::default(),
            holds,
            ended: false,
        })
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        // Before the device may give the key out again.
        if self.mw_type == MwType::Type2 {
            drop(self.domain.open().windows().lock().remove(&(self.rkey() & !KEY_BYTE)));
        }
        self.domain.open().end(&DeallocMw { mw: U32::new(self.handle), reserved: Reserved::ZERO }, &[])
    }

    /// Its type.
    pub fn mw_type(&self) -> MwType {
        self.mw_type
    }

    /// Key for remote operations, as the last bind that was posted makes it.
    pub fn rkey(&self) -> u32 {
        self.rkey.load(Ordering::Relaxed)
    }

    /// The right to bind it, one bind after the other.
    pub(crate) fn binding(&self) -> MutexGuard<'_, ()> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_rkey(&self, rkey: u32) {
        self.rkey.store(rkey, Ordering::Relaxed);
    }

    /// Whether it can be bound like that by a queue pair of a domain.
    pub(crate) fn check(
        &self,
        mw_type: MwType,
        rkey: u32,
        domain: &Arc<Domain>,
        bind: &MwBind<'_>,
    ) -> Result<()> {
        if self.mw_type != mw_type {
            return Err(Error::Invalid(format!("a window of {:?} is bound in the other way", self.mw_type)));
        }
        if rkey & !KEY_BYTE != self.rkey() & !KEY_BYTE {
            return Err(Error::Invalid(format!(
                "{rkey:#x} differs from the window's key in other bits than the low 8"
            )));
        }
        let domains = [domain, bind.mr.region().domain()];
        if domains.iter().any(|domain| !Arc::ptr_eq(domain, &self.domain)) {
            return Err(Error::NotPermitted(
                "window, region and queue pair are not of one protection domain",
            ));
        }
        Ok(())
    }

    /// The operation that binds it, and what remembers it until it is done.
    pub(crate) fn bind(&self, rkey: u32, bind: &MwBind<'_>) -> (Operation, Bound) {
        let access = BindAccess::new()
            .with_remote_atomic(bind.access.contains(Access::REMOTE_ATOMIC))
            .with_remote_write(bind.access.contains(Access::REMOTE_WRITE))
            .with_remote_read(bind.access.contains(Access::REMOTE_READ));
        let operation = Operation::Bind(Bind {
            type_2: self.mw_type == MwType::Type2,
            access,
            zero_based: false,
            rkey,
            lkey: bind.mr.lkey(),
            address: bind.mr.addr().wrapping_add(bind.offset),
            length: bind.length,
        });
        let region = (bind.length != 0).then(|| Arc::clone(bind.mr.region()));
        // A key that comes again is a new one.
        self.holds.lock().invalidated.take_if(|invalidated| *invalidated == rkey);
        (operation, Bound { holds: Arc::clone(&self.holds), rkey, region })
    }

    /// Ends it (`ibv_dealloc_mw`), as dropping it does. Its key is good for nothing then, whatever it is bound to.
    ///
    /// # Errors
    /// The HCA doesn't give it back.
    pub fn dealloc(mut self) -> Result<()> {
        self.end()
    }
}

impl Drop for Mw {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.end()
        {
            log::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_key_differs_in_the_low_byte_only() {
        assert_eq!(inc_rkey(0x1234_5600), 0x1234_5601);
        assert_eq!(inc_rkey(0x1234_56ff), 0x1234_5600);
    }
}
