//! What agents and ports say.

use super::super::lab::Expect::{Ends, Free, Refused, RefusedAt, RefusedWith, Unread};
use super::super::lab::Table;
use super::CODES;

pub const PORT_INFO: Table = &[
    (
        &["lid", "master_sm_lid", "link.port_state", "limits.mtu_cap", "lanes.neighbor_mtu", "lanes.vl_cap"],
        Refused,
    ),
    (&["link.lmc"], RefusedWith("lid", 3)),
    (
        &[
            "gid_prefix",
            "lanes.master_sm_sl",
            "link.port_physical_state",
            "limits.init_type_reply",
            "link_width_active",
            "link.link_speed_active",
            "extended_speed.link_speed_ext_active",
            "p_key_violations",
            "q_key_violations",
            "timeout.subnet_timeout",
        ],
        Free(CODES),
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
        Free("handed on as a mask"),
    ),
    (
        &["capability_mask2"],
        Ends(&[], "no mask, as long as the first one doesn't say that there is a second"),
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
            "link.link_down_default_state",
            "link.m_key_protect_bits",
            "link.link_speed_enabled",
            "lanes.init_type",
            "lanes.vl_high_limit",
            "lanes.vl_arbitration_high_cap",
            "limits.vl_arbitration_low_cap",
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
            "extended_speed.link_speed_ext_supported",
            "extended_speed.link_speed_ext_enabled",
        ],
        Unread,
    ),
];

pub const NODE_INFO: Table = &[
    (&["node_type", "num_ports", "partition_cap", "local_port_vendor.local_port_num"], Refused),
    (
        &[
            "base_version",
            "class_version",
            "system_image_guid",
            "node_guid",
            "port_guid",
            "device_id",
            "revision",
            "local_port_vendor.vendor_id",
        ],
        Free(CODES),
    ),
];

pub const GUID_INFO: Table = &[(&["guids"], Free(CODES))];

pub const P_KEY_TABLE: Table = &[(&["p_keys"], Free(CODES))];

pub const SL_TO_VL: Table = &[(&["pairs"], RefusedAt(u64::MAX / 15 * 9, &["without a virtual lane"]))];

/// All but the attribute.
pub const SMP: Table = &[
    (&["header.method", "header.attribute_id"], Refused),
    (&["header.status"], Ends(&["answered with status"], "the error has the agent's own status")),
    (
        &[
            "header.base_version",
            "header.mgmt_class",
            "header.class_version",
            "header.class_specific",
            "header.transaction_id",
            "header.attribute_modifier",
            "m_key",
            "dr_slid",
            "dr_dlid",
            "initial_path",
            "return_path",
        ],
        Unread,
    ),
];
