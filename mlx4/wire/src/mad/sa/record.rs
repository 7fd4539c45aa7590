//! The other records of subnet administration (IBTA vol. 1, 15.2.5).

use super::super::attr::{
    GuidInfo, LinearForwardingTable, MulticastForwardingTable, NodeDescription, NodeInfo, PKeyTable,
    SlToVlTable, SmInfo, SwitchInfo, VlArbitrationTable,
};
use super::super::portinfo::PortInfo;
use crate::{U16, U32, U64};

wire! {
    size = 108;
    /// NodeRecord: one for each port of a channel adapter, one for a switch.
    pub struct NodeRecord {
        /// LID.
        pub lid: U16,
        /// Zero.
        pub _reserved: U16,
        /// NodeInfo.
        pub node_info: NodeInfo,
        /// NodeDescription.
        pub node_description: NodeDescription,
    }
}

components! { NodeRecord {
    MASK_LID: 0,
    MASK_BASE_VERSION: 2,
    MASK_CLASS_VERSION: 3,
    MASK_NODE_TYPE: 4,
    MASK_NUM_PORTS: 5,
    MASK_SYSTEM_IMAGE_GUID: 6,
    MASK_NODE_GUID: 7,
    MASK_PORT_GUID: 8,
    MASK_PARTITION_CAP: 9,
    MASK_DEVICE_ID: 10,
    MASK_REVISION: 11,
    MASK_LOCAL_PORT_NUM: 12,
    MASK_VENDOR_ID: 13,
    MASK_NODE_DESCRIPTION: 14,
} }

wire! {
    size = 68;
    /// PortInfoRecord. All ports of a switch have the LID of its port 0.
    pub struct PortInfoRecord {
        /// LID.
        pub lid: U16,
        /// Port number.
        pub port_num: u8,
        /// Bit 7: the record shall be complete.
        pub options: u8,
        /// PortInfo.
        pub port_info: PortInfo,
    }
}

offsets!(PortInfoRecord { port_num: 2, port_info: 4 });

components! { PortInfoRecord {
    MASK_LID: 0,
    MASK_PORT_NUM: 1,
    MASK_OPTIONS: 2,
    MASK_M_KEY: 3,
    MASK_GID_PREFIX: 4,
    MASK_BASE_LID: 5,
    MASK_MASTER_SM_LID: 6,
    MASK_CAPABILITY_MASK: 7,
    MASK_DIAG_CODE: 8,
    MASK_M_KEY_LEASE_PERIOD: 9,
    MASK_LOCAL_PORT_NUM: 10,
    MASK_LINK_WIDTH_ENABLED: 11,
    MASK_LINK_WIDTH_SUPPORTED: 12,
    MASK_LINK_WIDTH_ACTIVE: 13,
    MASK_LINK_SPEED_SUPPORTED: 14,
    MASK_PORT_STATE: 15,
    MASK_PORT_PHYSICAL_STATE: 16,
    MASK_LINK_DOWN_DEFAULT_STATE: 17,
    MASK_M_KEY_PROTECT_BITS: 18,
    MASK_LMC: 20,
    MASK_LINK_SPEED_ACTIVE: 21,
    MASK_LINK_SPEED_ENABLED: 22,
    MASK_NEIGHBOR_MTU: 23,
    MASK_MASTER_SM_SL: 24,
    MASK_VL_CAP: 25,
} }

impl PortInfoRecord {
    /// Bit of the attribute modifier: the capability mask matches if it has all bits of the query's.
    pub const MATCH_CAPABILITY_MASK: u32 = 0x8000_0000;
}

wire! {
    size = 16;
    /// SLtoVLMappingTableRecord.
    pub struct SlToVlTableRecord {
        /// LID.
        pub lid: U16,
        /// Input port.
        pub input_port_num: u8,
        /// Output port.
        pub output_port_num: u8,
        /// Zero.
        pub _reserved: [u8; 4],
        /// The table.
        pub table: SlToVlTable,
    }
}

components! { SlToVlTableRecord { MASK_LID: 0, MASK_INPUT_PORT_NUM: 1, MASK_OUTPUT_PORT_NUM: 2 } }

wire! {
    size = 24;
    /// SwitchInfoRecord.
    pub struct SwitchInfoRecord {
        /// LID.
        pub lid: U16,
        /// Zero.
        pub _reserved: U16,
        /// SwitchInfo.
        pub switch_info: SwitchInfo,
    }
}

components! { SwitchInfoRecord { MASK_LID: 0 } }

wire! {
    size = 72;
    /// LinearForwardingTableRecord.
    pub struct LftRecord {
        /// LID.
        pub lid: U16,
        /// Block of 64 LIDs.
        pub block_num: U16,
        /// Zero.
        pub _reserved: [u8; 4],
        /// The block.
        pub table: LinearForwardingTable,
    }
}

components! { LftRecord { MASK_LID: 0, MASK_BLOCK_NUM: 1 } }

bits! {
    /// Which part of a multicast forwarding table.
    pub struct MftBlock: u16 {
        /// 16 ports each.
        #[bits(4)]
        pub position: u16,
        #[bits(3)]
        __: u16,
        /// 32 LIDs each.
        #[bits(9)]
        pub block_num: u16,
    }
}

wire! {
    size = 72;
    /// MulticastForwardingTableRecord.
    pub struct MftRecord {
        /// LID.
        pub lid: U16,
        /// Position and block.
        pub block: MftBlock,
        /// Zero.
        pub _reserved: [u8; 4],
        /// The block.
        pub table: MulticastForwardingTable,
    }
}

components! { MftRecord { MASK_LID: 0, MASK_POSITION: 1, MASK_BLOCK_NUM: 3 } }

wire! {
    size = 25;
    /// SMInfoRecord.
    pub struct SmInfoRecord {
        /// LID.
        pub lid: U16,
        /// Zero.
        pub _reserved: U16,
        /// SMInfo.
        pub sm_info: SmInfo,
    }
}

components! { SmInfoRecord {
    MASK_LID: 0,
    MASK_GUID: 2,
    MASK_SM_KEY: 3,
    MASK_ACT_COUNT: 4,
    MASK_PRIORITY: 5,
    MASK_SM_STATE: 6,
} }

wire! {
    size = 6;
    /// LinkRecord: a link in one direction.
    pub struct LinkRecord {
        /// LID at the near end.
        pub from_lid: U16,
        /// Port at the near end.
        pub from_port: u8,
        /// Port at the far end.
        pub to_port: u8,
        /// LID at the far end.
        pub to_lid: U16,
    }
}

components! { LinkRecord { MASK_FROM_LID: 0, MASK_FROM_PORT: 1, MASK_TO_PORT: 2, MASK_TO_LID: 3 } }

wire! {
    size = 72;
    /// GUIDInfoRecord.
    pub struct GuidInfoRecord {
        /// LID.
        pub lid: U16,
        /// Block of 8 GUIDs.
        pub block_num: u8,
        /// Zero.
        pub _reserved3: u8,
        /// Zero.
        pub _reserved4: [u8; 4],
        /// The block. In a Set, 0 asks the administrator to choose.
        pub guid_info: GuidInfo,
    }
}

components! { GuidInfoRecord {
    MASK_LID: 0,
    MASK_BLOCK_NUM: 1,
    MASK_GID0: 4,
    MASK_GID1: 5,
    MASK_GID2: 6,
    MASK_GID3: 7,
    MASK_GID4: 8,
    MASK_GID5: 9,
    MASK_GID6: 10,
    MASK_GID7: 11,
} }

wire! {
    size = 176;
    /// ServiceRecord.
    pub struct ServiceRecord {
        /// Service id.
        pub service_id: U64,
        /// GID of the port that serves.
        pub service_gid: [u8; 16],
        /// Partition key.
        pub service_p_key: U16,
        /// Zero.
        pub _reserved: U16,
        /// Lease in seconds.
        pub service_lease: U32,
        /// Key of the owner.
        pub service_key: [u8; 16],
        /// Name, padded with zeros.
        pub service_name: [u8; 64],
        /// Data in bytes.
        pub service_data8: [u8; 16],
        /// Data in 16-bit words.
        pub service_data16: [U16; 8],
        /// Data in 32-bit words.
        pub service_data32: [U32; 4],
        /// Data in 64-bit words.
        pub service_data64: [U64; 2],
    }
}

offsets!(ServiceRecord {
    service_p_key: 0x18,
    service_lease: 0x1c,
    service_key: 0x20,
    service_name: 0x30,
    service_data8: 0x70,
    service_data64: 0xa0
});

components! { ServiceRecord {
    MASK_SERVICE_ID: 0,
    MASK_SERVICE_GID: 1,
    MASK_SERVICE_P_KEY: 2,
    MASK_SERVICE_LEASE: 4,
    MASK_SERVICE_KEY: 5,
    MASK_SERVICE_NAME: 6,
    MASK_SERVICE_DATA8_0: 7,
    MASK_SERVICE_DATA16_0: 23,
    MASK_SERVICE_DATA32_0: 31,
    MASK_SERVICE_DATA64_0: 35,
} }

impl ServiceRecord {
    /// A lease without end.
    pub const LEASE_INFINITE: u32 = 0xffff_ffff;
}

wire! {
    size = 72;
    /// P_KeyTableRecord.
    pub struct PKeyTableRecord {
        /// LID.
        pub lid: U16,
        /// Block of 32 P_Keys.
        pub block_num: U16,
        /// Port number.
        pub port_num: u8,
        /// Zero.
        pub _reserved: [u8; 3],
        /// The block.
        pub table: PKeyTable,
    }
}

components! { PKeyTableRecord { MASK_LID: 0, MASK_BLOCK_NUM: 1, MASK_PORT_NUM: 2 } }

wire! {
    size = 72;
    /// VLArbitrationTableRecord.
    pub struct VlArbitrationTableRecord {
        /// LID.
        pub lid: U16,
        /// Output port.
        pub output_port_num: u8,
        /// Block.
        pub block_num: u8,
        /// Zero.
        pub _reserved: [u8; 4],
        /// The block.
        pub table: VlArbitrationTable,
    }
}

components! { VlArbitrationTableRecord { MASK_LID: 0, MASK_OUTPUT_PORT_NUM: 1, MASK_BLOCK_NUM: 2 } }

bits! {
    /// Who is to be told, and how fast it answers.
    pub struct InformQp: u32 {
        #[bits(24)]
        pub qpn: u32,
        #[bits(3)]
        __: u32,
        #[bits(5)]
        pub resp_time_value: u32,
    }
}

wire! {
    size = 36;
    /// InformInfo (13.4.8.3): a subscription to reports.
    pub struct InformInfo {
        /// Events at this port only; zero for the range of LIDs.
        pub gid: [u8; 16],
        /// First LID of the range; ffff for all.
        pub lid_range_begin: U16,
        /// Last LID of the range.
        pub lid_range_end: U16,
        /// Zero.
        pub _reserved: U16,
        /// 1 for events that the standard defines.
        pub is_generic: u8,
        /// 1 to subscribe, 0 to end it.
        pub subscribe: u8,
        /// A [`NoticeType`](crate::mad::notice::NoticeType); ffff for all.
        pub notice_type: U16,
        /// A [`Trap`](crate::mad::notice::Trap), or a device id; ffff for all.
        pub trap_number: U16,
        /// Who is to be told.
        pub qp: InformQp,
        /// A [`Producer`](crate::mad::notice::Producer), or a vendor id, 24 bits; ffffff for all.
        pub producer: U32,
    }
}

offsets!(InformInfo {
    lid_range_begin: 0x10,
    is_generic: 0x16,
    notice_type: 0x18,
    trap_number: 0x1a,
    qp: 0x1c,
    producer: 0x20
});

impl InformInfo {
    /// All LIDs, types or trap numbers.
    pub const ALL: u16 = 0xffff;
    /// All producers.
    pub const ALL_PRODUCERS: u32 = 0xff_ffff;
}

wire! {
    size = 60;
    /// InformInfoRecord.
    pub struct InformInfoRecord {
        /// GID of the subscriber.
        pub subscriber_gid: [u8; 16],
        /// Number among the subscriber's.
        pub subscriber_enum: U16,
        /// Zero.
        pub _reserved: [u8; 6],
        /// The subscription.
        pub inform_info: InformInfo,
    }
}

components! { InformInfoRecord { MASK_SUBSCRIBER_GID: 0, MASK_SUBSCRIBER_ENUM: 1 } }

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn link_record_is_six_bytes_in_order() {
        let link = LinkRecord { from_lid: U16::new(1), from_port: 2, to_port: 3, to_lid: U16::new(4) };
        assert_eq!(link.as_bytes(), [0, 1, 2, 3, 0, 4]);
    }

    #[test]
    fn node_record_has_the_description_at_2c() {
        let mut record = NodeRecord::new_zeroed();
        record.node_description[0] = b'x';
        assert_eq!(record.as_bytes()[0x2c], b'x');
    }

    #[test]
    fn multicast_block_and_position_share_a_word() {
        let block = MftBlock::new().with_position(2).with_block_num(0x101);
        assert_eq!(block.as_bytes(), [0x21, 0x01]);
    }

    #[test]
    fn subscription_has_the_queue_pair_above_the_response_time() {
        let qp = InformQp::new().with_qpn(1).with_resp_time_value(18);
        assert_eq!(qp.as_bytes(), [0, 0, 1, 18]);
        let mut info = InformInfo::new_zeroed();
        info.subscribe = 1;
        info.trap_number.set(InformInfo::ALL);
        assert_eq!(info.as_bytes()[0x16..0x1c], [0, 1, 0, 0, 0xff, 0xff]);
    }
}
