//! What exists between INIT_HCA and CLOSE_HCA: the tables of objects, where their contexts lie in ICM, and
//! the routes of asynchronous events.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_wire::cmd::Status;
use mlx4_wire::cmd::hca::{HcaParams, InitHca};
use mlx4_wire::ctx::mcg::LOG2_MCG_ENTRY_MAX;
use mlx4_wire::eqe::{EVENT_TYPES, Eqe};

use super::burst::{Burst, IcmTables};
use super::caps;
use super::cq::Cq;
use super::eq::Eq;
use super::qp::Qp;
use super::ring::{EntryFormat, RingBudget};
use super::srq::Srq;
use super::table::Table;

/// One of the HCA's context tables in ICM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContextTable {
    name: &'static str,
    base: u64,
    log2_entries: u8,
    entry_bytes: u64,
}

impl ContextTable {
    /// The ICM address of an index's entry.
    ///
    /// # Errors
    /// BAD_INDEX beyond the table, ICM_ERROR where no ICM is mapped.
    fn entry(&self, burst: &Burst, index: u32) -> Result<u64, Status> {
        if u64::from(index) >= 1 << self.log2_entries {
            log::debug!("index {index:#x} is beyond the {} table of 2^{}", self.name, self.log2_entries);
            return Err(Status::BAD_INDEX);
        }
        let addr = self.base.wrapping_add(u64::from(index) * self.entry_bytes);
        if !burst.icm_mapped(addr, self.entry_bytes) {
            log::debug!("{} entry {index:#x}: ICM at {addr:#x} isn't mapped", self.name);
            return Err(Status::ICM_ERROR);
        }
        Ok(addr)
    }
}

/// The kinds of objects that have a context in ICM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Qp,
    Srq,
    Cq,
    Eq,
}

/// The running HCA.
#[derive(Debug)]
pub(crate) struct Running {
    /// INIT_HCA as it was given, for QUERY_HCA.
    pub(crate) init: InitHca,
    pub(crate) icm: IcmTables,
    pub(crate) eqs: Table<Eq>,
    pub(crate) cqs: Table<Cq>,
    pub(crate) srqs: Table<Srq>,
    pub(crate) qps: Table<Qp>,
    pub(crate) rings: RingBudget,
    /// Indexes of the MPT entries in hardware ownership; the entries themselves are in ICM.
    pub(crate) mpts: IndexSet,
    /// Held by whoever changes MPT entries; no other lock is taken under it.
    pub(crate) mpt_changes: Mutex<()>,
    routes: [AtomicU32; EVENT_TYPES as usize],
    special_base: AtomicU32,
    contexts: [Vec<ContextTable>; 4],
}

/// A set of indexes that only commands change.
#[derive(Debug, Default)]
pub(crate) struct IndexSet(Mutex<BTreeSet<u32>>);

impl IndexSet {
    pub(crate) fn contains(&self, index: u32) -> bool {
        self.lock().contains(&index)
    }

    pub(crate) fn insert(&self, index: u32) {
        self.lock().insert(index);
    }

    /// Takes an index out; says whether it was in.
    pub(crate) fn remove(&self, index: u32) -> bool {
        self.lock().remove(&index)
    }

    /// Every index, in order.
    pub(crate) fn to_vec(&self) -> Vec<u32> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No EQ is routed.
const NO_EQ: u32 = u32::MAX;

impl Running {
    /// Sets the tables up as INIT_HCA asks.
    ///
    /// # Errors
    /// BAD_PARAM for a table larger than the device's limits or a page size other than 4 KiB.
    pub(crate) fn new(init: &InitHca) -> Result<Self, Status> {
        let p = &init.params;
        let logs = Logs::of(p)?;
        Ok(Self {
            icm: IcmTables {
                mtt_base: p.mtt_base.get(),
                dmpt_base: p.dmpt_base.get(),
                log2_mpts: p.dmpt.log2_entries(),
                mc_base: p.mc_base.get(),
                log2_mc_entry_bytes: p.mc_entry_sz.log2(),
                log2_mc_hash: p.mc_hash_sz.log2(),
                log2_mc_entries: p.mc_table.log2_table_sz(),
            },
            eqs: Table::new(logs.eqs),
            cqs: Table::new(logs.cqs),
            srqs: Table::new(logs.srqs),
            qps: Table::new(logs.qps),
            rings: RingBudget::default(),
            mpts: IndexSet::default(),
            mpt_changes: Mutex::default(),
            routes: [const { AtomicU32::new(NO_EQ) }; EVENT_TYPES as usize],
            special_base: AtomicU32::new(0),
            contexts: context_tables(p, &logs),
            init: *init,
        })
    }

    /// How completions lie in CQs.
    pub(crate) fn cqe_format(&self) -> EntryFormat {
        EntryFormat::new(self.init.params.eqe_cqe.cqe_64b())
    }

    /// How events lie in EQs.
    pub(crate) fn eqe_format(&self) -> EntryFormat {
        EntryFormat::new(self.init.params.eqe_cqe.eqe_64b())
    }

    /// The ICM address of an object's context, where every piece of ICM that the hardware needs for the
    /// object is mapped.
    ///
    /// # Errors
    /// BAD_INDEX beyond the table, ICM_ERROR where a piece isn't mapped.
    pub(crate) fn context_addr(&self, burst: &Burst, kind: Kind, index: u32) -> Result<u64, Status> {
        let mut first = None;
        for table in &self.contexts[kind as usize] {
            let addr = table.entry(burst, index)?;
            first.get_or_insert(addr);
        }
        first.ok_or(Status::INTERNAL_ERR)
    }

    /// Writes an object's context to its place in ICM.
    ///
    /// # Errors
    /// As [`Running::context_addr`]; ICM_ERROR also where the page can't be written.
    pub(crate) fn store_context(
        &self,
        burst: &Burst,
        kind: Kind,
        index: u32,
        context: &[u8],
    ) -> Result<(), Status> {
        let addr = self.context_addr(burst, kind, index)?;
        burst.icm_write(addr, context).map_err(|fault| {
            log::debug!("{kind:?} context {index:#x} can't be written: {fault}");
            Status::ICM_ERROR
        })
    }

    /// Routes the event types of a mask to an EQ, or nowhere (MAP_EQ).
    pub(crate) fn route_events(&self, mask: u64, eqn: Option<u32>) {
        for (bit, route) in self.routes.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 != 0) {
            log::trace!("event type {bit:#x} goes to {eqn:x?}");
            route.store(eqn.unwrap_or(NO_EQ), Ordering::Release);
        }
    }

    /// Raises an asynchronous event on the EQ that its type is routed to; without one it is lost, as on the
    /// card.
    pub(crate) fn raise(&self, burst: &Burst, event: Eqe) {
        let Some(route) = self.routes.get(usize::from(event.event_type().0)) else { return };
        let eqn = route.load(Ordering::Acquire);
        match (eqn != NO_EQ).then(|| self.eqs.get(eqn)).flatten() {
            Some(eq) => {
                eq.push(burst, event);
            }
            None => log::debug!("{:?} event has no EQ", event.event_type()),
        }
    }

    /// Whether INIT_HCA has enabled memory windows.
    pub(crate) fn windows_enabled(&self) -> bool {
        self.init.params.dmpt.mw_enable()
    }

    /// Sets the first of the special queue pairs (CONF_SPECIAL_QP); 0 takes them back.
    pub(crate) fn set_special_base(&self, base: u32) {
        self.special_base.store(base, Ordering::Release);
    }

    /// First number of the special queue pairs: QP0 of each port, then QP1 of each port; 0 if there are
    /// none.
    pub(crate) fn special_base(&self) -> u32 {
        self.special_base.load(Ordering::Acquire)
    }

    /// The queue pair that a number in a packet, arriving at `port` (from 1), means: 0 and 1 are the
    /// port's special ones.
    pub(crate) fn packet_qp(&self, port: u8, number: u32) -> Option<Arc<Qp>> {
        let local = match (number, self.special_base()) {
            (0 | 1, 0) => return None,
            (0 | 1, base) => base + 2 * number + u32::from(port.saturating_sub(1)),
            _ => number,
        };
        self.qps.get(local).filter(|qp| qp.qpn == local)
    }
}

struct Logs {
    qps: u8,
    srqs: u8,
    cqs: u8,
    eqs: u8,
}

impl Logs {
    fn of(p: &HcaParams) -> Result<Self, Status> {
        let logs = Self {
            qps: p.qpc.log2_entries(),
            srqs: p.srqc.log2_entries(),
            cqs: p.cqc.log2_entries(),
            eqs: p.eqc.log2_entries(),
        };
        let limits = [
            (logs.qps, caps::LOG2_MAX_QPS, "QPs"),
            (logs.srqs, caps::LOG2_MAX_SRQS, "SRQs"),
            (logs.cqs, caps::LOG2_MAX_CQS, "CQs"),
            (logs.eqs, caps::LOG2_MAX_EQS, "EQs"),
            (p.dmpt.log2_entries(), caps::LOG2_MAX_MPTS, "MPTs"),
            (p.mc_entry_sz.log2(), LOG2_MCG_ENTRY_MAX, "bytes of a multicast entry"),
            (p.mc_table.log2_table_sz(), caps::LOG2_MAX_MCGS, "multicast entries"),
            (p.mc_hash_sz.log2(), p.mc_table.log2_table_sz(), "multicast hash heads"),
            (p.uar.log2_max_uars(), caps::LOG2_UARS, "UARs"),
            (p.uar.log2_uar_page_sz(), 0, "pages of 4 KiB in a UAR"),
        ];
        match limits.iter().find(|(asked, limit, _)| asked > limit) {
            Some((asked, limit, what)) => {
                log::debug!("INIT_HCA asks for 2^{asked} {what}; the limit is 2^{limit}");
                Err(Status::BAD_PARAM)
            }
            None => Ok(logs),
        }
    }
}

fn context_tables(p: &HcaParams, logs: &Logs) -> [Vec<ContextTable>; 4] {
    let table = |name, base, log2_entries, entry_bytes: u16| ContextTable {
        name,
        base,
        log2_entries,
        entry_bytes: u64::from(entry_bytes),
    };
    let cmpt = |name, log2_entries, kind: u64| {
        table(name, p.cmpt_base.get().wrapping_add(kind << 30), log2_entries, caps::CMPT_BYTES)
    };
    let responder = caps::RDMARC_BYTES << p.rdmarc.log2_per_qp().min(7);
    [
        vec![
            table("QPC", p.qpc.base(), logs.qps, caps::QPC_BYTES),
            table("AUXC", p.auxc_base.get(), logs.qps, caps::AUXC_BYTES),
            table("ALTC", p.altc_base.get(), logs.qps, caps::ALTC_BYTES),
            table("RDMARC", p.rdmarc.base(), logs.qps, responder),
            cmpt("cMPT of QPs", logs.qps, 0),
        ],
        vec![table("SRQC", p.srqc.base(), logs.srqs, caps::SRQC_BYTES), cmpt("cMPT of SRQs", logs.srqs, 1)],
        vec![table("CQC", p.cqc.base(), logs.cqs, caps::CQC_BYTES), cmpt("cMPT of CQs", logs.cqs, 2)],
        vec![table("EQC", p.eqc.base(), logs.eqs, caps::EQC_BYTES), cmpt("cMPT of EQs", logs.eqs, 3)],
    ]
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn started(set: impl FnOnce(&mut HcaParams)) -> Result<Running, Status> {
        let mut init = InitHca::new_zeroed();
        set(&mut init.params);
        Running::new(&init)
    }

    /// INIT_HCA clears the multicast table on the thread that posts it, which is the VMM's only one.
    #[test]
    fn multicast_table_is_not_larger_than_reported() {
        let log2 = |entries, bytes, heads| {
            started(|p| {
                p.mc_table.set_log2_table_sz(entries);
                p.mc_entry_sz.set_log2(bytes);
                p.mc_hash_sz.set_log2(heads);
            })
        };
        assert!(log2(13, 12, 13).is_ok());
        for (entries, bytes, heads) in [(14, 9, 12), (13, 13, 12), (12, 9, 13)] {
            assert_eq!(log2(entries, bytes, heads).err(), Some(Status::BAD_PARAM));
        }
    }
}
