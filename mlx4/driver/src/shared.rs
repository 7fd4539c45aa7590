//! What all objects of one device share.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mlx4_pci::PciDevice;

use crate::caps::{Capabilities, Firmware};
use crate::cmd::Commands;
use crate::icm::{FirmwareMemory, Icm};
use crate::numbers::Numbers;
use crate::object::Uar;
use crate::profile::Layout;
use crate::queues::{SharedRing, Work};
use crate::region::RegionInfo;
use crate::registry::Registry;

/// Queue pair numbers that CONF_SPECIAL_QP takes: QP0 and QP1 of both ports, and four that nobody uses.
pub(crate) const SPECIAL_QPS: u32 = 8;

/// Numbers of objects.
#[derive(Debug)]
pub(crate) struct AllNumbers {
    pub(crate) qps: Arc<Numbers>,
    pub(crate) cqs: Arc<Numbers>,
    pub(crate) srqs: Arc<Numbers>,
    pub(crate) mpts: Arc<Numbers>,
    pub(crate) pds: Arc<Numbers>,
    pub(crate) uars: Arc<Numbers>,
    /// XRC domains, if the device has any.
    pub(crate) xrcds: Option<Arc<Numbers>>,
    /// Multicast groups that the hash doesn't reach.
    pub(crate) groups: Arc<Numbers>,
}

impl AllNumbers {
    pub(crate) fn new(caps: &Capabilities, layout: &Layout) -> Self {
        let p = &layout.profile;
        let numbers = |what, first, end| Arc::new(Numbers::new(what, first, end));
        Self {
            qps: numbers("queue pair", special_base(caps) + SPECIAL_QPS, 1 << p.log2_qps),
            cqs: numbers("completion queue", caps.cqs.reserved, 1 << p.log2_cqs),
            srqs: numbers("shared receive queue", caps.srqs.reserved, 1 << p.log2_srqs),
            mpts: numbers("memory region", caps.mpts.reserved, 1 << p.log2_mpts),
            // 17 bits of a region's entry are the domain.
            pds: numbers("protection domain", caps.pds.reserved, 1 << caps.pds.log2.min(17)),
            uars: numbers("UAR page", caps.uars.reserved, 1 << caps.uars.log2),
            xrcds: caps.xrcds.map(|xrcds| numbers("XRC domain", xrcds.reserved + 1, 1 << xrcds.log2)),
            groups: numbers("multicast group", 1 << layout.log2_mc_hash(), 1 << p.log2_mcgs),
        }
    }
}

/// First of the special queue pairs.
pub(crate) fn special_base(caps: &Capabilities) -> u32 {
    caps.qps.reserved.next_multiple_of(SPECIAL_QPS)
}

/// Whom completion events of a completion queue are for.
pub(crate) struct CompletionSink {
    pub(crate) notify: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for CompletionSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionSink").finish_non_exhaustive()
    }
}

/// What all objects of one device share.
pub(crate) struct Shared {
    pub(crate) device: Arc<dyn PciDevice>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) firmware: Firmware,
    pub(crate) caps: Capabilities,
    pub(crate) layout: Layout,
    pub(crate) area: FirmwareMemory,
    pub(crate) icm: Icm,
    pub(crate) numbers: AllNumbers,
    pub(crate) completions: Arc<Registry<CompletionSink>>,
    /// The variable byte of the next key: a key of a destroyed region isn't that of the next one in its place.
    pub(crate) key_variant: AtomicU8,
    /// Regions by the index in their key.
    pub(crate) regions: Registry<RegionInfo>,
    /// The queues of queue pairs that this process posts to.
    pub(crate) queues: Arc<Registry<Work>>,
    /// The rings of shared receive queues for extended connections that this process posts to.
    pub(crate) shared_rings: Arc<Registry<SharedRing>>,
    /// Numbers of the event queues for completions; and of those for completion queues that this process polls.
    pub(crate) completion_eqns: Vec<u32>,
    pub(crate) own_completion_eqns: Vec<u32>,
    /// Completion queues that each of those event queues has room for.
    pub(crate) completion_eq_room: u32,
    /// Held while a multicast group changes.
    pub(crate) groups: Mutex<()>,
    pub(crate) objects: AtomicUsize,
    /// The UAR page of the targets of extended connections, once there is one.
    pub(crate) xrc_uar: Mutex<Option<Uar>>,
}

impl Shared {
    /// Counts an object that the device works with.
    pub(crate) fn made(&self) {
        self.objects.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an object that the device has given back.
    pub(crate) fn unmade(&self) {
        self.objects.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn objects(&self) -> usize {
        self.objects.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("device", &self.device).finish_non_exhaustive()
    }
}
