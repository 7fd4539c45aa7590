//! One burst of work: the snapshots of everything through which the HCA reaches host memory.
//!
//! A burst sees the DMA mappings, the ICM mappings and the table bases of one moment. Whoever takes one of
//! them back publishes the change and then waits until no burst holds the old view, so nothing that is
//! given back is touched afterwards. A burst is short, and whoever holds one waits for nobody.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;

use super::fault::Fault;
use super::icm::IcmMap;
use super::tpt::KeyCache;
use crate::mem::{DmaFault, DmaView};

/// Where INIT_HCA put the tables in ICM that the HCA reads while it works; byte addresses in ICM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IcmTables {
    pub(crate) mtt_base: u64,
    pub(crate) dmpt_base: u64,
    pub(crate) log2_mpts: u8,
    pub(crate) mc_base: u64,
    pub(crate) log2_mc_entry_bytes: u8,
    pub(crate) log2_mc_hash: u8,
    pub(crate) log2_mc_entries: u8,
}

/// An ICM access that failed: nothing mapped there, or the page behind it isn't reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IcmFault {
    #[error("ICM address {0:#x} isn't mapped")]
    Unmapped(u64),
    #[error(transparent)]
    Dma(#[from] DmaFault),
}

/// The snapshots of one burst.
pub(crate) struct Burst {
    pub(crate) dma: DmaView,
    pub(crate) tables: IcmTables,
    /// Memory keys that were looked up.
    pub(crate) keys: KeyCache,
    icm: Guard<Arc<IcmMap>>,
    fault: Option<Arc<dyn Fault>>,
}

impl Burst {
    pub(super) fn new(dma: DmaView, icm: Guard<Arc<IcmMap>>, tables: IcmTables) -> Self {
        Self { dma, tables, keys: KeyCache::default(), icm, fault: None }
    }

    /// The burst, with a fault that a test has injected.
    pub(super) fn with_fault(mut self, fault: Option<&Arc<dyn Fault>>) -> Self {
        self.fault = fault.map(Arc::clone);
        self
    }

    pub(super) fn fault(&self) -> Option<&dyn Fault> {
        self.fault.as_deref()
    }

    /// Reads ICM; the range may cross pages.
    pub(crate) fn icm_read(&self, addr: u64, to: &mut [u8]) -> Result<(), IcmFault> {
        let mut done = 0;
        while done < to.len() {
            let (bus, n) = self.icm_piece(addr, done, to.len())?;
            self.dma.read(bus, &mut to[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Count of changes that the HCA itself has made in ICM.
    pub(crate) fn icm_changes(&self) -> u64 {
        self.icm.changes()
    }

    /// Writes ICM; the range may cross pages.
    pub(crate) fn icm_write(&self, addr: u64, from: &[u8]) -> Result<(), IcmFault> {
        let result = self.icm_write_pieces(addr, from);
        self.icm.changed();
        result
    }

    fn icm_write_pieces(&self, addr: u64, from: &[u8]) -> Result<(), IcmFault> {
        let mut done = 0;
        while done < from.len() {
            let (bus, n) = self.icm_piece(addr, done, from.len())?;
            self.dma.write(bus, &from[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Loads an aligned word of ICM at once, in host order.
    pub(crate) fn icm_load_u32(&self, addr: u64, order: Ordering) -> Result<u32, IcmFault> {
        let (bus, _) = self.icm_piece(addr, 0, 4)?;
        Ok(self.dma.load_u32(bus, order)?)
    }

    /// Stores an aligned word of ICM at once, in host order.
    pub(crate) fn icm_store_u32(&self, addr: u64, value: u32, order: Ordering) -> Result<(), IcmFault> {
        let (bus, _) = self.icm_piece(addr, 0, 4)?;
        Ok(self.dma.store_u32(bus, value, order)?)
    }

    fn icm_piece(&self, addr: u64, done: usize, len: usize) -> Result<(u64, usize), IcmFault> {
        let at = addr.wrapping_add(done as u64);
        let (bus, run) = self.icm.translate(at).ok_or(IcmFault::Unmapped(at))?;
        Ok((bus, usize::try_from(run).unwrap_or(usize::MAX).min(len - done)))
    }

    /// Whether every page of a range is mapped in ICM.
    pub(crate) fn icm_mapped(&self, addr: u64, len: u64) -> bool {
        let mut at = addr;
        let end = addr.saturating_add(len);
        while at < end {
            match self.icm.translate(at) {
                Some((_, run)) => at = at.saturating_add(run),
                None => return false,
            }
        }
        true
    }
}

impl std::fmt::Debug for Burst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Burst").field("tables", &self.tables).finish_non_exhaustive()
    }
}
