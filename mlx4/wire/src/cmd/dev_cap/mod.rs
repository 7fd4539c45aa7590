//! QUERY_DEV_CAP: what the device can do and how large its objects are.
//!
//! Sources: PRM `query_dev_cap` in iPXE's words for names and bit widths, Linux
//! `QUERY_DEV_CAP_*_OFFSET` for what came after ConnectX. Where they disagree, Linux's reading stands.
//!
//! `log2_rsvd_*` fields hold a logarithm, so at least one object is reserved; `num_rsvd_*` fields hold a
//! plain count.

mod flags;
mod limits;

pub use flags::{
    BmmeFlags, DevCapExtFlags, DevCapExtFlags2, DevCapFlags, EthFlags, FirmwareFlags, MadDemuxCaps,
    StrideCaps, UserClockCaps,
};
pub use limits::{
    BlueFlameCaps, CqCaps, FlowSteeringCaps, GsoRssCaps, IbPortCaps, McgCaps, MessageCaps, MptEqCaps,
    MttCaps, PdXrcdCaps, QpCaps, QueueCaps, RateCaps, RateLimit, RdmaCaps, SrqCaps, SrqResize, SysEqs,
    UarCaps,
};

use crate::{U16, U32, U64};

wire! {
    size = 0x100;
    /// Output of QUERY_DEV_CAP.
    pub struct QueryDevCap {
        _reserved00: [u8; 0x10],
        /// 10: QPs, and the depth of QPs and SRQs.
        pub qp: QpCaps,
        /// 14: SRQs.
        pub srq: SrqCaps,
        /// 18: CQs.
        pub cq: CqCaps,
        /// 1c: data MPT entries and EQs.
        pub mpt_eq: MptEqCaps,
        /// 20: MTT entries, regions and windows.
        pub mtt: MttCaps,
        /// 24: system EQs.
        pub sys_eqs: SysEqs,
        /// 28: outstanding RDMA reads and atomics.
        pub rdma: RdmaCaps,
        /// 2c: segmentation and receive-side scaling.
        pub gso_rss: GsoRssCaps,
        /// 30: whether SRQs can be resized.
        pub rsz_srq: SrqResize,
        /// 34: number of ports and ACK delay.
        pub ib_port: IbPortCaps,
        /// 38: message size and GID table.
        pub msg: MessageCaps,
        /// 3c: static rates, timestamps and P_Key table.
        pub rate: RateCaps,
        /// 40: flags, bits \[63:32\].
        pub ext_flags: DevCapExtFlags,
        /// 44: flags, bits \[31:0\].
        pub flags: DevCapFlags,
        /// 48: UARs and page size.
        pub uar: UarCaps,
        /// 4c: BlueFlame.
        pub bf: BlueFlameCaps,
        /// 50: send queues.
        pub sq: QueueCaps,
        /// 54: receive queues.
        pub rq: QueueCaps,
        _reserved58: U32,
        /// 5c: Ethernet flags.
        pub eth: EthFlags,
        /// 60: multicast groups.
        pub mcg: McgCaps,
        /// 64: protection domains and XRC domains.
        pub pd_xrcd: PdXrcdCaps,
        /// 68: basic counters, a count; read if the flag `counters` is set, and must not be zero then.
        pub max_counters: U32,
        _reserved6c: U32,
        /// 70: more flags.
        pub ext_flags2: DevCapExtFlags2,
        /// 74: flow steering.
        pub fs: FlowSteeringCaps,
        /// 78: strides of CQEs and EQEs, and Ethernet QoS.
        pub stride: StrideCaps,
        _reserved7c: U32,
        /// 80: size of a responder resource entry in bytes.
        pub rdmarc_entry_sz: U16,
        /// 82: size of a QP context in ICM, in bytes.
        pub qpc_entry_sz: U16,
        /// 84: size of an auxiliary QP context in ICM, in bytes.
        pub aux_entry_sz: U16,
        /// 86: size of an alternate path context in ICM, in bytes.
        pub altc_entry_sz: U16,
        /// 88: size of an EQ context in ICM, in bytes.
        pub eqc_entry_sz: U16,
        /// 8a: size of a CQ context in ICM, in bytes.
        pub cqc_entry_sz: U16,
        /// 8c: size of an SRQ context in ICM, in bytes.
        pub srq_entry_sz: U16,
        /// 8e: size of a control MPT entry in ICM, in bytes.
        pub c_mpt_entry_sz: U16,
        /// 90: size of an MTT entry in ICM, in bytes.
        pub mtt_entry_sz: U16,
        /// 92: size of a data MPT entry in ICM, in bytes.
        pub d_mpt_entry_sz: U16,
        /// 94: base memory management extensions.
        pub bmme: BmmeFlags,
        /// 98: L_Key that reaches all memory, if `bmme.reserved_lkey` is set.
        pub reserved_lkey: U32,
        /// 9c: flags between firmware and driver.
        pub firmware: FirmwareFlags,
        /// a0: greatest ICM, in bytes.
        pub max_icm_sz: U64,
        /// a8 \[23:0\]: first QPN of the range for high-rate flow steering.
        pub dmfs_high_rate_qpn_base: U32,
        /// ac \[23:0\]: QPs in the range for high-rate flow steering.
        pub dmfs_high_rate_qpn_range: U32,
        /// b0: MAD_DEMUX.
        pub mad_demux: MadDemuxCaps,
        _reserved_b4: [u8; 0x0c],
        /// c0: the clock and user space.
        pub user_clock: UserClockCaps,
        _reserved_c4: [u8; 0x08],
        /// cc: rates that QPs can be limited to, a count; zero if there is no rate limit.
        pub num_rates: U16,
        _reserved_ce: U16,
        /// d0: highest rate limit.
        pub max_rate: RateLimit,
        /// d2: lowest rate limit.
        pub min_rate: RateLimit,
        _reserved_d4: [u8; 0x10],
        /// e4: offset of the health buffer in BAR0, in bytes; zero if there is none.
        pub health_buffer: U32,
        _reserved_e8: [u8; 0x18],
    }
}

offsets! { QueryDevCap:
    qp = 0x10, srq = 0x14, cq = 0x18, mpt_eq = 0x1c, mtt = 0x20, rdma = 0x28, ib_port = 0x34, msg = 0x38,
    rate = 0x3c, ext_flags = 0x40, flags = 0x44, uar = 0x48, bf = 0x4c, sq = 0x50, rq = 0x54, eth = 0x5c,
    mcg = 0x60, pd_xrcd = 0x64, max_counters = 0x68, ext_flags2 = 0x70, fs = 0x74, stride = 0x78,
    rdmarc_entry_sz = 0x80, d_mpt_entry_sz = 0x92, bmme = 0x94, reserved_lkey = 0x98, firmware = 0x9c,
    max_icm_sz = 0xa0, dmfs_high_rate_qpn_base = 0xa8, mad_demux = 0xb0, user_clock = 0xc0,
    num_rates = 0xcc, max_rate = 0xd0, min_rate = 0xd2, health_buffer = 0xe4,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::testing::golden as at;

    type C = QueryDevCap;

    #[test]
    fn object_counts_are_where_linux_reads_them() {
        at(|c: &mut C| c.qp.set_log2_max_srq_sz(14), 0x10, &[14]);
        at(|c: &mut C| c.qp.set_log2_max_qp_sz(14), 0x11, &[14]);
        at(|c: &mut C| c.qp.set_log2_rsvd_qps(6), 0x12, &[0x06]);
        at(|c: &mut C| c.qp.set_log2_max_qps(0x1f), 0x13, &[0x1f]);
        at(|c: &mut C| c.srq.set_log2_rsvd_srqs(6), 0x14, &[0x60]);
        at(|c: &mut C| c.srq.set_log2_max_srqs(16), 0x15, &[0x10]);
        at(|c: &mut C| c.cq.set_num_rsvd_eqs(8), 0x18, &[8]);
        at(|c: &mut C| c.cq.set_log2_max_cq_sz(22), 0x19, &[22]);
        at(|c: &mut C| c.cq.set_log2_rsvd_cqs(7), 0x1a, &[7]);
        at(|c: &mut C| c.cq.set_log2_max_cqs(16), 0x1b, &[16]);
        at(|c: &mut C| c.mpt_eq.set_log2_max_eq_sz(22), 0x1c, &[22]);
        at(|c: &mut C| c.mpt_eq.set_log2_max_mpts(0x3f), 0x1d, &[0x3f]);
        at(|c: &mut C| c.mpt_eq.set_log2_rsvd_eqs(3), 0x1e, &[3]);
        at(|c: &mut C| c.mpt_eq.set_log2_max_eqs(9), 0x1f, &[9]);
        at(|c: &mut C| c.mtt.set_log2_rsvd_mtts(4), 0x20, &[0x40]);
        at(|c: &mut C| c.mtt.set_log2_max_mrw_sz(40), 0x21, &[40]);
        at(|c: &mut C| c.mtt.set_log2_rsvd_mrws(8), 0x22, &[8]);
        at(|c: &mut C| c.mtt.set_log2_max_mtts(24), 0x23, &[24]);
        at(|c: &mut C| c.sys_eqs.set_num_sys_eqs(0xfff), 0x26, &[0x0f, 0xff]);
        at(|c: &mut C| c.mcg.set_log2_max_qp_mcg(8), 0x61, &[8]);
        at(|c: &mut C| c.mcg.set_num_rsvd_mcgs(3), 0x62, &[3]);
        at(|c: &mut C| c.mcg.set_log2_max_mcgs(13), 0x63, &[13]);
        at(|c: &mut C| c.pd_xrcd.set_num_rsvd_pds(4), 0x64, &[0x40]);
        at(|c: &mut C| c.pd_xrcd.set_log2_max_pds(15), 0x65, &[15]);
        at(|c: &mut C| c.pd_xrcd.set_num_rsvd_xrcds(1), 0x66, &[0x10]);
        at(|c: &mut C| c.pd_xrcd.set_log2_max_xrcds(16), 0x67, &[16]);
    }

    #[test]
    fn transport_limits_are_where_linux_reads_them() {
        at(|c: &mut C| c.rdma.set_log2_max_ra_req_qp(7), 0x29, &[7]);
        at(|c: &mut C| c.rdma.set_log2_max_ra_res_qp(4), 0x2b, &[4]);
        at(|c: &mut C| c.gso_rss.set_log2_max_gso(17), 0x2d, &[17]);
        at(|c: &mut C| c.gso_rss.set_rss_xor(true), 0x2e, &[0x20]);
        at(|c: &mut C| c.gso_rss.set_rss_toeplitz(true), 0x2e, &[0x10]);
        at(|c: &mut C| c.gso_rss.set_log2_max_rss_tbl(7), 0x2e, &[7]);
        at(|c: &mut C| c.gso_rss.set_log2_max_ra_res_global(0x3f), 0x2f, &[0x3f]);
        at(|c: &mut C| c.rsz_srq.set_rsz_srq(true), 0x33, &[1]);
        at(|c: &mut C| c.ib_port.set_port_beacon(true), 0x34, &[0x80]);
        at(|c: &mut C| c.ib_port.set_local_ca_ack_delay(15), 0x35, &[15]);
        at(|c: &mut C| c.ib_port.set_old_mtu_cap(5), 0x36, &[0x50]);
        at(|c: &mut C| c.ib_port.set_old_width_cap(3), 0x36, &[3]);
        at(|c: &mut C| c.ib_port.set_old_vl_cap(8), 0x37, &[0x80]);
        at(|c: &mut C| c.ib_port.set_num_ports(2), 0x37, &[2]);
        at(|c: &mut C| c.msg.set_log2_max_msg(30), 0x38, &[30]);
        at(|c: &mut C| c.msg.set_log2_max_gids(7), 0x3b, &[7]);
        at(|c: &mut C| c.rate.set_stat_rate_support(0x00ff), 0x3d, &[0xff]);
        at(|c: &mut C| c.rate.set_timestamp(true), 0x3e, &[0x80]);
        at(|c: &mut C| c.rate.set_log2_max_pkeys(7), 0x3f, &[7]);
        at(|c: &mut C| c.sq.set_max_sg(32), 0x51, &[32]);
        at(|c: &mut C| c.sq.set_max_desc_sz(1008), 0x52, &[0x03, 0xf0]);
        at(|c: &mut C| c.rq.set_max_sg(32), 0x55, &[32]);
        at(|c: &mut C| c.rq.set_max_desc_sz(512), 0x56, &[0x02, 0x00]);
    }

    #[test]
    fn uar_and_blue_flame_are_where_linux_reads_them() {
        at(|c: &mut C| c.uar.set_num_rsvd_uars(1), 0x48, &[0x10]);
        at(|c: &mut C| c.uar.set_log2_uar_sz_mb(2), 0x49, &[2]);
        at(|c: &mut C| c.uar.set_log2_min_page_sz(12), 0x4b, &[12]);
        at(|c: &mut C| c.bf.set_bf(true), 0x4c, &[0x80]);
        at(|c: &mut C| c.bf.set_log2_bf_reg_sz(9), 0x4d, &[9]);
        at(|c: &mut C| c.bf.set_log2_max_bf_regs_per_page(3), 0x4e, &[3]);
        at(|c: &mut C| c.bf.set_log2_max_bf_pages(10), 0x4f, &[10]);
    }

    #[test]
    fn flags_are_the_bits_that_linux_tests() {
        at(|c: &mut C| c.flags.set_rc(true), 0x47, &[0x01]);
        at(|c: &mut C| c.flags.set_srq(true), 0x47, &[0x40]);
        at(|c: &mut C| c.flags.set_ipoib_csum(true), 0x47, &[0x80]);
        at(|c: &mut C| c.flags.set_dpdp(true), 0x46, &[0x10]);
        at(|c: &mut C| c.flags.set_blh(true), 0x46, &[0x80]);
        at(|c: &mut C| c.flags.set_mem_window(true), 0x45, &[0x01]);
        at(|c: &mut C| c.flags.set_atomic(true), 0x45, &[0x04]);
        at(|c: &mut C| c.flags.set_ud_av_port(true), 0x45, &[0x10]);
        at(|c: &mut C| c.flags.set_ud_mcast(true), 0x45, &[0x20]);
        at(|c: &mut C| c.flags.set_iboe(true), 0x44, &[0x40]);
        at(|c: &mut C| c.ext_flags.set_uc_loopback(true), 0x43, &[0x01]);
        at(|c: &mut C| c.ext_flags.set_wol_port1(true), 0x43, &[0x20]);
        at(|c: &mut C| c.ext_flags.set_udp_rss(true), 0x42, &[0x01]);
        at(|c: &mut C| c.ext_flags.set_counters(true), 0x41, &[0x01]);
        at(|c: &mut C| c.ext_flags.set_sense_support(true), 0x41, &[0x80]);
        at(|c: &mut C| c.ext_flags.set_port_mng_chg_ev(true), 0x40, &[0x08]);
        at(|c: &mut C| c.ext_flags.set_eqe_64b(true), 0x40, &[0x20]);
        at(|c: &mut C| c.ext_flags.set_cqe_64b(true), 0x40, &[0x40]);
        at(|c: &mut C| c.ext_flags2.set_update_qp(true), 0x71, &[0x01]);
        at(|c: &mut C| c.ext_flags2.set_sw_cq_init(true), 0x71, &[0x80]);
        at(|c: &mut C| c.ext_flags2.set_flow_stats(true), 0x70, &[0x10]);
    }

    #[test]
    fn memory_extension_flags_are_the_bits_that_linux_tests() {
        at(|c: &mut C| c.bmme.set_win_type_2b(true), 0x97, &[0x02]);
        at(|c: &mut C| c.bmme.set_local_inv(true), 0x97, &[0x40]);
        at(|c: &mut C| c.bmme.set_remote_inv(true), 0x97, &[0x80]);
        at(|c: &mut C| c.bmme.set_type_2_win(true), 0x96, &[0x02]);
        at(|c: &mut C| c.bmme.set_reserved_lkey(true), 0x96, &[0x04]);
        at(|c: &mut C| c.bmme.set_fast_reg_wr(true), 0x96, &[0x08]);
        at(|c: &mut C| c.bmme.set_phv_en(true), 0x96, &[0x80]);
        at(|c: &mut C| c.bmme.set_roce_v1_v2(true), 0x95, &[0x08]);
        at(|c: &mut C| c.bmme.set_ignore_fcs(true), 0x94, &[0x04]);
        at(|c: &mut C| c.bmme.set_config_dev(true), 0x94, &[0x20]);
    }

    #[test]
    fn later_words_are_where_linux_reads_them() {
        at(|c: &mut C| c.eth.set_user_mac_en(true), 0x5c, &[0x04]);
        at(|c: &mut C| c.eth.set_svlan_by_qp(true), 0x5d, &[0x01]);
        at(|c: &mut C| c.fs.set_dmfs_ipoib(true), 0x74, &[0x80]);
        at(|c: &mut C| c.fs.set_fs_en(true), 0x76, &[0x80]);
        at(|c: &mut C| c.fs.set_sniffer(true), 0x76, &[0x20]);
        at(|c: &mut C| c.fs.set_log2_max_ucast_qp_range(7), 0x76, &[7]);
        at(|c: &mut C| c.fs.set_max_qp_per_entry(9), 0x77, &[9]);
        at(|c: &mut C| c.stride.set_sl_to_vl_event(true), 0x78, &[0x20]);
        at(|c: &mut C| c.stride.set_eqe_stride(true), 0x7a, &[0x80]);
        at(|c: &mut C| c.stride.set_cqe_stride(true), 0x7a, &[0x40]);
        at(|c: &mut C| c.stride.set_qcn(true), 0x7b, &[0x01]);
        at(|c: &mut C| c.firmware.set_reassign_mac(true), 0x9d, &[0x40]);
        at(|c: &mut C| c.firmware.set_diag_per_port(true), 0x9d, &[0x02]);
        at(|c: &mut C| c.firmware.set_ets_cfg(true), 0x9e, &[0x20]);
        at(|c: &mut C| c.firmware.set_vxlan_offloads(true), 0x9e, &[0x08]);
        at(|c: &mut C| c.firmware.set_driver_version(true), 0x9e, &[0x01]);
        at(|c: &mut C| c.firmware.set_recoverable_error_event(true), 0x9f, &[0x80]);
        at(|c: &mut C| c.mad_demux.set_mad_demux(true), 0xb3, &[0x01]);
        at(|c: &mut C| c.user_clock.set_map_clock_to_user(true), 0xc1, &[0x80]);
        at(|c: &mut C| c.max_rate.set_unit(3), 0xd0, &[0xc0]);
        at(|c: &mut C| c.min_rate.set_value(0xfff), 0xd2, &[0x0f, 0xff]);
    }

    #[test]
    fn entry_sizes_are_where_linux_reads_them() {
        at(|c: &mut C| c.rdmarc_entry_sz.set(32), 0x81, &[32]);
        at(|c: &mut C| c.qpc_entry_sz.set(256), 0x82, &[1]);
        at(|c: &mut C| c.aux_entry_sz.set(256), 0x84, &[1]);
        at(|c: &mut C| c.altc_entry_sz.set(64), 0x87, &[64]);
        at(|c: &mut C| c.eqc_entry_sz.set(128), 0x89, &[128]);
        at(|c: &mut C| c.cqc_entry_sz.set(128), 0x8b, &[128]);
        at(|c: &mut C| c.srq_entry_sz.set(128), 0x8d, &[128]);
        at(|c: &mut C| c.c_mpt_entry_sz.set(64), 0x8f, &[64]);
        at(|c: &mut C| c.mtt_entry_sz.set(8), 0x91, &[8]);
        at(|c: &mut C| c.d_mpt_entry_sz.set(128), 0x93, &[128]);
        at(|c: &mut C| c.max_icm_sz.set(1 << 40), 0xa2, &[1]);
    }
}
