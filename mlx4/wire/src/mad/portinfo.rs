//! PortInfo (IBTA vol. 1, 14.2.5.6): all that a subnet manager reads and sets of a port.

use crate::{U16, U32, U64};

open_enum! {
    /// Logical state of a port.
    pub enum PortState: u8 {
        /// Only in a Set.
        NO_CHANGE = 0,
        DOWN = 1,
        INIT = 2,
        ARMED = 3,
        ACTIVE = 4,
        ACTIVE_DEFER = 5,
    }
}

open_enum! {
    /// Physical state of a port. A Set may only ask for sleep, polling or disabled.
    pub enum PhysState: u8 {
        /// Only in a Set.
        NO_CHANGE = 0,
        SLEEP = 1,
        POLLING = 2,
        DISABLED = 3,
        TRAINING = 4,
        LINK_UP = 5,
        RECOVERY = 6,
        PHY_TEST = 7,
    }
}

/// Link widths: values of the active width, sums for what is supported or enabled.
pub mod link_width {
    /// In a Set: no change.
    pub const NO_CHANGE: u8 = 0;
    /// 1 lane.
    pub const X1: u8 = 1;
    /// 4 lanes.
    pub const X4: u8 = 2;
    /// 8 lanes.
    pub const X8: u8 = 4;
    /// 12 lanes.
    pub const X12: u8 = 8;
    /// 2 lanes.
    pub const X2: u8 = 16;
    /// In a Set: all that are supported.
    pub const SUPPORTED: u8 = 0xff;
}

/// Link speeds up to QDR, for each lane.
pub mod link_speed {
    /// In a Set: no change.
    pub const NO_CHANGE: u8 = 0;
    /// 2.5 Gb/s.
    pub const SDR: u8 = 1;
    /// 5 Gb/s.
    pub const DDR: u8 = 2;
    /// 10 Gb/s; also what an FDR or EDR link shows here.
    pub const QDR: u8 = 4;
    /// In a Set: all that are supported.
    pub const SUPPORTED: u8 = 0xf;
}

/// Extended link speeds.
pub mod link_speed_ext {
    /// In a Set: no change.
    pub const NO_CHANGE: u8 = 0;
    /// 14.0625 Gb/s.
    pub const FDR: u8 = 1;
    /// 25.78125 Gb/s.
    pub const EDR: u8 = 2;
    /// In a Set: none.
    pub const DISABLE: u8 = 0x1e;
    /// In a Set: all that are supported.
    pub const SUPPORTED: u8 = 0x1f;
}

open_enum! {
    /// Codes of a maximum transfer unit.
    pub enum Mtu: u8 {
        B256 = 1,
        B512 = 2,
        B1024 = 3,
        B2048 = 4,
        B4096 = 5,
    }
}

impl Mtu {
    /// The size in bytes of a known code.
    pub const fn bytes(self) -> Option<u32> {
        match self.0 {
            1..=5 => Some(128 << self.0),
            _ => None,
        }
    }
}

open_enum! {
    /// Codes of the number of data virtual lanes.
    pub enum VlCap: u8 {
        NO_CHANGE = 0,
        VL0 = 1,
        VL0_1 = 2,
        VL0_3 = 3,
        VL0_7 = 4,
        VL0_14 = 5,
    }
}

bits! {
    /// CapabilityMask.
    pub struct CapabilityMask: u32 {
        pub hierarchy_info: bool,
        pub multicast_fdb_top: bool,
        pub multicast_p_key_trap_suppression: bool,
        pub vendor_specific_mads_table: bool,
        pub link_speed_width_pairs_table: bool,
        pub other_local_changes_notice: bool,
        pub client_reregistration: bool,
        pub link_round_trip_latency: bool,
        pub boot_management: bool,
        pub capability_mask_notice: bool,
        pub dr_notice: bool,
        pub vendor_class: bool,
        pub device_management: bool,
        pub reinit: bool,
        pub snmp_tunneling: bool,
        pub communication_management: bool,
        pub capability_mask2: bool,
        pub extended_speeds: bool,
        pub cable_info: bool,
        pub p_key_switch_external_port_trap: bool,
        pub system_image_guid: bool,
        pub sm_disabled: bool,
        pub led_info: bool,
        pub p_key_nvram: bool,
        pub m_key_nvram: bool,
        pub sl_mapping: bool,
        pub automatic_migration: bool,
        pub optional_ipd: bool,
        pub trap: bool,
        pub notice: bool,
        pub is_sm: bool,
        __: bool,
    }
}

bits! {
    /// State and speed of the link (offset 20).
    pub struct LinkState: u32 {
        #[bits(4)]
        pub link_speed_supported: u8,
        #[bits(4)]
        pub port_state: PortState,
        #[bits(4)]
        pub port_physical_state: PhysState,
        /// What the physical state becomes when the port goes down: sleep or polling.
        #[bits(4)]
        pub link_down_default_state: PhysState,
        #[bits(2)]
        pub m_key_protect_bits: u8,
        #[bits(3)]
        __: u8,
        #[bits(3)]
        pub lmc: u8,
        #[bits(4)]
        pub link_speed_active: u8,
        #[bits(4)]
        pub link_speed_enabled: u8,
    }
}

bits! {
    /// MTU and virtual lanes (offset 24).
    pub struct LinkLanes: u32 {
        #[bits(4)]
        pub neighbor_mtu: Mtu,
        #[bits(4)]
        pub master_sm_sl: u8,
        #[bits(4)]
        pub vl_cap: VlCap,
        #[bits(4)]
        pub init_type: u8,
        #[bits(8)]
        pub vl_high_limit: u8,
        #[bits(8)]
        pub vl_arbitration_high_cap: u8,
    }
}

bits! {
    /// Capabilities and what the port enforces (offset 28).
    pub struct LinkLimits: u32 {
        #[bits(8)]
        pub vl_arbitration_low_cap: u8,
        #[bits(4)]
        pub init_type_reply: u8,
        #[bits(4)]
        pub mtu_cap: Mtu,
        #[bits(3)]
        pub vl_stall_count: u8,
        #[bits(5)]
        pub hoq_life: u8,
        #[bits(4)]
        pub operational_vls: VlCap,
        pub partition_enforcement_inbound: bool,
        pub partition_enforcement_outbound: bool,
        pub filter_raw_inbound: bool,
        pub filter_raw_outbound: bool,
    }
}

bits! {
    /// Reregistration and subnet timeout (offset 33).
    pub struct SubnetTimeout: u8 {
        /// In a Set: clients shall register again with the subnet administrator.
        pub client_reregister: bool,
        #[bits(2)]
        pub multicast_p_key_trap_suppression_enabled: u8,
        /// Traps are sent no more often than every 4.096 µs × 2^n.
        #[bits(5)]
        pub subnet_timeout: u8,
    }
}

bits! {
    /// Response time and error thresholds (offset 34).
    pub struct ErrorThresholds: u16 {
        #[bits(3)]
        __: u8,
        /// The port answers an SMP within 4.096 µs × 2^n.
        #[bits(5)]
        pub resp_time_value: u8,
        #[bits(4)]
        pub local_phy_errors: u8,
        #[bits(4)]
        pub overrun_errors: u8,
    }
}

bits! {
    /// Extended speeds (offset 3e).
    pub struct ExtendedSpeed: u16 {
        #[bits(4)]
        pub link_speed_ext_active: u8,
        #[bits(4)]
        pub link_speed_ext_supported: u8,
        #[bits(3)]
        __: u8,
        #[bits(5)]
        pub link_speed_ext_enabled: u8,
    }
}

wire! {
    size = 64;
    /// PortInfo.
    pub struct PortInfo {
        /// Management key; 0 lets everyone in.
        pub m_key: U64,
        /// Subnet prefix.
        pub gid_prefix: U64,
        /// Base LID.
        pub lid: U16,
        /// LID of the master subnet manager.
        pub master_sm_lid: U16,
        /// Capabilities.
        pub capability_mask: CapabilityMask,
        /// 0 when all is well.
        pub diag_code: U16,
        /// Seconds without the subnet manager after which the M_Key protects no longer; 0 for never.
        pub m_key_lease_period: U16,
        /// Port that received the SMP.
        pub local_port_num: u8,
        /// Widths enabled.
        pub link_width_enabled: u8,
        /// Widths supported.
        pub link_width_supported: u8,
        /// Width in use.
        pub link_width_active: u8,
        /// State and speed of the link.
        pub link: LinkState,
        /// MTU and virtual lanes.
        pub lanes: LinkLanes,
        /// Capabilities and what the port enforces.
        pub limits: LinkLimits,
        /// SMPs with a wrong M_Key.
        pub m_key_violations: U16,
        /// Packets with a wrong P_Key.
        pub p_key_violations: U16,
        /// Packets with a wrong Q_Key.
        pub q_key_violations: U16,
        /// Entries of the GUID table.
        pub guid_cap: u8,
        /// Reregistration and subnet timeout.
        pub timeout: SubnetTimeout,
        /// Response time and error thresholds.
        pub thresholds: ErrorThresholds,
        /// Credits to hold back, as a hint.
        pub max_credit_hint: U16,
        /// Round-trip latency of the link in 4 ns units, 24 bits.
        pub link_round_trip_latency: U32,
        /// More capabilities, valid if [`CapabilityMask::capability_mask2`] says so.
        pub capability_mask2: U16,
        /// Extended speeds, valid if [`CapabilityMask::extended_speeds`] says so.
        pub extended_speed: ExtendedSpeed,
    }
}

offsets!(PortInfo {
    gid_prefix: 0x08,
    lid: 0x10,
    master_sm_lid: 0x12,
    capability_mask: 0x14,
    diag_code: 0x18,
    m_key_lease_period: 0x1a,
    local_port_num: 0x1c,
    link_width_enabled: 0x1d,
    link_width_active: 0x1f,
    link: 0x20,
    lanes: 0x24,
    limits: 0x28,
    m_key_violations: 0x2c,
    p_key_violations: 0x2e,
    q_key_violations: 0x30,
    guid_cap: 0x32,
    timeout: 0x33,
    thresholds: 0x34,
    max_credit_hint: 0x36,
    link_round_trip_latency: 0x38,
    capability_mask2: 0x3c,
    extended_speed: 0x3e,
});

impl PortInfo {
    /// Bit of the attribute modifier by which the subnet manager says that it knows extended speeds.
    pub const SM_SUPPORTS_EXTENDED_SPEEDS: u32 = 0x8000_0000;
    /// Bits of the attribute modifier that name the port.
    pub const PORT_MASK: u32 = 0xff;
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn capability_mask_of_a_connectx3_reads_as_known() {
        let mask = CapabilityMask::from_bits(U32::new(0x0251_486a));
        assert!(mask.is_sm() && mask.trap() && mask.automatic_migration() && mask.sl_mapping());
        assert!(mask.system_image_guid() && mask.extended_speeds() && mask.communication_management());
        assert!(mask.vendor_class() && mask.capability_mask_notice() && mask.client_reregistration());
        assert_eq!(mask.into_bits().get().count_ones(), 10);
    }

    #[test]
    fn packed_words_have_the_bytes_that_the_kernel_reads() {
        let mut info = PortInfo::new_zeroed();
        info.link = LinkState::new()
            .with_link_speed_supported(7)
            .with_port_state(PortState::ACTIVE)
            .with_port_physical_state(PhysState::LINK_UP)
            .with_link_down_default_state(PhysState::POLLING)
            .with_m_key_protect_bits(1)
            .with_lmc(2)
            .with_link_speed_active(4)
            .with_link_speed_enabled(7);
        info.lanes = LinkLanes::new()
            .with_neighbor_mtu(Mtu::B4096)
            .with_master_sm_sl(3)
            .with_vl_cap(VlCap::VL0_7)
            .with_vl_high_limit(9)
            .with_vl_arbitration_high_cap(8);
        info.limits = LinkLimits::new()
            .with_vl_arbitration_low_cap(8)
            .with_mtu_cap(Mtu::B4096)
            .with_vl_stall_count(7)
            .with_hoq_life(0x12)
            .with_operational_vls(VlCap::VL0_7)
            .with_partition_enforcement_inbound(true);
        info.timeout = SubnetTimeout::new().with_client_reregister(true).with_subnet_timeout(18);
        info.thresholds =
            ErrorThresholds::new().with_resp_time_value(8).with_local_phy_errors(8).with_overrun_errors(9);
        info.extended_speed = ExtendedSpeed::new()
            .with_link_speed_ext_active(1)
            .with_link_speed_ext_supported(1)
            .with_link_speed_ext_enabled(0x1f);
        let bytes = info.as_bytes();
        assert_eq!(bytes[0x20..0x24], [0x74, 0x52, 0x42, 0x47]);
        assert_eq!(bytes[0x24..0x28], [0x53, 0x40, 9, 8]);
        assert_eq!(bytes[0x28..0x2c], [8, 0x05, 0xf2, 0x48]);
        assert_eq!(bytes[0x33..0x36], [0x92, 8, 0x89]);
        assert_eq!(bytes[0x3e..], [0x11, 0x1f]);
    }

    #[test]
    fn mtu_codes_are_powers_of_two() {
        assert_eq!(Mtu::B256.bytes(), Some(256));
        assert_eq!(Mtu::B4096.bytes(), Some(4096));
        assert_eq!(Mtu(0).bytes(), None);
        assert_eq!(Mtu(6).bytes(), None);
    }
}
