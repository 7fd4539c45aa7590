//! What the device says of itself, checked: QUERY_FW, QUERY_DEV_CAP, QUERY_PORT, QUERY_ADAPTER.

use mlx4_queue::geometry::QueueLimits;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::fw::{QueryAdapter, QueryFw};
use mlx4_wire::cmd::port::QueryPort;

use crate::cmd::Commands;
use crate::error::{FieldError, Fields, Result};

/// Ports that a device of the family has at most.
const MAX_PORTS: u8 = 2;

/// Words of the error buffer that are looked at.
const MAX_ERROR_WORDS: u32 = 256;

/// log2 of the entries of an EQ: what this driver needs, and the most that it uses.
const LEAST_EQES: u64 = 11;
const MOST_EQES: u8 = 22;

/// Event queues that have a doorbell in a UAR page, and log2 of those that have one at all: their pages are in
/// front of those of queue pairs.
const EQS_PER_UAR: u32 = 4;
const LOG2_MOST_EQS: u8 = 9;
const _: () = assert!(EQS_PER_UAR * mlx4_wire::regs::EQ_UAR_PAGES == 1 << LOG2_MOST_EQS);
/// Event queues that the driver needs: for commands, for events, and one for completions.
const LEAST_EQS: u32 = 3;

/// The revision of the command interface that this driver speaks.
const COMMAND_REVISION: u64 = 3;

/// The firmware, and where it has what isn't at a fixed place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Version: major, minor, subminor.
    pub version: (u16, u16, u16),
    /// 4 KiB pages that it needs for itself.
    pub(crate) pages: u16,
    /// log2 of the commands that it takes at once.
    pub(crate) log2_commands: u8,
    /// Offset of the catastrophic-error buffer in BAR0, in bytes.
    pub(crate) error_buffer: u64,
    /// Size of that buffer in words of 4 bytes; 0 if there is none.
    pub(crate) error_words: u32,
}

impl Firmware {
    /// Asks the device; `bar0` is the size of BAR0 in bytes.
    pub(crate) fn query(commands: &Commands, bar0: u64) -> Result<Self> {
        let fw: QueryFw = commands.query(Opcode::QUERY_FW, 0)?;
        Ok(Self::read(&fw, bar0)?)
    }

    fn read(fw: &QueryFw, bar0: u64) -> Result<Self, FieldError> {
        let fields = Fields("QUERY_FW");
        fields.is("cmd_interface_rev", fw.cmd_interface_rev.get(), COMMAND_REVISION)?;
        let words = fields.at_most("error_buf_size", fw.error_buf_size.get(), MAX_ERROR_WORDS.into())?;
        if words != 0 {
            fields.is("error_buf_bar", fw.error_buf_bar.bar(), 0)?;
            let last = bar0.saturating_sub(4 * u64::from(words));
            fields.at_most("error_buf_offset", fw.error_buf_offset.get(), last)?;
            fields.multiple_of("error_buf_offset", fw.error_buf_offset.get(), 4)?;
        }
        Ok(Self {
            version: (fw.fw_rev_major.get(), fw.fw_rev_minor.get(), fw.fw_rev_subminor.get()),
            pages: fields.at_least("fw_pages", fw.fw_pages.get(), 1)?,
            log2_commands: fields.at_most("log2_max_outstanding_cmd", fw.log2_max_outstanding_cmd, 16)?,
            error_buffer: fw.error_buf_offset.get(),
            error_words: words,
        })
    }
}

/// How many objects of a kind there are, and which the firmware keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objects {
    /// log2 of their number.
    pub log2: u8,
    /// The first this many are the firmware's.
    pub reserved: u32,
}

impl Objects {
    fn read(
        fields: Fields,
        (log2_name, log2, limit): (&'static str, u8, u64),
        (reserved_name, reserved): (&'static str, u32),
    ) -> Result<Self, FieldError> {
        fields.at_most(log2_name, log2, limit)?;
        fields.at_most(reserved_name, reserved, (1u64 << log2) - 1)?;
        Ok(Self { log2, reserved })
    }
}

/// Sizes of entries in the ICM tables in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryBytes {
    pub(crate) rdmarc: u16,
    pub(crate) qpc: u16,
    pub(crate) auxc: u16,
    pub(crate) altc: u16,
    pub(crate) eqc: u16,
    pub(crate) cqc: u16,
    pub(crate) srqc: u16,
    pub(crate) cmpt: u16,
    pub(crate) mtt: u16,
    pub(crate) dmpt: u16,
}

impl EntryBytes {
    fn read(fields: Fields, cap: &QueryDevCap) -> Result<Self, FieldError> {
        let size = |field, value: mlx4_wire::U16| {
            fields.at_least(field, value.get(), 8)?;
            fields.at_most(field, value.get(), 4096)?;
            fields.power_of_two(field, value.get())
        };
        fields.is("mtt_entry_sz", cap.mtt_entry_sz.get(), 8)?;
        Ok(Self {
            rdmarc: size("rdmarc_entry_sz", cap.rdmarc_entry_sz)?,
            qpc: size("qpc_entry_sz", cap.qpc_entry_sz)?,
            auxc: size("aux_entry_sz", cap.aux_entry_sz)?,
            altc: size("altc_entry_sz", cap.altc_entry_sz)?,
            eqc: size("eqc_entry_sz", cap.eqc_entry_sz)?,
            cqc: size("cqc_entry_sz", cap.cqc_entry_sz)?,
            srqc: size("srq_entry_sz", cap.srq_entry_sz)?,
            cmpt: size("c_mpt_entry_sz", cap.c_mpt_entry_sz)?,
            mtt: size("mtt_entry_sz", cap.mtt_entry_sz)?,
            dmpt: size("d_mpt_entry_sz", cap.d_mpt_entry_sz)?,
        })
    }
}

/// What the device can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Queue pairs.
    pub qps: Objects,
    /// Shared receive queues.
    pub srqs: Objects,
    /// Completion queues.
    pub cqs: Objects,
    /// Event queues.
    pub eqs: Objects,
    /// Memory regions and windows.
    pub mpts: Objects,
    /// Entries of the translation table.
    pub mtts: Objects,
    /// Protection domains.
    pub pds: Objects,
    /// UAR pages of 4 KiB.
    pub uars: Objects,
    /// log2 of the multicast groups.
    pub log2_mcgs: u8,
    /// Limits of queues.
    pub queues: QueueLimits,
    /// log2 of the entries of an EQ, at most 22.
    pub(crate) log2_max_eqes: u8,
    /// log2 of the longest message in bytes.
    pub log2_max_message: u8,
    /// log2 of the reads and atomics that a queue pair may have under way.
    pub log2_max_requester_reads: u8,
    /// log2 of the reads and atomics that the other end may have under way.
    pub log2_max_responder_reads: u8,
    /// The device answers within 4.096 µs × 2^n.
    pub ack_delay: u8,
    /// Atomics.
    pub atomics: bool,
    /// Shared receive queues.
    pub has_srqs: bool,
    /// Unreliable connections.
    pub has_uc: bool,
    /// Multicast.
    pub has_multicast: bool,
    /// Memory windows of type 1.
    pub has_windows: bool,
    /// Memory windows of type 2, bound to a queue pair and a domain (2B).
    pub has_windows_2b: bool,
    /// Work requests that register and invalidate regions.
    pub has_fast_registration: bool,
    /// XRC domains; `None` if the device has no XRC.
    pub xrcds: Option<Objects>,
    /// CQEs of 64 bytes.
    pub has_wide_cqes: bool,
    /// log2 of the longest message that the device cuts into datagrams, in bytes; 0 if it cuts none.
    pub log2_max_lso: u8,
    /// log2 of the longest memory region in bytes.
    pub log2_max_region: u8,
    /// The port of an address vector is checked against the queue pair's.
    pub ud_av_port_check: bool,
    /// Changes of LID, GIDs, P_Keys and so on are told by events.
    pub(crate) port_management_events: bool,
    pub(crate) entries: EntryBytes,
    pub(crate) max_icm: u64,
    /// The ports, from port 1.
    pub ports: Vec<PortCapabilities>,
    /// Board id (PSID), as the firmware has it.
    pub board_id: String,
}

/// What a port can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortCapabilities {
    /// Greatest MTU, as IBTA numbers them: 1 is 256 bytes, 5 is 4096.
    pub max_mtu: u8,
    /// Data virtual lanes.
    pub max_vls: u8,
    /// Entries of the GID table.
    pub gids: u16,
    /// Entries of the P_Key table.
    pub pkeys: u16,
}

impl PortCapabilities {
    fn read(port: &QueryPort) -> Result<Self, FieldError> {
        let fields = Fields("QUERY_PORT");
        fields.is("ib", port.state.ib(), 1)?;
        let mtu = port.mtu.ib_mtu();
        fields.at_least("ib_mtu", mtu, 1)?;
        Ok(Self {
            max_mtu: fields.at_most("ib_mtu", mtu, 5)?,
            max_vls: fields.at_least("max_vl_ib", port.vls.max_vl_ib(), 1)?,
            gids: 1 << fields.at_most("log2_max_gids", port.tables.log2_max_gids(), 7)?,
            pkeys: 1 << fields.at_most("log2_max_pkeys", port.tables.log2_max_pkeys(), 7)?,
        })
    }
}

impl Capabilities {
    /// Asks the device; `bar2` is the size of BAR2 in bytes.
    pub(crate) fn query(commands: &Commands, bar2: u64) -> Result<Self> {
        let cap: QueryDevCap = commands.query(Opcode::QUERY_DEV_CAP, 0)?;
        let mut caps = Self::read(&cap, bar2)?;
        for port in 1..=cap.ib_port.num_ports() {
            let port: QueryPort = commands.query(Opcode::QUERY_PORT, port.into())?;
            caps.ports.push(PortCapabilities::read(&port)?);
        }
        Ok(caps)
    }

    /// Asks for the board id, which the device has when it runs.
    pub(crate) fn query_board(&mut self, commands: &Commands) -> Result<()> {
        let adapter: QueryAdapter = commands.query(Opcode::QUERY_ADAPTER, 0)?;
        let printable = |byte: &u8| byte.is_ascii_graphic();
        self.board_id = adapter.board_id().iter().filter(|b| printable(b)).map(|b| char::from(*b)).collect();
        Ok(())
    }

    fn read(cap: &QueryDevCap, bar2: u64) -> Result<Self, FieldError> {
        let fields = Fields("QUERY_DEV_CAP");
        fields.at_least("num_ports", cap.ib_port.num_ports(), 1)?;
        fields.at_most("num_ports", cap.ib_port.num_ports(), MAX_PORTS.into())?;
        fields.at_most("log2_min_page_sz", cap.uar.log2_min_page_sz(), 12)?;
        fields.is("rc", cap.flags.rc(), 1)?;
        fields.is("ud", cap.flags.ud(), 1)?;
        Ok(Self {
            qps: Objects::read(
                fields,
                ("log2_max_qps", cap.qp.log2_max_qps(), 24),
                ("log2_rsvd_qps", 1 << cap.qp.log2_rsvd_qps()),
            )?,
            srqs: Objects::read(
                fields,
                ("log2_max_srqs", cap.srq.log2_max_srqs(), 24),
                ("log2_rsvd_srqs", 1 << cap.srq.log2_rsvd_srqs()),
            )?,
            cqs: Objects::read(
                fields,
                ("log2_max_cqs", cap.cq.log2_max_cqs(), 24),
                ("log2_rsvd_cqs", 1 << cap.cq.log2_rsvd_cqs()),
            )?,
            eqs: Self::eqs(fields, cap)?,
            mpts: Objects::read(
                fields,
                ("log2_max_mpts", cap.mpt_eq.log2_max_mpts(), 24),
                ("log2_rsvd_mrws", 1 << cap.mtt.log2_rsvd_mrws()),
            )?,
            mtts: Objects::read(
                fields,
                ("log2_max_mtts", cap.mtt.log2_max_mtts(), 36),
                ("log2_rsvd_mtts", 1 << cap.mtt.log2_rsvd_mtts()),
            )?,
            pds: Objects::read(
                fields,
                ("log2_max_pds", cap.pd_xrcd.log2_max_pds(), 24),
                ("num_rsvd_pds", cap.pd_xrcd.num_rsvd_pds().into()),
            )?,
            uars: Self::uars(fields, cap, bar2)?,
            log2_mcgs: fields.at_most("log2_max_mcgs", cap.mcg.log2_max_mcgs(), 24)?,
            queues: Self::queues(fields, cap)?,
            log2_max_eqes: fields
                .between("log2_max_eq_sz", cap.mpt_eq.log2_max_eq_sz(), LEAST_EQES, 24)?
                .min(MOST_EQES),
            // No less than a packet.
            log2_max_message: fields.between("log2_max_msg", cap.msg.log2_max_msg(), 12, 31)?,
            log2_max_requester_reads: fields.at_most(
                "log2_max_ra_req_qp",
                cap.rdma.log2_max_ra_req_qp(),
                7,
            )?,
            log2_max_responder_reads: fields.at_most(
                "log2_max_ra_res_qp",
                cap.rdma.log2_max_ra_res_qp(),
                7,
            )?,
            ack_delay: cap.ib_port.local_ca_ack_delay(),
            atomics: cap.flags.atomic(),
            has_srqs: cap.flags.srq(),
            has_uc: cap.flags.uc(),
            has_multicast: cap.flags.ud_mcast(),
            has_windows: cap.flags.mem_window(),
            has_windows_2b: cap.bmme.type_2_win() && cap.bmme.win_type_2b(),
            has_fast_registration: cap.bmme.fast_reg_wr() && cap.bmme.local_inv() && cap.bmme.remote_inv(),
            xrcds: Self::xrcds(fields, cap)?,
            has_wide_cqes: cap.ext_flags.cqe_64b(),
            log2_max_lso: Self::lso(fields, cap)?,
            log2_max_region: fields.between("log2_max_mrw_sz", cap.mtt.log2_max_mrw_sz(), 12, 63)?,
            ud_av_port_check: cap.flags.ud_av_port(),
            port_management_events: cap.ext_flags.port_mng_chg_ev(),
            entries: EntryBytes::read(fields, cap)?,
            max_icm: fields.at_least("max_icm_sz", cap.max_icm_sz.get(), 1 << 30)?,
            ports: Vec::new(),
            board_id: String::new(),
        })
    }

    /// EQs whose doorbells are in reserved UAR pages are the firmware's too, four a page.
    fn eqs(fields: Fields, cap: &QueryDevCap) -> Result<Objects, FieldError> {
        fields.is("num_sys_eqs", cap.sys_eqs.num_sys_eqs(), 0)?;
        let log2 = fields.between("log2_max_eqs", cap.mpt_eq.log2_max_eqs(), 4, 15)?.min(LOG2_MOST_EQS);
        let usable = (1u32 << log2) - LEAST_EQS;
        let uars = fields.at_most("num_rsvd_uars", cap.uar.num_rsvd_uars(), (usable / EQS_PER_UAR).into())?;
        let own = fields.at_most("log2_rsvd_eqs", 1u32 << cap.mpt_eq.log2_rsvd_eqs(), usable.into())?;
        Ok(Objects { log2, reserved: own.max(EQS_PER_UAR * u32::from(uars)) })
    }

    fn xrcds(fields: Fields, cap: &QueryDevCap) -> Result<Option<Objects>, FieldError> {
        if !cap.flags.xrc() {
            return Ok(None);
        }
        let xrcds = cap.pd_xrcd;
        let (log2, reserved) = (xrcds.log2_max_xrcds(), xrcds.num_rsvd_xrcds().into());
        Objects::read(fields, ("log2_max_xrcds", log2, 16), ("num_rsvd_xrcds", reserved)).map(Some)
    }

    /// Headers of the length that IP needs are a capability of their own.
    fn lso(fields: Fields, cap: &QueryDevCap) -> Result<u8, FieldError> {
        let log2 = cap.gso_rss.log2_max_gso();
        fields.at_most("log2_max_gso", log2, cap.msg.log2_max_msg().into())?;
        Ok(if cap.flags.blh() { log2 } else { 0 })
    }

    fn uars(fields: Fields, cap: &QueryDevCap, bar2: u64) -> Result<Objects, FieldError> {
        let log2_mb = fields.at_most("log2_uar_sz_mb", cap.uar.log2_uar_sz_mb(), 7)?;
        fields.at_most("log2_uar_sz_mb", 1u64 << (log2_mb + 20), bar2)?;
        let reserved = mlx4_wire::regs::EQ_UAR_PAGES.max(cap.uar.num_rsvd_uars().into());
        Objects::read(fields, ("log2_uar_sz_mb", log2_mb + 8, 15), ("num_rsvd_uars", reserved))
    }

    fn queues(fields: Fields, cap: &QueryDevCap) -> Result<QueueLimits, FieldError> {
        Ok(QueueLimits {
            log2_max_wqes: fields.between("log2_max_qp_sz", cap.qp.log2_max_qp_sz(), 7, 16)?,
            log2_max_srq_wqes: fields.between("log2_max_srq_sz", cap.qp.log2_max_srq_sz(), 1, 16)?,
            log2_max_cqes: fields.between("log2_max_cq_sz", cap.cq.log2_max_cq_sz(), 8, 24)?,
            max_send_wqe: fields.between("sq.max_desc_sz", cap.sq.max_desc_sz(), 256, 1024)?.into(),
            max_receive_wqe: fields.between("rq.max_desc_sz", cap.rq.max_desc_sz(), 32, 2048)?.into(),
            max_send_sges: fields.at_least("sq.max_sg", cap.sq.max_sg(), 1)?.into(),
            max_receive_sges: fields.at_least("rq.max_sg", cap.rq.max_sg(), 1)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::U16;
    use proptest::prelude::*;
    use zerocopy::{FromBytes, FromZeros, IntoBytes};

    use super::*;
    use crate::profile::{Layout, Profile, TableKind};

    fn good() -> QueryDevCap {
        let mut cap = QueryDevCap::new_zeroed();
        cap.ib_port.set_num_ports(2);
        cap.uar.set_log2_min_page_sz(12);
        cap.uar.set_log2_uar_sz_mb(2);
        cap.flags.set_rc(true);
        cap.flags.set_ud(true);
        cap.qp.set_log2_max_qps(18);
        cap.qp.set_log2_rsvd_qps(6);
        cap.qp.set_log2_max_qp_sz(14);
        cap.qp.set_log2_max_srq_sz(14);
        cap.srq.set_log2_max_srqs(16);
        cap.cq.set_log2_max_cqs(16);
        cap.cq.set_log2_max_cq_sz(22);
        cap.mpt_eq.set_log2_max_eqs(9);
        cap.mpt_eq.set_log2_rsvd_eqs(3);
        cap.mpt_eq.set_log2_max_mpts(19);
        cap.mpt_eq.set_log2_max_eq_sz(22);
        cap.mtt.set_log2_max_mtts(24);
        cap.mtt.set_log2_max_mrw_sz(40);
        cap.msg.set_log2_max_msg(31);
        cap.pd_xrcd.set_log2_max_pds(15);
        cap.sq.set_max_desc_sz(1008);
        cap.sq.set_max_sg(32);
        cap.rq.set_max_desc_sz(512);
        cap.rq.set_max_sg(32);
        cap.max_icm_sz.set(1 << 40);
        for size in [
            &mut cap.rdmarc_entry_sz,
            &mut cap.qpc_entry_sz,
            &mut cap.aux_entry_sz,
            &mut cap.altc_entry_sz,
            &mut cap.eqc_entry_sz,
            &mut cap.cqc_entry_sz,
            &mut cap.srq_entry_sz,
            &mut cap.c_mpt_entry_sz,
            &mut cap.d_mpt_entry_sz,
        ] {
            *size = U16::new(128);
        }
        cap.mtt_entry_sz.set(8);
        cap
    }

    fn refused(change: impl FnOnce(&mut QueryDevCap)) -> &'static str {
        let mut cap = good();
        change(&mut cap);
        Capabilities::read(&cap, 8 << 20).unwrap_err().field
    }

    #[test]
    fn good_capabilities_are_taken() {
        let caps = Capabilities::read(&good(), 8 << 20).unwrap();
        assert_eq!(caps.qps, Objects { log2: 18, reserved: 64 });
        assert_eq!(caps.uars, Objects { log2: 10, reserved: 128 });
        assert_eq!(caps.eqs, Objects { log2: 9, reserved: 8 });
    }

    #[test]
    fn capability_that_can_not_be_is_refused_with_its_name() {
        assert_eq!(refused(|c| c.ib_port.set_num_ports(3)), "num_ports");
        assert_eq!(refused(|c| c.ib_port.set_num_ports(0)), "num_ports");
        assert_eq!(refused(|c| c.qp.set_log2_max_qps(25)), "log2_max_qps");
        assert_eq!(refused(|c| c.qp.set_log2_max_qps(3)), "log2_rsvd_qps");
        assert_eq!(refused(|c| c.mtt.set_log2_max_mtts(63)), "log2_max_mtts");
        assert_eq!(refused(|c| c.qpc_entry_sz.set(0)), "qpc_entry_sz");
        assert_eq!(refused(|c| c.cqc_entry_sz.set(96)), "cqc_entry_sz");
        assert_eq!(refused(|c| c.mtt_entry_sz.set(16)), "mtt_entry_sz");
        assert_eq!(refused(|c| c.uar.set_log2_uar_sz_mb(4)), "log2_uar_sz_mb");
        assert_eq!(refused(|c| c.uar.set_log2_uar_sz_mb(63)), "log2_uar_sz_mb");
        assert_eq!(refused(|c| c.sq.set_max_sg(0)), "sq.max_sg");
        assert_eq!(refused(|c| c.msg.set_log2_max_msg(11)), "log2_max_msg");
        assert_eq!(refused(|c| c.mpt_eq.set_log2_rsvd_eqs(9)), "log2_rsvd_eqs");
        let crowded = |c: &mut QueryDevCap| {
            c.mpt_eq.set_log2_max_eqs(4);
            c.uar.set_num_rsvd_uars(4);
        };
        assert_eq!(refused(crowded), "num_rsvd_uars");
        assert_eq!(refused(|c| c.max_icm_sz.set(0)), "max_icm_sz");
    }

    #[test]
    fn firmware_with_an_error_buffer_outside_the_bar_is_refused() {
        let mut fw = QueryFw::new_zeroed();
        fw.cmd_interface_rev.set(3);
        fw.fw_pages.set(1);
        fw.error_buf_size.set(16);
        fw.error_buf_offset.set((1 << 20) - 60);
        let read = |fw: &QueryFw| Firmware::read(fw, 1 << 20);
        assert_eq!(read(&fw).unwrap_err().field, "error_buf_offset");
        fw.error_buf_offset.set(u64::MAX);
        assert_eq!(read(&fw).unwrap_err().field, "error_buf_offset");
        fw.error_buf_offset.set((1 << 20) - 64);
        assert_eq!(read(&fw).unwrap().error_words, 16);
        fw.error_buf_bar.set_pair(1);
        assert_eq!(read(&fw).unwrap_err().field, "error_buf_bar");
        fw.error_buf_size.set(u32::MAX);
        assert_eq!(read(&fw).unwrap_err().field, "error_buf_size");
        fw.cmd_interface_rev.set(2);
        assert_eq!(read(&fw).unwrap_err().field, "cmd_interface_rev");
    }

    proptest! {
        /// Whatever a device says of itself is refused, or leads to tables that don't overlap.
        #[test]
        fn any_capabilities_are_refused_or_make_a_layout(
            bytes in prop::collection::vec(any::<u8>(), size_of::<QueryDevCap>()),
            changed in prop::collection::vec(0usize..size_of::<QueryDevCap>(), 0..4),
        ) {
            let mut cap = good();
            for at in changed {
                cap.as_mut_bytes()[at] = bytes[at];
            }
            for cap in [cap, QueryDevCap::read_from_bytes(&bytes).expect("as many bytes")] {
                let Ok(caps) = Capabilities::read(&cap, 8 << 20) else { continue };
                let Ok(layout) = Layout::new(&Profile::default(), &caps) else { continue };
                let mut extents: Vec<_> = TableKind::ALL.iter().map(|kind| layout.extent(*kind)).collect();
                extents.sort_by_key(|extent| extent.base);
                for pair in extents.windows(2) {
                    prop_assert!(pair[0].base + pair[0].bytes() <= pair[1].base);
                }
                prop_assert!(extents.iter().all(|extent| extent.base.is_multiple_of(extent.bytes())));
                prop_assert!(layout.bytes <= caps.max_icm);
                let init = layout.init_hca(&caps);
                prop_assert!(init.is_ok());
            }
        }

        #[test]
        fn any_firmware_and_port_are_refused_or_read(
            fw in prop::collection::vec(any::<u8>(), size_of::<QueryFw>()),
            port in prop::collection::vec(any::<u8>(), size_of::<QueryPort>()),
        ) {
            let mut fw = QueryFw::read_from_bytes(&fw).expect("as many bytes");
            fw.cmd_interface_rev.set(3);
            if let Ok(firmware) = Firmware::read(&fw, 1 << 20) {
                prop_assert!(firmware.error_buffer + 4 * u64::from(firmware.error_words) <= 1 << 20);
            }
            let port = QueryPort::read_from_bytes(&port).expect("as many bytes");
            if let Ok(port) = PortCapabilities::read(&port) {
                prop_assert!((1..=5).contains(&port.max_mtu) && port.gids <= 128 && port.pkeys <= 128);
            }
        }
    }
}
