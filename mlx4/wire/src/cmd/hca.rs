//! INIT_HCA and QUERY_HCA: the tables in ICM, event and multicast settings, and UARs.
//!
//! Sources: PRM `init_hca`, `qpcbaseaddr`, `multicastparam`, `tptparams`, `uar_params`; Linux
//! `INIT_HCA_*_OFFSET`. Offsets in the comments count from the start of the mailbox.
//!
//! Bases are virtual addresses in ICM, in bytes, aligned to the size of the table.

use crate::{U16, U32, U64};

/// The version in the first byte of INIT_HCA.
pub const INIT_HCA_VERSION: u8 = 2;

/// The bits of a table's base; those below hold a logarithm.
const BASE: u64 = !0x1f;

wire! {
    size = 8;
    /// Base \[63:5\] and log2 of the entries \[4:0\] of a table of contexts.
    pub struct IcmTable {
        base_log2: U64,
    }
}

impl IcmTable {
    const LOG2_MAX: u8 = 31;

    /// A table of `1 << log2_entries` entries at `base`. `None` if the base isn't a multiple of 32 bytes
    /// or the logarithm exceeds five bits.
    pub const fn new(base: u64, log2_entries: u8) -> Option<Self> {
        if base & !BASE != 0 || log2_entries > Self::LOG2_MAX {
            return None;
        }
        Some(Self { base_log2: U64::new(base | log2_entries as u64) })
    }

    /// Address of the first entry in ICM, in bytes.
    pub const fn base(&self) -> u64 {
        self.base_log2.get() & BASE
    }

    /// log2 of the entries.
    pub const fn log2_entries(&self) -> u8 {
        self.base_log2.get().to_le_bytes()[0] & Self::LOG2_MAX
    }
}

wire! {
    size = 8;
    /// Base \[63:5\] of the responder resources (RDMARC) and log2 \[2:0\] of their number per QP.
    pub struct RdmarcTable {
        base_log2: U64,
    }
}

impl RdmarcTable {
    const LOG2_MAX: u8 = 7;

    /// A table with `1 << log2_per_qp` entries for each QP at `base`. `None` if the base isn't a multiple
    /// of 32 bytes or the logarithm exceeds three bits.
    pub const fn new(base: u64, log2_per_qp: u8) -> Option<Self> {
        if base & !BASE != 0 || log2_per_qp > Self::LOG2_MAX {
            return None;
        }
        Some(Self { base_log2: U64::new(base | log2_per_qp as u64) })
    }

    /// Address of the first entry in ICM, in bytes.
    pub const fn base(&self) -> u64 {
        self.base_log2.get() & BASE
    }

    /// log2 of the entries of one QP.
    pub const fn log2_per_qp(&self) -> u8 {
        self.base_log2.get().to_le_bytes()[0] & Self::LOG2_MAX
    }
}

bits! {
    /// Byte 00e: cache line of the host.
    pub struct CacheLine: u8 {
        /// log2 of the cache line in bytes, minus 4.
        #[bits(3)]
        pub log2_minus_4: u8,
        /// The size is given.
        pub valid: bool,
        #[bits(2)]
        __: u8,
        /// In QUERY_HCA: 802.1ad checks are on (Linux `phv_check_en`).
        pub phv_check_en: bool,
        #[bits(1)]
        __: u8,
    }
}

bits! {
    /// Word 010: InfiniBand router mode.
    pub struct RouterParams: u32 {
        /// Router mode.
        pub ibr: bool,
        /// IP router on port 1.
        pub ipr1: bool,
        /// IP router on port 2.
        pub ipr2: bool,
        #[bits(5)]
        __: u8,
        /// QP for router mode.
        #[bits(24)]
        pub router_qp: u32,
    }
}

bits! {
    /// Word 014: switches.
    pub struct HcaFlags: u32 {
        #[bits(18)]
        __: u32,
        /// RSS spreads fragments of IP packets.
        pub rss_ip_frag: bool,
        #[bits(6)]
        __: u8,
        /// Device-managed flow steering; then the `fs_*` fields hold and the `mc_*` fields do not.
        pub dmfs: bool,
        #[bits(1)]
        __: u8,
        /// Counters.
        pub counters: bool,
        /// PRM `ce`: IP checksums over InfiniBand.
        pub ipoib_csum: bool,
        /// Quality of service.
        pub qos: bool,
        /// PRM `he`: the host is big endian, for atomic operations.
        pub host_big_endian: bool,
        /// PRM `udp`: the port of a UD address vector must be the QP's.
        pub ud_av_port_check: bool,
    }
}

bits! {
    /// Word 018: error events.
    pub struct HcaErrorEvents: u32 {
        /// Report recoverable errors by events.
        pub recoverable_error_event: bool,
        #[bits(31)]
        __: u32,
    }
}

bits! {
    /// Word 058: size of CQEs and EQEs.
    pub struct EqeCqeSize: u32 {
        #[bits(1)]
        __: u8,
        /// CQEs take 64 bytes.
        pub cqe_64b: bool,
        /// EQEs take 64 bytes.
        pub eqe_64b: bool,
        #[bits(23)]
        __: u32,
        /// log2 of the distance between EQEs in bytes, minus 5; it holds if one of the strides isn't zero.
        #[bits(2)]
        pub log2_eqe_stride_minus_5: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the distance between CQEs in bytes, minus 5; it holds if one of the strides isn't zero.
        #[bits(2)]
        pub log2_cqe_stride_minus_5: u8,
    }
}

bits! {
    /// A word whose low five bits are a logarithm.
    pub struct Log2Word: u32 {
        #[bits(27)]
        __: u32,
        /// The logarithm, base 2.
        #[bits(5)]
        pub log2: u8,
    }
}

bits! {
    /// Word 0d8: size and hash of the multicast table.
    pub struct McTable: u32 {
        #[bits(4)]
        __: u8,
        /// Steer unicast through the table too (Linux `B0` steering).
        pub uc_group_steering: bool,
        /// Hash function; zero is the default one.
        #[bits(3)]
        pub hash_fn: u8,
        #[bits(19)]
        __: u32,
        /// log2 of all entries, hashed and chained.
        #[bits(5)]
        pub log2_table_sz: u8,
    }
}

bits! {
    /// Word 0f8: size of the data MPT.
    pub struct DmptSize: u32 {
        /// Memory windows are enabled.
        pub mw_enable: bool,
        #[bits(18)]
        __: u32,
        /// RNR timeout of page faults.
        #[bits(5)]
        pub pfto: u8,
        #[bits(2)]
        __: u8,
        /// log2 of the entries.
        #[bits(6)]
        pub log2_entries: u8,
    }
}

bits! {
    /// Word 128: UARs.
    pub struct UarParams: u32 {
        #[bits(20)]
        __: u32,
        /// log2 of the UAR pages.
        #[bits(4)]
        pub log2_max_uars: u8,
        /// log2 of a UAR page, in units of 4 KiB.
        #[bits(8)]
        pub log2_uar_page_sz: u8,
    }
}

bits! {
    /// Word 1e8: table of device-managed flow steering.
    pub struct FsTable: u32 {
        /// A0 mode: 0 default, 1 dynamic, 2 static, 3 off.
        #[bits(2)]
        pub a0_mode: u8,
        #[bits(25)]
        __: u32,
        /// log2 of the entries.
        #[bits(5)]
        pub log2_table_sz: u8,
    }
}

wire! {
    size = 4;
    /// What device-managed flow steering does for one link type.
    pub struct FsLink {
        _reserved0: u8,
        /// Bit 1 steers unicast UDP, bit 2 unicast TCP.
        pub enable: u8,
        /// Layer 2 addresses, a count.
        pub num_addrs: U16,
    }
}

wire! {
    size = 0x1f0;
    /// What INIT_HCA sets and QUERY_HCA returns, from byte 010.
    pub struct HcaParams {
        /// 010: router mode.
        pub router: RouterParams,
        /// 014: switches.
        pub flags: HcaFlags,
        /// 018: error events.
        pub error_events: HcaErrorEvents,
        _reserved01c: [u8; 0x14],
        /// 030: QP contexts.
        pub qpc: IcmTable,
        _reserved038: [u8; 0x10],
        /// 048: SRQ contexts.
        pub srqc: IcmTable,
        /// 050: CQ contexts.
        pub cqc: IcmTable,
        /// 058: size of CQEs and EQEs.
        pub eqe_cqe: EqeCqeSize,
        _reserved05c: U32,
        /// 060: alternate path contexts, one for each QP.
        pub altc_base: U64,
        _reserved068: [u8; 8],
        /// 070: auxiliary QP contexts, one for each QP.
        pub auxc_base: U64,
        _reserved078: [u8; 8],
        /// 080: EQ contexts. With system EQs, Linux writes 31 for the logarithm.
        pub eqc: IcmTable,
        _reserved088: U16,
        /// 08a \[11:0\]: system EQs in use, a count.
        pub num_sys_eqs: U16,
        _reserved08c: U32,
        /// 090: responder resources.
        pub rdmarc: RdmarcTable,
        _reserved098: [u8; 0x28],
        /// 0c0: multicast groups.
        pub mc_base: U64,
        _reserved0c8: [u8; 8],
        /// 0d0: size of a multicast group in bytes.
        pub mc_entry_sz: Log2Word,
        /// 0d4: multicast groups that the hash reaches.
        pub mc_hash_sz: Log2Word,
        /// 0d8: multicast groups.
        pub mc_table: McTable,
        _reserved0dc: [u8; 0x14],
        /// 0f0: data MPT.
        pub dmpt_base: U64,
        /// 0f8: size of the data MPT.
        pub dmpt: DmptSize,
        _reserved0fc: U32,
        /// 100: MTT.
        pub mtt_base: U64,
        /// 108: control MPT.
        pub cmpt_base: U64,
        _reserved110: [u8; 0x18],
        /// 128: UARs.
        pub uar: UarParams,
        _reserved12c: [u8; 0x14],
        /// 140: name and version of the driver, ASCII, ended by a zero.
        pub driver_version: [u8; 0x40],
        _reserved180: [u8; 0x50],
        /// 1d0: flow steering table.
        pub fs_base: U64,
        _reserved1d8: [u8; 8],
        /// 1e0: size of a flow steering entry in bytes.
        pub fs_entry_sz: Log2Word,
        _reserved1e4: U32,
        /// 1e8: flow steering table.
        pub fs_table: FsTable,
        _reserved1ec: U32,
        /// 1f0: flow steering of Ethernet.
        pub fs_eth: FsLink,
        /// 1f4: flow steering of InfiniBand.
        pub fs_ib: FsLink,
        _reserved1f8: [u8; 8],
    }
}

wire! {
    size = 0x200;
    /// Input of INIT_HCA.
    pub struct InitHca {
        /// 000: [`INIT_HCA_VERSION`].
        pub version: u8,
        _reserved001: [u8; 0x0b],
        /// 00c: VXLAN parser; Linux writes zero on devices with VXLAN offloads.
        pub vxlan: u8,
        _reserved00d: u8,
        /// 00e: cache line of the host.
        pub cache_line: CacheLine,
        _reserved00f: u8,
        /// 010: the rest.
        pub params: HcaParams,
    }
}

wire! {
    size = 0x200;
    /// Output of QUERY_HCA.
    pub struct QueryHca {
        /// 000: [`INIT_HCA_VERSION`].
        pub version: u8,
        _reserved001: [u8; 3],
        /// 004: capabilities that every function must know; a Linux virtual function demands zero.
        pub global_caps: U64,
        /// 00c: frequency of the free-running clock in MHz; zero turns timestamps off.
        pub core_clock: U16,
        /// 00e: cache line of the host.
        pub cache_line: CacheLine,
        _reserved00f: u8,
        /// 010: the rest, as INIT_HCA set it.
        pub params: HcaParams,
    }
}

offsets! { InitHca: vxlan = 0x00c, cache_line = 0x00e, params = 0x010, }

offsets! { QueryHca: global_caps = 0x004, core_clock = 0x00c, cache_line = 0x00e, params = 0x010, }

// Counted from the parameters, which start at byte 010 of the mailbox.
offsets! { HcaParams:
    flags = 0x004, error_events = 0x008, qpc = 0x020, srqc = 0x038, cqc = 0x040, eqe_cqe = 0x048,
    altc_base = 0x050, auxc_base = 0x060, eqc = 0x070, num_sys_eqs = 0x07a, rdmarc = 0x080,
    mc_base = 0x0b0, mc_entry_sz = 0x0c0, mc_hash_sz = 0x0c4, mc_table = 0x0c8, dmpt_base = 0x0e0,
    dmpt = 0x0e8, mtt_base = 0x0f0, cmpt_base = 0x0f8, uar = 0x118, driver_version = 0x130,
    fs_base = 0x1c0, fs_entry_sz = 0x1d0, fs_table = 0x1d8, fs_eth = 0x1e0, fs_ib = 0x1e4,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden as at;

    type H = InitHca;

    #[test]
    fn table_shares_its_last_byte_with_the_logarithm() {
        let table = IcmTable::new(0x1_0800_0000, 18).unwrap();
        at(|h: &mut H| h.params.qpc = table, 0x030, &[0, 0, 0, 1, 0x08, 0, 0, 18]);
        at(|h: &mut H| h.params.srqc = table, 0x048, &[0, 0, 0, 1, 0x08, 0, 0, 18]);
        at(|h: &mut H| h.params.cqc = table, 0x050, &[0, 0, 0, 1, 0x08, 0, 0, 18]);
        at(|h: &mut H| h.params.eqc = table, 0x080, &[0, 0, 0, 1, 0x08, 0, 0, 18]);
        assert_eq!((table.base(), table.log2_entries()), (0x1_0800_0000, 18));
    }

    #[test]
    fn table_of_all_ones_reads_as_two_fields() {
        let table: IcmTable = zerocopy::transmute!([0xffu8; 8]);
        assert_eq!((table.base(), table.log2_entries()), (0xffff_ffff_ffff_ffe0, 31));
        let table: RdmarcTable = zerocopy::transmute!([0xffu8; 8]);
        assert_eq!((table.base(), table.log2_per_qp()), (0xffff_ffff_ffff_ffe0, 7));
    }

    #[test]
    fn table_refuses_what_does_not_fit() {
        assert_eq!(IcmTable::new(0x10, 1), None);
        assert_eq!(IcmTable::new(0, 32), None);
        assert_eq!(RdmarcTable::new(0, 8), None);
    }

    #[test]
    fn responder_resources_are_where_linux_writes_them() {
        let table = RdmarcTable::new(0x1_0000_0000, 4).unwrap();
        at(|h: &mut H| h.params.rdmarc = table, 0x090, &[0, 0, 0, 1, 0, 0, 0, 4]);
    }

    #[test]
    fn head_and_switches_are_where_linux_writes_them() {
        at(|h: &mut H| h.version = INIT_HCA_VERSION, 0x000, &[2]);
        let line = CacheLine::new().with_log2_minus_4(2).with_valid(true);
        at(|h: &mut H| h.cache_line = line, 0x00e, &[0x50]);
        at(|h: &mut H| h.params.flags.set_ud_av_port_check(true), 0x017, &[0x01]);
        at(|h: &mut H| h.params.flags.set_host_big_endian(true), 0x017, &[0x02]);
        at(|h: &mut H| h.params.flags.set_ipoib_csum(true), 0x017, &[0x08]);
        at(|h: &mut H| h.params.flags.set_counters(true), 0x017, &[0x10]);
        at(|h: &mut H| h.params.flags.set_dmfs(true), 0x017, &[0x40]);
        at(|h: &mut H| h.params.flags.set_rss_ip_frag(true), 0x016, &[0x20]);
        at(|h: &mut H| h.params.error_events.set_recoverable_error_event(true), 0x018, &[0x80]);
        at(|h: &mut H| h.params.eqe_cqe.set_eqe_64b(true), 0x058, &[0x20]);
        at(|h: &mut H| h.params.eqe_cqe.set_cqe_64b(true), 0x058, &[0x40]);
        at(|h: &mut H| h.params.eqe_cqe.set_log2_eqe_stride_minus_5(3), 0x05b, &[0x30]);
        at(|h: &mut H| h.params.eqe_cqe.set_log2_cqe_stride_minus_5(3), 0x05b, &[0x03]);
        at(|h: &mut H| h.params.num_sys_eqs.set(0x123), 0x08a, &[0x01, 0x23]);
    }

    #[test]
    fn plain_bases_and_sizes_are_where_linux_writes_them() {
        at(|h: &mut H| h.params.altc_base.set(0xab << 56), 0x060, &[0xab]);
        at(|h: &mut H| h.params.auxc_base.set(0xab << 56), 0x070, &[0xab]);
        at(|h: &mut H| h.params.mc_base.set(0xab << 56), 0x0c0, &[0xab]);
        at(|h: &mut H| h.params.mc_entry_sz.set_log2(10), 0x0d3, &[10]);
        at(|h: &mut H| h.params.mc_hash_sz.set_log2(12), 0x0d7, &[12]);
        at(|h: &mut H| h.params.mc_table.set_uc_group_steering(true), 0x0d8, &[0x08]);
        at(|h: &mut H| h.params.mc_table.set_log2_table_sz(13), 0x0db, &[13]);
        at(|h: &mut H| h.params.dmpt_base.set(0xab << 56), 0x0f0, &[0xab]);
        at(|h: &mut H| h.params.dmpt.set_mw_enable(true), 0x0f8, &[0x80]);
        at(|h: &mut H| h.params.dmpt.set_log2_entries(19), 0x0fb, &[19]);
        at(|h: &mut H| h.params.mtt_base.set(0xab << 56), 0x100, &[0xab]);
        at(|h: &mut H| h.params.cmpt_base.set(0xab << 56), 0x108, &[0xab]);
        at(|h: &mut H| h.params.uar.set_log2_max_uars(0xf), 0x12a, &[0x0f]);
        at(|h: &mut H| h.params.uar.set_log2_uar_page_sz(2), 0x12b, &[2]);
        at(|h: &mut H| h.params.driver_version[0] = b'L', 0x140, b"L");
    }

    #[test]
    fn flow_steering_is_where_linux_writes_it() {
        at(|h: &mut H| h.params.fs_base.set(0xab << 56), 0x1d0, &[0xab]);
        at(|h: &mut H| h.params.fs_entry_sz.set_log2(7), 0x1e3, &[7]);
        at(|h: &mut H| h.params.fs_table.set_a0_mode(3), 0x1e8, &[0xc0]);
        at(|h: &mut H| h.params.fs_table.set_log2_table_sz(17), 0x1eb, &[17]);
        at(|h: &mut H| h.params.fs_eth.enable = 6, 0x1f1, &[6]);
        at(|h: &mut H| h.params.fs_eth.num_addrs.set(8), 0x1f2, &[0, 8]);
        at(|h: &mut H| h.params.fs_ib.enable = 6, 0x1f5, &[6]);
        at(|h: &mut H| h.params.fs_ib.num_addrs.set(8), 0x1f6, &[0, 8]);
    }

    #[test]
    fn query_hca_has_its_own_head() {
        at(|q: &mut QueryHca| q.global_caps.set(1), 0x00b, &[1]);
        at(|q: &mut QueryHca| q.core_clock.set(427), 0x00c, &[0x01, 0xab]);
        at(|q: &mut QueryHca| q.cache_line.set_phv_check_en(true), 0x00e, &[0x02]);
        let table = IcmTable::new(0x20, 7).unwrap();
        at(|q: &mut QueryHca| q.params.qpc = table, 0x037, &[0x27]);
    }
}
