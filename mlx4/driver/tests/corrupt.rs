//! Every field that the driver reads from the device, with a lie in it: the driver ends in an error that names
//! the field, or the value is legal, or the table here says why nobody looks.

mod common;
mod fields;

use mlx4::Hca;
use mlx4_wire::cmd::Opcode;
use mlx4_wire::cmd::dev_cap::QueryDevCap;
use mlx4_wire::cmd::fw::{QueryAdapter, QueryFw};
use mlx4_wire::cmd::port::QueryPort;
use mlx4_wire::eqe::{CommandEvent, Eqe, EventType};
use mlx4_wire::layout::Layout;
use mlx4_wire::mad::attr::{GuidInfo, PKeyTable};
use mlx4_wire::mad::header::MadHeader;
use mlx4_wire::mad::portinfo::PortInfo;
use mlx4_wire::mad::smp::{Smp, SmpAttribute};

use fields::Expect::{Ends, Legal, NotChecked, Refused, RefusedOr};
use fields::{Case, Expect, Lab, Operation, Place, fields};

type Table = &'static [(&'static [&'static str], Expect)];

const NARROW: &str = "checked, but none of its few bits' values is too large";
const UNUSED: &str = "the driver doesn't read it";
const TEXT: &str = "shown to people only";
const ANY: &str = "every value is legal";

fn nothing(_: &Hca) -> Result<(), mlx4::Error> {
    Ok(())
}

const QUERY_FW: Table = &[
    (
        &[
            "cmd_interface_rev",
            "error_buf_size",
            "error_buf_offset",
            "error_buf_bar.pair",
            "log2_max_outstanding_cmd",
        ],
        Refused,
    ),
    (&["fw_pages"], RefusedOr(&["MAP_FA", "RUN_FW"])),
    (&["fw_rev_major", "fw_rev_subminor", "fw_rev_minor"], NotChecked(TEXT)),
    (
        &[
            "ppf_id",
            "trace.dt",
            "fw_hour",
            "fw_minutes",
            "fw_seconds",
            "features.ccq",
            "fw_year",
            "fw_month",
            "fw_day",
            "clr_int_base",
            "clr_int_bar.pair",
            "comm_base",
            "comm_bar.pair",
            "clock_offset",
            "clock_bar.pair",
        ],
        NotChecked(UNUSED),
    ),
];

const QUERY_DEV_CAP: Table = &[
    (
        &[
            "qp.log2_max_srq_sz",
            "qp.log2_max_qp_sz",
            "srq.log2_rsvd_srqs",
            "cq.log2_max_cq_sz",
            "cq.log2_rsvd_cqs",
            "mpt_eq.log2_max_eq_sz",
            "mpt_eq.log2_rsvd_eqs",
            "sys_eqs.num_sys_eqs",
            "rdma.log2_max_ra_req_qp",
            "rdma.log2_max_ra_res_qp",
            "ib_port.num_ports",
            "flags.ud",
            "flags.rc",
            "uar.log2_uar_sz_mb",
            "uar.log2_min_page_sz",
            "sq.max_sg",
            "sq.max_desc_sz",
            "rq.max_sg",
            "rq.max_desc_sz",
            "mcg.log2_max_mcgs",
            "rdmarc_entry_sz",
            "qpc_entry_sz",
            "aux_entry_sz",
            "altc_entry_sz",
            "eqc_entry_sz",
            "cqc_entry_sz",
            "srq_entry_sz",
            "c_mpt_entry_sz",
            "mtt_entry_sz",
            "d_mpt_entry_sz",
            "max_icm_sz",
        ],
        Refused,
    ),
    (&["qp.log2_max_qps"], RefusedOr(&["log2_rsvd_qps"])),
    (&["srq.log2_max_srqs"], RefusedOr(&["log2_rsvd_srqs"])),
    (&["cq.log2_max_cqs"], RefusedOr(&["log2_rsvd_cqs"])),
    (&["mpt_eq.log2_max_mpts"], RefusedOr(&["log2_rsvd_mrws"])),
    (&["mpt_eq.log2_max_eqs"], RefusedOr(&["log2_rsvd_eqs", "INIT_HCA"])),
    (&["mtt.log2_max_mtts"], RefusedOr(&["log2_rsvd_mtts"])),
    (&["pd_xrcd.log2_max_pds"], RefusedOr(&["num_rsvd_pds"])),
    (
        &[
            "qp.log2_rsvd_qps",
            "mtt.log2_rsvd_mtts",
            "mtt.log2_rsvd_mrws",
            "msg.log2_max_msg",
            "uar.num_rsvd_uars",
            "pd_xrcd.num_rsvd_pds",
        ],
        Legal(NARROW),
    ),
    (
        &[
            "ib_port.local_ca_ack_delay",
            "ext_flags.port_mng_chg_ev",
            "flags.ud_av_port",
            "flags.atomic",
            "flags.srq",
        ],
        NotChecked(ANY),
    ),
    (
        &[
            "srq.num_rsvd_scqs",
            "srq.log2_max_scqs",
            "cq.num_rsvd_eqs",
            "mtt.log2_max_mrw_sz",
            "gso_rss.log2_max_gso",
            "gso_rss.rss_xor",
            "gso_rss.rss_toeplitz",
            "gso_rss.log2_max_rss_tbl",
            "gso_rss.log2_max_ra_res_global",
            "rsz_srq.rsz_srq",
            "ib_port.port_beacon",
            "ib_port.jumbo",
            "ib_port.eth_10g",
            "ib_port.port_type",
            "ib_port.old_mtu_cap",
            "ib_port.old_width_cap",
            "ib_port.old_vl_cap",
            "msg.log2_drain_size",
            "msg.log2_ethtype",
            "msg.log2_max_gids",
            "rate.stat_rate_support",
            "rate.timestamp",
            "rate.log2_max_pkeys",
            "ext_flags.cqe_64b",
            "ext_flags.eqe_64b",
            "ext_flags.sense_support",
            "ext_flags.set_eth_sched",
            "ext_flags.rss_ip_frag",
            "ext_flags.counters",
            "ext_flags.vep_mc_steer",
            "ext_flags.vep_uc_steer",
            "ext_flags.udp_rss",
            "ext_flags.wol_port2",
            "ext_flags.wol_port1",
            "ext_flags.fcs_keep",
            "ext_flags.uc_loopback",
            "flags.iboe",
            "flags.router",
            "flags.paging",
            "flags.ud_mcast",
            "flags.raw_mcast",
            "flags.apm",
            "flags.mem_window",
            "flags.blh",
            "flags.raw_ipv6",
            "flags.raw_ethertype",
            "flags.dpdp",
            "flags.fcoe",
            "flags.vmm",
            "flags.bad_qkey_cntr",
            "flags.bad_pkey_cntr",
            "flags.ipoib_csum",
            "flags.fcoib",
            "flags.rcm",
            "flags.xrc",
            "flags.uc",
            "bf.bf",
            "bf.log2_bf_reg_sz",
            "bf.log2_max_bf_regs_per_page",
            "bf.log2_max_bf_pages",
            "eth.user_mac_en",
            "eth.svlan_by_qp",
            "mcg.log2_max_qp_mcg",
            "mcg.num_rsvd_mcgs",
            "pd_xrcd.num_rsvd_xrcds",
            "pd_xrcd.log2_max_xrcds",
            "max_counters",
            "ext_flags2.flow_stats",
            "ext_flags2.vlan_control",
            "ext_flags2.sw_cq_init",
            "ext_flags2.vfs_80",
            "ext_flags2.fsm",
            "ext_flags2.lb_src_chk",
            "ext_flags2.update_qp_src_check_lb",
            "ext_flags2.update_qp",
            "fs.dmfs_ipoib",
            "fs.fs_en",
            "fs.sniffer",
            "fs.log2_max_ucast_qp_range",
            "fs.max_qp_per_entry",
            "stride.sl_to_vl_event",
            "stride.eqe_stride",
            "stride.cqe_stride",
            "stride.eth_prot_ctrl",
            "stride.qos_vpp",
            "stride.qcn",
            "bmme.config_dev",
            "bmme.vsd_init2rtr",
            "bmme.ignore_fcs",
            "bmme.port_remap",
            "bmme.roce_v1_v2",
            "bmme.phv_en",
            "bmme.skip_outer_vlan",
            "bmme.fast_reg_wr",
            "bmme.reserved_lkey",
            "bmme.type_2_win",
            "bmme.remote_inv",
            "bmme.local_inv",
            "bmme.lif",
            "bmme.zb",
            "bmme.bl",
            "bmme.mps",
            "bmme.win_type_2b",
            "bmme.bmme",
            "reserved_lkey",
            "firmware.reassign_mac",
            "firmware.diag_per_port",
            "firmware.ets_cfg",
            "firmware.vxlan_offloads",
            "firmware.driver_version",
            "firmware.recoverable_error_event",
            "firmware.eth_backplane",
            "dmfs_high_rate_qpn_base",
            "dmfs_high_rate_qpn_range",
            "mad_demux.mad_demux",
            "user_clock.map_clock_to_user",
            "num_rates",
            "max_rate.unit",
            "max_rate.value",
            "min_rate.unit",
            "min_rate.value",
            "health_buffer",
        ],
        NotChecked(UNUSED),
    ),
];

const QUERY_PORT: Table = &[
    (&["state.ib", "mtu.ib_mtu", "tables.log2_max_gids", "tables.log2_max_pkeys", "vls.max_vl_ib"], Refused),
    (
        &[
            "state.link_up",
            "state.autoneg_complete",
            "state.dmfs_optimized",
            "state.default_sense",
            "state.suggested_eth",
            "state.eth",
            "mtu.autoneg",
            "eth_mtu",
            "ib_link_speed",
            "eth_link_speed",
            "width.ib_port_width",
            "eth_tables.log2_max_vlans",
            "eth_tables.log2_max_macs",
            "vls.max_tc_eth",
            "cur_max_pkey",
            "cur_max_gid",
            "mac",
            "transceiver_type",
            "vendor_oui",
            "wavelength",
            "transceiver_code",
        ],
        NotChecked(UNUSED),
    ),
];

const PORT_INFO: Table = &[
    (&["lid", "master_sm_lid", "link.port_state", "limits.mtu_cap", "lanes.neighbor_mtu"], Refused),
    (&["link.lmc", "lanes.master_sm_sl"], Legal(NARROW)),
    (
        &[
            "gid_prefix",
            "link_width_active",
            "link.link_speed_active",
            "extended_speed.link_speed_ext_active",
            "p_key_violations",
            "q_key_violations",
            "timeout.subnet_timeout",
        ],
        NotChecked(ANY),
    ),
    (
        &[
            "capability_mask.hierarchy_info",
            "capability_mask.multicast_fdb_top",
            "capability_mask.multicast_p_key_trap_suppression",
            "capability_mask.vendor_specific_mads_table",
            "capability_mask.link_speed_width_pairs_table",
            "capability_mask.other_local_changes_notice",
            "capability_mask.client_reregistration",
            "capability_mask.link_round_trip_latency",
            "capability_mask.boot_management",
            "capability_mask.capability_mask_notice",
            "capability_mask.dr_notice",
            "capability_mask.vendor_class",
            "capability_mask.device_management",
            "capability_mask.reinit",
            "capability_mask.snmp_tunneling",
            "capability_mask.communication_management",
            "capability_mask.capability_mask2",
            "capability_mask.extended_speeds",
            "capability_mask.cable_info",
            "capability_mask.p_key_switch_external_port_trap",
            "capability_mask.system_image_guid",
            "capability_mask.sm_disabled",
            "capability_mask.led_info",
            "capability_mask.p_key_nvram",
            "capability_mask.m_key_nvram",
            "capability_mask.sl_mapping",
            "capability_mask.automatic_migration",
            "capability_mask.optional_ipd",
            "capability_mask.trap",
            "capability_mask.notice",
            "capability_mask.is_sm",
        ],
        NotChecked("handed on as a mask"),
    ),
    (
        &[
            "m_key",
            "diag_code",
            "m_key_lease_period",
            "local_port_num",
            "link_width_enabled",
            "link_width_supported",
            "link.link_speed_supported",
            "link.port_physical_state",
            "link.link_down_default_state",
            "link.m_key_protect_bits",
            "link.link_speed_enabled",
            "lanes.vl_cap",
            "lanes.init_type",
            "lanes.vl_high_limit",
            "lanes.vl_arbitration_high_cap",
            "limits.vl_arbitration_low_cap",
            "limits.init_type_reply",
            "limits.vl_stall_count",
            "limits.hoq_life",
            "limits.operational_vls",
            "limits.partition_enforcement_inbound",
            "limits.partition_enforcement_outbound",
            "limits.filter_raw_inbound",
            "limits.filter_raw_outbound",
            "m_key_violations",
            "guid_cap",
            "timeout.client_reregister",
            "timeout.multicast_p_key_trap_suppression_enabled",
            "thresholds.resp_time_value",
            "thresholds.local_phy_errors",
            "thresholds.overrun_errors",
            "max_credit_hint",
            "link_round_trip_latency",
            "capability_mask2",
            "extended_speed.link_speed_ext_supported",
            "extended_speed.link_speed_ext_enabled",
        ],
        NotChecked(UNUSED),
    ),
];

const EQE: Table = &[
    (
        &["event_type", "owner.owner", "token"],
        Ends(&["did not end within"], "no command can be told from it: the one that waits ends in time"),
    ),
    (&["status"], Ends(&["failed with"], "it is the error")),
    (&["out_param"], NotChecked("checked by whoever reads a result; NOP has none")),
    (&["subtype", "function"], NotChecked(UNUSED)),
];

#[test]
fn query_fw() {
    Lab::new(0x0002_c903_0001_0000).check(&Case {
        name: "QUERY_FW",
        place: Place::Mailbox(Opcode::QUERY_FW),
        skip: 0,
        fields: fields::<QueryFw>(),
        operation: nothing,
        table: QUERY_FW,
    });
}

#[test]
fn query_dev_cap() {
    Lab::new(0x0002_c903_0002_0000).check(&Case {
        name: "QUERY_DEV_CAP",
        place: Place::Mailbox(Opcode::QUERY_DEV_CAP),
        skip: 0,
        fields: fields::<QueryDevCap>(),
        operation: nothing,
        table: QUERY_DEV_CAP,
    });
}

#[test]
fn query_port() {
    Lab::new(0x0002_c903_0003_0000).check(&Case {
        name: "QUERY_PORT",
        place: Place::Mailbox(Opcode::QUERY_PORT),
        skip: 0,
        fields: fields::<QueryPort>(),
        operation: nothing,
        table: QUERY_PORT,
    });
}

#[test]
fn query_adapter() {
    Lab::new(0x0002_c903_0004_0000).check(&Case {
        name: "QUERY_ADAPTER",
        place: Place::Mailbox(Opcode::QUERY_ADAPTER),
        skip: 0,
        fields: fields::<QueryAdapter>(),
        operation: nothing,
        table: &[(&["inta_pin", "vsd"], NotChecked(UNUSED)), (&["board_id"], NotChecked(ANY))],
    });
}

#[test]
fn immediate_of_set_icm_size() {
    Lab::new(0x0002_c903_0005_0000).check(&Case {
        name: "SET_ICM_SIZE",
        place: Place::Immediate(Opcode::SET_ICM_SIZE),
        skip: 0,
        fields: vec![("aux_pages".into(), 0, 64)],
        operation: nothing,
        table: &[(&["aux_pages"], RefusedOr(&["MAP_ICM_AUX", "MAP_ICM", "INIT_HCA"]))],
    });
}

fn read_port(hca: &Hca) -> Result<(), mlx4::Error> {
    hca.port(1).map(drop)
}

const SMP: Table = &[
    (&["method", "attribute_id"], Refused),
    (&["status"], Ends(&["answered with status"], "the error has the agent's own status")),
    (
        &[
            "base_version",
            "mgmt_class",
            "class_version",
            "class_specific",
            "transaction_id",
            "attribute_modifier",
        ],
        NotChecked("the agent echoes them, and one command has one answer"),
    ),
];

fn read_tables(hca: &Hca) -> Result<(), mlx4::Error> {
    hca.gids(1)?;
    hca.pkeys(1).map(drop)
}

fn attribute<T: Layout>(name: &'static str, id: SmpAttribute, operation: Operation, table: Table) {
    // Behind the header, the M_Key, the LIDs and what is reserved.
    let place = Place::Mad(id, std::mem::offset_of!(Smp, data));
    let case = Case { name, place, skip: 0, fields: fields::<T>(), operation, table };
    Lab::new(0x0002_c903_0007_0000 + u64::from(id.0)).check(&case);
}

#[test]
fn port_info() {
    attribute::<PortInfo>("PortInfo", SmpAttribute::PORT_INFO, read_port, PORT_INFO);
}

#[test]
fn guid_info() {
    attribute::<GuidInfo>("GUIDInfo", SmpAttribute::GUID_INFO, read_tables, &[(&["guids"], NotChecked(ANY))]);
}

#[test]
fn pkey_table() {
    attribute::<PKeyTable>(
        "P_KeyTable",
        SmpAttribute::P_KEY_TABLE,
        read_tables,
        &[(&["p_keys"], NotChecked(ANY))],
    );
}

#[test]
fn event_queue_entry() {
    // Of commands, from NOP on.
    let mut all = fields::<Eqe>();
    all.retain(|(path, ..)| path != "data");
    let data = fields::<CommandEvent>();
    all.extend(data.into_iter().map(|(path, at, width)| (path, at + 32, width)));
    Lab::new(0x0002_c903_0008_0000).check(&Case {
        name: "EQE (command)",
        place: Place::Event(EventType::COMMAND.0, 0),
        skip: 0,
        fields: all,
        operation: nothing,
        table: EQE,
    });
}

#[test]
fn header_of_an_agents_answer() {
    Lab::new(0x0002_c903_0006_0000).check(&Case {
        name: "MadHeader",
        place: Place::Mad(SmpAttribute::PORT_INFO, 0),
        skip: 0,
        fields: fields::<MadHeader>(),
        operation: read_port,
        table: SMP,
    });
}
