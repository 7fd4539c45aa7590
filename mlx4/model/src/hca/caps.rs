//! The limits and capabilities of this ConnectX-3, in one place: QUERY_DEV_CAP and QUERY_PORT report them,
//! and the commands hold the driver to them.
//!
//! Not offered, and so reported absent: BlueFlame, zero-based windows, path migration, checksum offload, Ethernet,
//! counters, flow steering.

use mlx4_wire::cmd::dev_cap::QueryDevCap;
use zerocopy::FromZeros;

use super::runset::RunSet;

pub(crate) const LOG2_MAX_QPS: u8 = 18;
pub(crate) const LOG2_MAX_SRQS: u8 = 16;
pub(crate) const LOG2_MAX_CQS: u8 = 16;
pub(crate) const LOG2_MAX_EQS: u8 = 9;
pub(crate) const LOG2_MAX_MPTS: u8 = 20;
/// Multicast groups: hash heads and overflow entries together.
pub(crate) const LOG2_MAX_MCGS: u8 = 13;
pub(crate) const LOG2_MAX_EQ_ENTRIES: u8 = 22;
pub(crate) const LOG2_MAX_CQ_ENTRIES: u8 = 22;
/// Work requests in a send or receive queue.
pub(crate) const LOG2_MAX_QP_ENTRIES: u8 = 14;
/// Work requests in an SRQ.
pub(crate) const LOG2_MAX_SRQ_ENTRIES: u8 = 14;
/// UAR pages of 4 KiB: half of BAR2, whose other half would be BlueFlame.
pub(crate) const LOG2_UARS: u8 = 10;
/// Largest message in bytes.
pub(crate) const LOG2_MAX_MESSAGE: u8 = 30;
/// Largest payload of a large send (LSO) in bytes.
pub(crate) const LOG2_MAX_LARGE_SEND: u8 = 17;
/// Largest send WQE in bytes.
pub(crate) const MAX_SEND_DESCRIPTOR: u16 = 1008;
/// Largest receive WQE in bytes.
pub(crate) const MAX_RECEIVE_DESCRIPTOR: u16 = 512;
/// XRC domains; every number of a context's field is one.
pub(crate) const LOG2_MAX_XRCDS: u8 = 16;
/// Pieces in a scatter or gather list.
pub(crate) const MAX_SGES: u8 = 32;
/// RDMA reads and atomics under way at once, of a requester and of a responder.
pub(crate) const LOG2_MAX_REQUESTER_READS: u8 = 7;
pub(crate) const LOG2_MAX_RESPONDER_READS: u8 = 4;
pub(crate) const LOG2_RESERVED_QPS: u8 = 6;
pub(crate) const LOG2_RESERVED_SRQS: u8 = 6;
pub(crate) const LOG2_RESERVED_CQS: u8 = 7;
pub(crate) const LOG2_RESERVED_EQS: u8 = 3;
pub(crate) const LOG2_RESERVED_MPTS: u8 = 8;
/// Bytes of ICM; nothing can be mapped beyond.
pub(crate) const MAX_ICM_BYTES: u64 = 1 << 40;
/// Distance of entries in the ICM tables, in bytes.
pub(crate) const QPC_BYTES: u16 = 256;
pub(crate) const AUXC_BYTES: u16 = 256;
pub(crate) const ALTC_BYTES: u16 = 64;
pub(crate) const RDMARC_BYTES: u16 = 32;
pub(crate) const CQC_BYTES: u16 = 128;
pub(crate) const EQC_BYTES: u16 = 128;
pub(crate) const SRQC_BYTES: u16 = 128;
pub(crate) const CMPT_BYTES: u16 = 64;
pub(crate) const DMPT_BYTES: u16 = 128;
pub(crate) const MTT_BYTES: u16 = 8;

const _: () = assert!(1 << LOG2_MAX_QPS == RunSet::CAPACITY);

/// Firmware version, as `ibv_devinfo` and `vstat` show it: 2.42.5700.
pub(crate) const FIRMWARE: (u16, u16, u16) = (2, 42, 5700);
/// Firmware area that MAP_FA must give, in 4 KiB pages.
pub(crate) const FIRMWARE_PAGES: u16 = 0x400;
/// log2 of the commands that may be outstanding in event mode.
pub(crate) const LOG2_MAX_COMMANDS: u8 = 4;
/// P_Keys and GIDs of a port.
pub(crate) const LOG2_PORT_TABLE: u8 = 7;

/// The answer of QUERY_DEV_CAP.
pub(crate) fn query_dev_cap(ports: u8) -> QueryDevCap {
    let mut cap = QueryDevCap::new_zeroed();
    objects(&mut cap);
    rings(&mut cap);
    flags(&mut cap);
    entry_sizes(&mut cap);
    cap.ib_port.set_num_ports(ports);
    cap.ib_port.set_local_ca_ack_delay(15);
    cap.ib_port.set_old_vl_cap(8);
    cap.msg.set_log2_max_msg(LOG2_MAX_MESSAGE);
    cap.msg.set_log2_max_gids(LOG2_PORT_TABLE);
    cap.rate.set_log2_max_pkeys(LOG2_PORT_TABLE);
    cap.uar.set_num_rsvd_uars(1);
    cap.uar.set_log2_uar_sz_mb(LOG2_UARS - 8);
    cap.uar.set_log2_min_page_sz(9);
    cap.max_icm_sz.set(MAX_ICM_BYTES);
    cap
}

fn objects(cap: &mut QueryDevCap) {
    cap.qp.set_log2_max_qps(LOG2_MAX_QPS);
    cap.qp.set_log2_rsvd_qps(LOG2_RESERVED_QPS);
    cap.srq.set_log2_max_srqs(LOG2_MAX_SRQS);
    cap.srq.set_log2_rsvd_srqs(LOG2_RESERVED_SRQS);
    cap.cq.set_log2_max_cqs(LOG2_MAX_CQS);
    cap.cq.set_log2_rsvd_cqs(LOG2_RESERVED_CQS);
    cap.cq.set_num_rsvd_eqs(1 << LOG2_RESERVED_EQS);
    cap.mpt_eq.set_log2_max_eqs(LOG2_MAX_EQS);
    cap.mpt_eq.set_log2_rsvd_eqs(LOG2_RESERVED_EQS);
    cap.mpt_eq.set_log2_max_mpts(LOG2_MAX_MPTS);
    cap.mtt.set_log2_rsvd_mrws(LOG2_RESERVED_MPTS);
    cap.mtt.set_log2_rsvd_mtts(4);
    cap.mtt.set_log2_max_mtts(28);
    cap.mtt.set_log2_max_mrw_sz(40);
    cap.mcg.set_log2_max_mcgs(LOG2_MAX_MCGS);
    cap.mcg.set_log2_max_qp_mcg(8);
    cap.pd_xrcd.set_num_rsvd_pds(4);
    cap.pd_xrcd.set_log2_max_pds(15);
    cap.pd_xrcd.set_log2_max_xrcds(LOG2_MAX_XRCDS);
}

fn rings(cap: &mut QueryDevCap) {
    cap.qp.set_log2_max_qp_sz(LOG2_MAX_QP_ENTRIES);
    cap.qp.set_log2_max_srq_sz(LOG2_MAX_SRQ_ENTRIES);
    cap.cq.set_log2_max_cq_sz(LOG2_MAX_CQ_ENTRIES);
    cap.mpt_eq.set_log2_max_eq_sz(LOG2_MAX_EQ_ENTRIES);
    cap.rdma.set_log2_max_ra_req_qp(LOG2_MAX_REQUESTER_READS);
    cap.rdma.set_log2_max_ra_res_qp(LOG2_MAX_RESPONDER_READS);
    cap.gso_rss.set_log2_max_gso(LOG2_MAX_LARGE_SEND);
    cap.sq.set_max_sg(MAX_SGES);
    cap.sq.set_max_desc_sz(MAX_SEND_DESCRIPTOR);
    cap.rq.set_max_sg(MAX_SGES);
    cap.rq.set_max_desc_sz(MAX_RECEIVE_DESCRIPTOR);
}

fn flags(cap: &mut QueryDevCap) {
    cap.flags.set_rc(true);
    cap.flags.set_uc(true);
    cap.flags.set_ud(true);
    cap.flags.set_srq(true);
    cap.flags.set_xrc(true);
    cap.flags.set_bad_pkey_cntr(true);
    cap.flags.set_bad_qkey_cntr(true);
    cap.flags.set_blh(true);
    cap.flags.set_mem_window(true);
    cap.flags.set_atomic(true);
    cap.flags.set_ud_av_port(true);
    cap.flags.set_ud_mcast(true);
    cap.ext_flags.set_port_mng_chg_ev(true);
    cap.ext_flags.set_cqe_64b(true);
    cap.ext_flags.set_eqe_64b(true);
    cap.bmme.set_local_inv(true);
    cap.bmme.set_remote_inv(true);
    cap.bmme.set_type_2_win(true);
    cap.bmme.set_win_type_2b(true);
    cap.bmme.set_fast_reg_wr(true);
}

fn entry_sizes(cap: &mut QueryDevCap) {
    cap.rdmarc_entry_sz.set(RDMARC_BYTES);
    cap.qpc_entry_sz.set(QPC_BYTES);
    cap.aux_entry_sz.set(AUXC_BYTES);
    cap.altc_entry_sz.set(ALTC_BYTES);
    cap.eqc_entry_sz.set(EQC_BYTES);
    cap.cqc_entry_sz.set(CQC_BYTES);
    cap.srq_entry_sz.set(SRQC_BYTES);
    cap.c_mpt_entry_sz.set(CMPT_BYTES);
    cap.mtt_entry_sz.set(MTT_BYTES);
    cap.d_mpt_entry_sz.set(DMPT_BYTES);
}

/// Virtual lanes of a port.
pub(crate) const MAX_VLS: u8 = 8;
