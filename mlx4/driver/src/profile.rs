//! How many objects of each kind there shall be, and where their tables lie in ICM.
//!
//! Sizes are rounded to powers of two and at least a page; the tables are packed from address 0, the largest
//! first, so each is aligned to its size.

use mlx4_wire::cmd::fw::ICM_PAGE_BYTES;
use mlx4_wire::cmd::hca::{CacheLine, INIT_HCA_VERSION, IcmTable as TableWord, InitHca, RdmarcTable};
use mlx4_wire::cqe::CQE_BYTES;
use zerocopy::FromZeros;

use crate::caps::Capabilities;
use crate::error::{Error, Fields, Result};

/// log2 of the objects of each kind that the driver may make. What the device has less of is cut down.
///
/// Tables grow on demand: a large number costs addresses of ICM, not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Queue pairs.
    pub log2_qps: u8,
    /// Shared receive queues.
    pub log2_srqs: u8,
    /// Completion queues.
    pub log2_cqs: u8,
    /// Memory regions.
    pub log2_mpts: u8,
    /// Pages of memory regions and queues.
    pub log2_mtts: u8,
    /// Reads and atomics that the other end of a queue pair may have under way.
    pub log2_reads: u8,
    /// Multicast groups.
    pub log2_mcgs: u8,
    /// Bytes of a multicast group's entry; it has room for a member in each 4 bytes behind 32.
    pub log2_mcg_bytes: u8,
    /// CQEs of 64 bytes, if the device has them; of 32 otherwise.
    pub wide_cqes: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            log2_qps: 16,
            log2_srqs: 14,
            log2_cqs: 15,
            log2_mpts: 18,
            log2_mtts: 24,
            log2_reads: 4,
            log2_mcgs: 12,
            log2_mcg_bytes: 9,
            wide_cqes: true,
        }
    }
}

/// Numbers of queue pairs have a bit above these that tells of the target of an extended connection.
const LOG2_MOST_QPS: u8 = 23;
/// Objects of each kind that there must be beside those of the firmware.
const USABLE_OBJECTS: u64 = 17;

/// The kinds of tables in ICM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    Qpc,
    Rdmarc,
    Altc,
    Auxc,
    Srqc,
    Cqc,
    Eqc,
    Dmpt,
    Cmpt,
    Mtt,
    Mcg,
}

impl TableKind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Qpc,
        Self::Rdmarc,
        Self::Altc,
        Self::Auxc,
        Self::Srqc,
        Self::Cqc,
        Self::Eqc,
        Self::Dmpt,
        Self::Cmpt,
        Self::Mtt,
        Self::Mcg,
    ];
}

/// log2 of the control entries of one kind of object: QPs, SRQs, CQs and EQs have one range each.
pub(crate) const LOG2_CMPTS: u8 = 24;

/// A table's place in ICM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) base: u64,
    pub(crate) log2_entries: u8,
    pub(crate) log2_entry_bytes: u8,
}

impl Extent {
    /// Size in bytes, a power of two and at least a page.
    pub(crate) fn bytes(&self) -> u64 {
        (1u64 << (self.log2_entries + self.log2_entry_bytes)).max(ICM_PAGE_BYTES)
    }
}

/// The tables in ICM.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) profile: Profile,
    extents: [Extent; TableKind::ALL.len()],
    /// Size of ICM in bytes.
    pub(crate) bytes: u64,
    /// Size of a CQE in bytes.
    pub(crate) cqe_bytes: u32,
}

impl Layout {
    /// Lays the tables out for as many objects as are asked for, or as the device has.
    ///
    /// # Errors
    /// The tables exceed what the device takes, or there would be none left beside those of the firmware.
    pub(crate) fn new(asked: &Profile, caps: &Capabilities) -> Result<Self> {
        let profile = Profile {
            log2_qps: asked.log2_qps.min(caps.qps.log2).min(LOG2_MOST_QPS),
            log2_srqs: asked.log2_srqs.min(caps.srqs.log2),
            log2_cqs: asked.log2_cqs.min(caps.cqs.log2),
            log2_mpts: asked.log2_mpts.min(caps.mpts.log2),
            log2_mtts: asked.log2_mtts.min(caps.mtts.log2),
            log2_reads: asked.log2_reads.min(caps.log2_max_responder_reads).min(7),
            log2_mcgs: asked.log2_mcgs.min(caps.log2_mcgs),
            log2_mcg_bytes: asked.log2_mcg_bytes.clamp(7, 12),
            wide_cqes: asked.wide_cqes && caps.has_wide_cqes,
        };
        let reserved = [
            ("log2_max_qps", "log2_rsvd_qps", profile.log2_qps, caps.qps),
            ("log2_max_srqs", "log2_rsvd_srqs", profile.log2_srqs, caps.srqs),
            ("log2_max_cqs", "log2_rsvd_cqs", profile.log2_cqs, caps.cqs),
            ("log2_max_mpts", "log2_rsvd_mrws", profile.log2_mpts, caps.mpts),
            ("log2_max_mtts", "log2_rsvd_mtts", profile.log2_mtts, caps.mtts),
        ];
        for (max_field, reserved_field, log2, objects) in reserved {
            // Some behind those of the firmware, or there is nothing to work with.
            let needed = u64::from(objects.reserved) + USABLE_OBJECTS;
            let fields = Fields("QUERY_DEV_CAP");
            fields.at_least(max_field, objects.log2, needed.next_power_of_two().ilog2().into())?;
            fields.at_most(
                reserved_field,
                objects.reserved,
                (1u64 << log2).saturating_sub(USABLE_OBJECTS),
            )?;
        }
        let cqe_bytes = if profile.wide_cqes { 2 * CQE_BYTES } else { CQE_BYTES };
        let mut layout = Self { profile, extents: extents(&profile, caps), bytes: 0, cqe_bytes };
        let mut order = TableKind::ALL;
        order.sort_by_key(|kind| std::cmp::Reverse(layout.extents[*kind as usize].bytes()));
        for kind in order {
            let extent = &mut layout.extents[kind as usize];
            extent.base = layout.bytes;
            layout.bytes += extent.bytes();
        }
        Fields("QUERY_DEV_CAP").at_least("max_icm_sz", caps.max_icm, layout.bytes)?;
        Ok(layout)
    }

    pub(crate) fn extent(&self, kind: TableKind) -> Extent {
        self.extents[kind as usize]
    }

    /// log2 of the multicast groups that the hash reaches; the others are chained.
    pub(crate) fn log2_mc_hash(&self) -> u8 {
        self.profile.log2_mcgs.saturating_sub(1)
    }

    /// What INIT_HCA is told.
    pub(crate) fn init_hca(&self, caps: &Capabilities) -> Result<InitHca> {
        let mut init = InitHca::new_zeroed();
        init.version = INIT_HCA_VERSION;
        // Lines of 64 bytes.
        init.cache_line = CacheLine::new().with_log2_minus_4(2).with_valid(true);
        let word = |kind| {
            let extent = self.extent(kind);
            TableWord::new(extent.base, extent.log2_entries).ok_or(Error::argument("ICM base", extent.base))
        };
        let base = |kind| self.extent(kind).base;
        let p = &mut init.params;
        p.flags.set_ud_av_port_check(caps.ud_av_port_check);
        p.eqe_cqe.set_cqe_64b(self.profile.wide_cqes);
        p.dmpt.set_mw_enable(caps.has_windows || caps.has_windows_2b);
        p.qpc = word(TableKind::Qpc)?;
        p.srqc = word(TableKind::Srqc)?;
        p.cqc = word(TableKind::Cqc)?;
        p.eqc = word(TableKind::Eqc)?;
        let rdmarc = base(TableKind::Rdmarc);
        p.rdmarc =
            RdmarcTable::new(rdmarc, self.profile.log2_reads).ok_or(Error::argument("ICM base", rdmarc))?;
        p.altc_base.set(base(TableKind::Altc));
        p.auxc_base.set(base(TableKind::Auxc));
        p.mc_base.set(base(TableKind::Mcg));
        p.mc_entry_sz.set_log2(self.profile.log2_mcg_bytes);
        p.mc_hash_sz.set_log2(self.log2_mc_hash());
        p.mc_table.set_log2_table_sz(self.profile.log2_mcgs);
        p.dmpt_base.set(base(TableKind::Dmpt));
        p.dmpt.set_log2_entries(self.profile.log2_mpts);
        p.mtt_base.set(base(TableKind::Mtt));
        p.cmpt_base.set(base(TableKind::Cmpt));
        p.uar.set_log2_max_uars(caps.uars.log2.min(15));
        Ok(init)
    }
}

fn extents(profile: &Profile, caps: &Capabilities) -> [Extent; TableKind::ALL.len()] {
    // Sizes of entries are powers of two up to 4096.
    let log2 = |bytes: u16| u8::try_from(bytes.ilog2()).unwrap_or(0);
    let entries = &caps.entries;
    TableKind::ALL.map(|kind| {
        let (log2_entries, log2_entry_bytes) = match kind {
            TableKind::Qpc => (profile.log2_qps, log2(entries.qpc)),
            TableKind::Rdmarc => (profile.log2_qps, log2(entries.rdmarc) + profile.log2_reads),
            TableKind::Altc => (profile.log2_qps, log2(entries.altc)),
            TableKind::Auxc => (profile.log2_qps, log2(entries.auxc)),
            TableKind::Srqc => (profile.log2_srqs, log2(entries.srqc)),
            TableKind::Cqc => (profile.log2_cqs, log2(entries.cqc)),
            TableKind::Eqc => (caps.eqs.log2, log2(entries.eqc)),
            TableKind::Dmpt => (profile.log2_mpts, log2(entries.dmpt)),
            TableKind::Cmpt => (LOG2_CMPTS + 2, log2(entries.cmpt)),
            TableKind::Mtt => (profile.log2_mtts, log2(entries.mtt)),
            TableKind::Mcg => (profile.log2_mcgs, profile.log2_mcg_bytes),
        };
        Extent { base: 0, log2_entries, log2_entry_bytes }
    })
}
