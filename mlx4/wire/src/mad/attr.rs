//! Attributes of subnet management other than PortInfo and Notice (IBTA vol. 1, 14.2.5).
#![expect(
    missing_debug_implementations,
    reason = "hidden types that zerocopy derives for a tuple struct's field"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{U16, U32, U64};

open_enum! {
    /// Node type.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub enum NodeType: u8 {
        CHANNEL_ADAPTER = 1,
        SWITCH = 2,
        ROUTER = 3,
    }
}

/// NodeDescription: text, padded with zeros.
pub type NodeDescription = [u8; 64];

bits! {
    /// Port that received the SMP, and vendor.
    pub struct LocalPortVendor: u32 {
        #[bits(8)]
        pub local_port_num: u32,
        #[bits(24)]
        pub vendor_id: u32,
    }
}

wire! {
    size = 40;
    /// NodeInfo (14.2.5.3).
    pub struct NodeInfo {
        /// 1.
        pub base_version: u8,
        /// 1.
        pub class_version: u8,
        /// Node type.
        pub node_type: NodeType,
        /// Physical ports; a switch doesn't count its port 0.
        pub num_ports: u8,
        /// GUID of the system that the node is part of.
        pub system_image_guid: U64,
        /// GUID of the node.
        pub node_guid: U64,
        /// GUID of the port that received the SMP; of port 0 on a switch.
        pub port_guid: U64,
        /// P_Key table entries of a channel adapter's port, or of a switch's port 0.
        pub partition_cap: U16,
        /// Device id, as the vendor numbers them.
        pub device_id: U16,
        /// Revision, as the vendor numbers them.
        pub revision: U32,
        /// Local port number and vendor id.
        pub local_port_vendor: LocalPortVendor,
    }
}

offsets!(NodeInfo {
    system_image_guid: 4,
    node_guid: 0xc,
    port_guid: 0x14,
    partition_cap: 0x1c,
    revision: 0x20,
    local_port_vendor: 0x24
});

bits! {
    /// Packet lifetime and port state change of SwitchInfo.
    pub struct SwitchLife: u8 {
        /// Packets are dropped after 4.096 µs × 2^n; more than 19 means never.
        #[bits(5)]
        pub life_time_value: u8,
        /// An external port changed its state for another reason than a Set here. In a Set, 1 clears it.
        pub port_state_change: bool,
        #[bits(2)]
        pub optimized_sl_to_vl_mapping_programming: u8,
    }
}

bits! {
    /// Abilities of SwitchInfo.
    pub struct SwitchAbilities: u8 {
        pub inbound_enforcement_cap: bool,
        pub outbound_enforcement_cap: bool,
        pub filter_raw_inbound_cap: bool,
        pub filter_raw_outbound_cap: bool,
        pub enhanced_port0: bool,
        #[bits(3)]
        __: u8,
    }
}

wire! {
    size = 20;
    /// SwitchInfo (14.2.5.4).
    pub struct SwitchInfo {
        /// Entries of the linear forwarding table.
        pub linear_fdb_cap: U16,
        /// Entries of the random forwarding table.
        pub random_fdb_cap: U16,
        /// Entries of the multicast forwarding table.
        pub multicast_fdb_cap: U16,
        /// Highest LID that the linear forwarding table routes.
        pub linear_fdb_top: U16,
        /// Where unknown unicast LIDs go, with a random forwarding table.
        pub default_port: u8,
        /// Where unknown multicast LIDs go, from other ports than this one.
        pub default_multicast_primary_port: u8,
        /// Where unknown multicast LIDs go, from the primary port.
        pub default_multicast_not_primary_port: u8,
        /// Packet lifetime and port state change.
        pub life: SwitchLife,
        /// LID and LMC combinations of each port, for a random forwarding table.
        pub lids_per_port: U16,
        /// P_Key table entries of each external port.
        pub partition_enforcement_cap: U16,
        /// Abilities.
        pub abilities: SwitchAbilities,
        /// Zero.
        pub _reserved: u8,
        /// Highest multicast LID that the multicast forwarding table routes.
        pub multicast_fdb_top: U16,
    }
}

offsets!(SwitchInfo {
    linear_fdb_top: 6,
    default_port: 8,
    life: 0xb,
    partition_enforcement_cap: 0xe,
    abilities: 0x10,
    multicast_fdb_top: 0x12
});

wire! {
    size = 64;
    /// A block of GUIDInfo (14.2.5.5). Entry 0 of block 0 is the port's own GUID.
    pub struct GuidInfo {
        /// GUIDs; 0 for none.
        pub guids: [U64; 8],
    }
}

wire! {
    size = 64;
    /// A block of P_KeyTable (14.2.5.7).
    pub struct PKeyTable {
        /// P_Keys; an entry whose low 15 bits are 0 is empty.
        pub p_keys: [U16; 32],
    }
}

impl PKeyTable {
    /// The bit of a P_Key that marks a full member.
    pub const FULL_MEMBER: u16 = 0x8000;
}

bits! {
    /// Virtual lanes of two service levels.
    pub struct VlPair: u8 {
        /// Of the even service level; 15 drops its packets.
        #[bits(4)]
        pub even: u8,
        /// Of the odd service level; 15 drops its packets.
        #[bits(4)]
        pub odd: u8,
    }
}

wire! {
    size = 8;
    /// SLtoVLMappingTable (14.2.5.8).
    pub struct SlToVlTable {
        /// Service levels 2k and 2k + 1 at index k.
        pub pairs: [VlPair; 8],
    }
}

bits! {
    /// The virtual lane of an arbitration entry.
    pub struct ArbitratedVl: u8 {
        #[bits(4)]
        __: u8,
        #[bits(4)]
        pub vl: u8,
    }
}

wire! {
    size = 2;
    /// An entry of VLArbitrationTable.
    pub struct VlArbitrationEntry {
        /// Virtual lane.
        pub vl: ArbitratedVl,
        /// Weight in units of 64 bytes; 0 skips the entry.
        pub weight: u8,
    }
}

wire! {
    size = 64;
    /// A block of VLArbitrationTable (14.2.5.9).
    pub struct VlArbitrationTable {
        /// Entries.
        pub entries: [VlArbitrationEntry; 32],
    }
}

wire! {
    size = 64;
    /// A block of LinearForwardingTable (14.2.5.10).
    pub struct LinearForwardingTable {
        /// Egress port of each LID; [`DROP`](Self::DROP) for none.
        pub ports: [u8; 64],
    }
}

impl LinearForwardingTable {
    /// The port of a LID that leads nowhere.
    pub const DROP: u8 = 0xff;
}

wire! {
    size = 64;
    /// A block of MulticastForwardingTable (14.2.5.12): 16 ports of 32 LIDs.
    pub struct MulticastForwardingTable {
        /// Bit k of each mask is port 16 × position + k.
        pub port_masks: [U16; 32],
    }
}

open_enum! {
    /// State of a subnet manager.
    pub enum SmState: u8 {
        NOT_ACTIVE = 0,
        DISCOVERING = 1,
        STANDBY = 2,
        MASTER = 3,
    }
}

open_enum! {
    /// What a Set of SMInfo asks for, in its attribute modifier.
    pub enum SmInfoCommand: u32 {
        HANDOVER = 1,
        ACKNOWLEDGE = 2,
        DISABLE = 3,
        STANDBY = 4,
        DISCOVER = 5,
    }
}

bits! {
    /// Priority and state of a subnet manager.
    pub struct SmPriorityState: u8 {
        /// 15 is the highest.
        #[bits(4)]
        pub priority: u8,
        #[bits(4)]
        pub state: SmState,
    }
}

wire! {
    size = 21;
    /// SMInfo (14.2.5.13).
    pub struct SmInfo {
        /// Port GUID of the subnet manager.
        pub guid: U64,
        /// SM_Key; zero unless the requester is trusted.
        pub sm_key: U64,
        /// Counts while the subnet manager is alive.
        pub act_count: U32,
        /// Priority and state.
        pub priority_state: SmPriorityState,
    }
}

bits! {
    /// LedInfo (14.2.5.15).
    pub struct LedInfo: u32 {
        /// Beacon on.
        pub led_mask: bool,
        #[bits(31)]
        __: u32,
    }
}

wire! {
    size = 64;
    /// ExtendedPortInfo (Mellanox, attribute ff90): the FDR10 speed, bit 0 of each byte.
    pub struct MlnxExtendedPortInfo {
        /// Zero.
        pub _reserved0: [u8; 3],
        /// In a Set: 1 lets the enabled speeds change.
        pub state_change_enable: u8,
        /// Zero.
        pub _reserved4: [u8; 3],
        /// Speeds supported.
        pub link_speed_supported: u8,
        /// Zero.
        pub _reserved8: [u8; 3],
        /// Speeds enabled.
        pub link_speed_enabled: u8,
        /// Zero.
        pub _reserved_c: [u8; 3],
        /// Speed in use.
        pub link_speed_active: u8,
        /// Zero.
        pub _reserved10: [u8; 48],
    }
}

offsets!(MlnxExtendedPortInfo {
    state_change_enable: 3,
    link_speed_supported: 7,
    link_speed_enabled: 0xb,
    link_speed_active: 0xf
});

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn node_info_ends_with_port_and_vendor() {
        let info = NodeInfo {
            node_type: NodeType::CHANNEL_ADAPTER,
            num_ports: 2,
            device_id: U16::new(0x1003),
            local_port_vendor: LocalPortVendor::new().with_local_port_num(1).with_vendor_id(0x2c9),
            ..NodeInfo::new_zeroed()
        };
        assert_eq!(info.as_bytes()[2..4], [1, 2]);
        assert_eq!(info.as_bytes()[0x1e..0x20], [0x10, 0x03]);
        assert_eq!(info.as_bytes()[0x24..], [1, 0, 2, 0xc9]);
    }

    #[test]
    fn port_state_change_is_bit_2_of_its_byte() {
        let life = SwitchLife::new().with_life_time_value(0x12).with_port_state_change(true);
        assert_eq!(life.into_bits(), 0x94);
        assert_eq!(SwitchAbilities::new().with_enhanced_port0(true).into_bits(), 0x08);
    }

    #[test]
    fn sl_0_lies_in_the_high_half_of_the_first_byte() {
        let mut table = SlToVlTable::new_zeroed();
        table.pairs[0] = VlPair::new().with_even(1).with_odd(15);
        assert_eq!(table.as_bytes()[0], 0x1f);
    }

    #[test]
    fn sm_info_keeps_the_priority_above_the_state() {
        let mut info = SmInfo::new_zeroed();
        info.priority_state = SmPriorityState::new().with_priority(14).with_state(SmState::MASTER);
        assert_eq!(info.as_bytes()[20], 0xe3);
    }
}
