//! What exists between INIT_HCA and CLOSE_HCA: the tables of objects, where their contexts lie in ICM, and
//! the routes of asynchronous events.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use mlx4_wire::cmd::Status;
use mlx4_wire::cmd::hca::InitHca;
use mlx4_wire::eqe::{EVENT_TYPES, Eqe};

use super::burst::{Burst, IcmTables};
use super::caps;
use super::cq::Cq;
use super::eq::Eq;
use super::qp::Qp;
use super::runset::RunSet;
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
    pub(crate) uars: u32,
    routes: [AtomicU32; EVENT_TYPES as usize],
    special_base: AtomicU32,
    contexts: [Vec<ContextTable>; 4],
}

/// No EQ is routed.
const NO_EQ: u32 = u32::MAX;

impl Running {
    /// Sets the tables up as INIT_HCA asks.
    ///
    /// # Errors
    /// BAD_PARAM for a table larger than the device's limits or a page size other than 4 KiB.
    pub(crate) fn new(init: &InitHca) -> Result<Self, Status> {
        let logs = Logs::of(init)?;
        Ok(Self {
            icm: IcmTables {
                mtt_base: init.mtt_base(),
                dmpt_base: init.dmpt_base(),
                log2_mpts: init.log2_mpts(),
                mc_base: init.mc_base(),
                log2_mc_entry_bytes: init.log2_mc_entry_bytes(),
                log2_mc_hash: init.log2_mc_hash(),
                log2_mc_entries: init.log2_mc_entries(),
            },
            eqs: Table::new(logs.eqs),
            cqs: Table::new(logs.cqs),
            srqs: Table::new(logs.srqs),
            qps: Table::new(logs.qps),
            uars: 1 << init.log2_uars(),
            routes: [const { AtomicU32::new(NO_EQ) }; EVENT_TYPES as usize],
            special_base: AtomicU32::new(0),
            contexts: context_tables(init, &logs),
            init: *init,
        })
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
        let Some(route) = self.routes.get(usize::from(event.event_type.0)) else { return };
        let eqn = route.load(Ordering::Acquire);
        match (eqn != NO_EQ).then(|| self.eqs.get(eqn)).flatten() {
            Some(eq) => eq.push(burst, event),
            None => log::debug!("{:?} event has no EQ", event.event_type),
        }
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
        self.qps.get(local).filter(|qp| qp.qpn & super::eq::INDEX_MASK == local)
    }
}

struct Logs {
    qps: u8,
    srqs: u8,
    cqs: u8,
    eqs: u8,
}

impl Logs {
    fn of(init: &InitHca) -> Result<Self, Status> {
        let logs = Self {
            qps: init.log2_qps(),
            srqs: init.log2_srqs(),
            cqs: init.log2_cqs(),
            eqs: init.log2_eqs(),
        };
        let limits = [
            (logs.qps, caps::LOG2_MAX_QPS, "QPs"),
            (logs.srqs, caps::LOG2_MAX_SRQS, "SRQs"),
            (logs.cqs, caps::LOG2_MAX_CQS, "CQs"),
            (logs.eqs, caps::LOG2_MAX_EQS, "EQs"),
            (init.log2_mpts(), caps::LOG2_MAX_MPTS, "MPTs"),
            (init.log2_mc_entry_bytes(), 12, "bytes of a multicast entry"),
            (init.log2_mc_entries(), 24, "multicast entries"),
            (init.log2_mc_hash(), 16, "multicast hash heads"),
            (init.log2_uars(), caps::LOG2_UARS, "UARs"),
            (init.log2_uar_page_less_12(), 0, "pages of 4 KiB in a UAR"),
        ];
        match limits.iter().find(|(asked, limit, _)| asked > limit) {
            Some((asked, limit, what)) => {
                log::warn!("INIT_HCA asks for 2^{asked} {what}; the limit is 2^{limit}");
                Err(Status::BAD_PARAM)
            }
            None => Ok(logs),
        }
    }
}

fn context_tables(init: &InitHca, logs: &Logs) -> [Vec<ContextTable>; 4] {
    assert!(RunSet::CAPACITY >= 1 << caps::LOG2_MAX_QPS);
    let table = |name, base, log2_entries, entry_bytes: u16| ContextTable {
        name,
        base,
        log2_entries,
        entry_bytes: u64::from(entry_bytes),
    };
    let cmpt = |name, log2_entries, kind: u64| {
        table(name, init.cmpt_base().wrapping_add(kind << 30), log2_entries, caps::CMPT_BYTES)
    };
    let responder = caps::RDMARC_BYTES << init.log2_rdmarc_per_qp().min(7);
    [
        vec![
            table("QPC", init.qpc_base(), logs.qps, caps::QPC_BYTES),
            table("AUXC", init.auxc_base(), logs.qps, caps::AUXC_BYTES),
            table("ALTC", init.altc_base(), logs.qps, caps::ALTC_BYTES),
            table("RDMARC", init.rdmarc_base(), logs.qps, responder),
            cmpt("cMPT of QPs", logs.qps, 0),
        ],
        vec![
            table("SRQC", init.srqc_base(), logs.srqs, caps::SRQC_BYTES),
            cmpt("cMPT of SRQs", logs.srqs, 1),
        ],
        vec![table("CQC", init.cqc_base(), logs.cqs, caps::CQC_BYTES), cmpt("cMPT of CQs", logs.cqs, 2)],
        vec![table("EQC", init.eqc_base(), logs.eqs, caps::EQC_BYTES), cmpt("cMPT of EQs", logs.eqs, 3)],
    ]
}
