//! Memory windows. What they are bound to, work requests say.

use std::sync::Arc;

use mlx4_wire::U32;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::ctx::mpt::{MptEntry, MptFlags, MptPd, MptQp, MptStatus, mpt_index_to_key};
use zerocopy::FromZeros;

use crate::claim::{Claim, give_back};
use crate::error::{Error, Result};
use crate::icm::{Kind, MttRange, Pages};
use crate::object::{Live, Pd};
use crate::region::{new_key, take_back};
use crate::shared::Shared;

/// Kind of a memory window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// Bound to a domain. Each bind gives it another key.
    Type1,
    /// Bound to a queue pair of a domain too (2B), until it is invalidated.
    Type2,
}

/// A memory window of the device.
#[derive(Debug)]
pub struct Window {
    live: Live,
    _pd: Pd,
    rkey: u32,
    mtt: MttRange,
}

impl Window {
    /// A window that isn't bound.
    pub(crate) fn new(shared: &Arc<Shared>, pd: &Pd, kind: WindowKind) -> Result<Self> {
        let offered = match kind {
            WindowKind::Type1 => shared.caps.has_windows,
            WindowKind::Type2 => shared.caps.has_windows_2b,
        };
        if !offered {
            return Err(Error::argument("kind of a window", 1 + u64::from(kind == WindowKind::Type2)));
        }
        let number = shared.numbers.mpts.take()?;
        let claim = Claim::new(shared, (Kind::Mpt, number), &Pages::List(&[]), 0)?;
        let entry = entry(pd, kind, new_key(shared, claim.number()));
        let rkey = mpt_index_to_key(entry.key.get());
        let (live, mtt) = claim.hand_over(shared, "memory window", Opcode::SW2HW_MPT, Ok(entry))?;
        Ok(Self { live, _pd: pd.clone(), rkey, mtt })
    }

    /// Its key before it is bound for the first time. A bind may change the low 8 bits.
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// Its index among regions and windows: the key without the low 8 bits.
    pub fn index(&self) -> u32 {
        self.live.number()
    }

    /// Takes the window back, bound or not: when this returns, nobody reaches memory through it.
    ///
    /// # Errors
    /// The device doesn't give it back.
    pub fn destroy(self) -> Result<()> {
        let shared = Arc::clone(&self.live.shared);
        let index = self.live.number();
        take_back(&shared, index)?;
        let given_back = give_back(&shared, Kind::Mpt, index, self.mtt);
        self.live.end();
        given_back
    }
}

/// As the stock driver has them: one of type 1 is there, but has no bytes; one of type 2 waits for its bind.
fn entry(pd: &Pd, kind: WindowKind, key: u32) -> MptEntry {
    let mut entry = MptEntry::new_zeroed();
    entry.key = U32::new(key);
    entry.pd = MptPd::new().with_pd(pd.number());
    if kind == WindowKind::Type2 {
        entry.flags = MptFlags::new().with_status(MptStatus::FREE);
        entry.qp = MptQp::new().with_bound_to_qp(true);
        entry.pd = entry.pd.with_invalidate(true).with_remote_invalidate(true);
    }
    entry
}
