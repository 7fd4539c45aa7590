//! The header that all management datagrams share, with its codes (IBTA vol. 1, 13.4).
#![expect(
    missing_debug_implementations,
    reason = "hidden types that zerocopy derives for a tuple struct's field"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{U16, U32, U64};

open_enum! {
    /// Management class.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub enum MgmtClass: u8 {
        SUBN_LID_ROUTED = 0x01,
        SUBN_ADM = 0x03,
        PERF_MGT = 0x04,
        BM = 0x05,
        DEV_MGT = 0x06,
        COMM_MGT = 0x07,
        SNMP = 0x08,
        /// First of the vendor classes without an OUI.
        VENDOR_LOW_FIRST = 0x09,
        CONG_MGT = 0x21,
        SUBN_DIRECTED_ROUTE = 0x81,
    }
}

impl MgmtClass {
    /// Either of the subnet management classes, which belong on QP0.
    pub const fn is_subnet_management(self) -> bool {
        self.0 == Self::SUBN_LID_ROUTED.0 || self.0 == Self::SUBN_DIRECTED_ROUTE.0
    }
}

open_enum! {
    /// Method; bit 7 marks a response.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub enum Method: u8 {
        GET = 0x01,
        SET = 0x02,
        SEND = 0x03,
        TRAP = 0x05,
        REPORT = 0x06,
        TRAP_REPRESS = 0x07,
        GET_TABLE = 0x12,
        GET_TRACE_TABLE = 0x13,
        GET_MULTI = 0x14,
        DELETE = 0x15,
        /// The response to Get and to Set.
        GET_RESP = 0x81,
        REPORT_RESP = 0x86,
        GET_TABLE_RESP = 0x92,
        GET_TRACE_TABLE_RESP = 0x93,
        GET_MULTI_RESP = 0x94,
        DELETE_RESP = 0x95,
    }
}

impl Method {
    /// The bit that marks a response.
    pub const RESPONSE: u8 = 0x80;

    /// Whether the response bit is set.
    pub const fn is_response(self) -> bool {
        self.0 & Self::RESPONSE != 0
    }
}

open_enum! {
    /// Status. In a directed-route SMP bit 15 isn't part of it but tells the direction.
    pub enum Status: u16 {
        GOOD = 0x0000,
        BUSY = 0x0001,
        REDIRECT = 0x0002,
        /// Bad base or class version, or class not supported.
        BAD_VERSION = 0x0004,
        UNSUPPORTED_METHOD = 0x0008,
        UNSUPPORTED_METHOD_ATTRIBUTE = 0x000c,
        /// A value in the attribute or the attribute modifier isn't valid.
        INVALID_VALUE = 0x001c,
        SA_NO_RESOURCES = 0x0100,
        SA_REQ_INVALID = 0x0200,
        SA_NO_RECORDS = 0x0300,
        SA_TOO_MANY_RECORDS = 0x0400,
        SA_REQ_INVALID_GID = 0x0500,
        SA_REQ_INSUFFICIENT_COMPONENTS = 0x0600,
        SA_REQ_DENIED = 0x0700,
        SA_PRIORITY_SUGGESTED = 0x0800,
    }
}

wire! {
    size = 24;
    /// The common MAD header.
    pub struct MadHeader {
        /// 1.
        pub base_version: u8,
        /// Management class.
        pub mgmt_class: MgmtClass,
        /// Version of the class: 1 for subnet and performance management, 2 for SA and CM.
        pub class_version: u8,
        /// Method.
        pub method: Method,
        /// A [`Status`]; with the D bit in a directed-route SMP.
        pub status: U16,
        /// Hop pointer and hop count in a directed-route SMP, else zero.
        pub class_specific: [u8; 2],
        /// Transaction id, echoed whole.
        pub transaction_id: U64,
        /// Attribute id, by class: [`SmpAttribute`](super::smp::SmpAttribute) and its like.
        pub attribute_id: U16,
        /// Zero.
        pub _reserved: U16,
        /// Attribute modifier, echoed.
        pub attribute_modifier: U32,
    }
}

offsets!(MadHeader {
    status: 4,
    class_specific: 6,
    transaction_id: 8,
    attribute_id: 0x10,
    attribute_modifier: 0x14
});

impl MadHeader {
    /// The only base version there is.
    pub const BASE_VERSION: u8 = 1;
}

open_enum! {
    /// Attributes that every class on QP1 knows.
    pub enum CommonAttribute: u16 {
        CLASS_PORT_INFO = 0x0001,
        NOTICE = 0x0002,
        INFORM_INFO = 0x0003,
    }
}

bits! {
    /// CapabilityMask2 and response time.
    pub struct ClassCapability2: u32 {
        #[bits(27)]
        pub capability_mask2: u32,
        /// The answer comes within 4.096 µs × 2^n.
        #[bits(5)]
        pub resp_time_value: u32,
    }
}

bits! {
    /// Traffic class, service level and flow label of a redirect or trap address.
    pub struct ClassFlow: u32 {
        #[bits(8)]
        pub tclass: u32,
        #[bits(4)]
        pub sl: u32,
        #[bits(20)]
        pub flow_label: u32,
    }
}

wire! {
    size = 72;
    /// ClassPortInfo (IBTA vol. 1, 13.4.8.1): what the agent of a class can do.
    pub struct ClassPortInfo {
        /// 1.
        pub base_version: u8,
        /// Version of the class.
        pub class_version: u8,
        /// Low byte by rule of all classes (bit 0 traps, bit 1 Get and Set of Notice), high byte by class.
        pub capability_mask: U16,
        /// CapabilityMask2 and response time.
        pub capability2: ClassCapability2,
        /// Where requests are to be sent instead; zero for "here".
        pub redirect_gid: [u8; 16],
        /// Flow of the redirect address.
        pub redirect_flow: ClassFlow,
        /// LID of the redirect address.
        pub redirect_lid: U16,
        /// P_Key of the redirect address.
        pub redirect_p_key: U16,
        /// Queue pair of the redirect address, 24 bits.
        pub redirect_qp: U32,
        /// Q_Key of the redirect address.
        pub redirect_q_key: U32,
        /// Where traps are sent.
        pub trap_gid: [u8; 16],
        /// Flow of the trap address.
        pub trap_flow: ClassFlow,
        /// LID of the trap address.
        pub trap_lid: U16,
        /// P_Key of the trap address.
        pub trap_p_key: U16,
        /// Hop limit (8 bits) and queue pair (24 bits) of the trap address.
        pub trap_hop_limit_qp: U32,
        /// Q_Key of the trap address.
        pub trap_q_key: U32,
    }
}

offsets!(ClassPortInfo {
    redirect_lid: 0x1c,
    redirect_qp: 0x20,
    trap_gid: 0x28,
    trap_lid: 0x3c,
    trap_q_key: 0x44
});

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn header_has_the_bytes_of_a_path_query() {
        let header = MadHeader {
            base_version: MadHeader::BASE_VERSION,
            mgmt_class: MgmtClass::SUBN_ADM,
            class_version: 2,
            method: Method::GET,
            transaction_id: U64::new(0x0000_0012_0000_0001),
            attribute_id: U16::new(0x35),
            attribute_modifier: U32::new(7),
            ..MadHeader::new_zeroed()
        };
        let golden = [
            1, 3, 2, 1, 0, 0, 0, 0, //
            0, 0, 0, 0x12, 0, 0, 0, 1, //
            0, 0x35, 0, 0, 0, 0, 0, 7,
        ];
        assert_eq!(header.as_bytes(), golden);
    }

    #[test]
    fn class_capability_keeps_the_response_time_in_the_low_bits() {
        let word = ClassCapability2::new().with_capability_mask2(0xb5e8).with_resp_time_value(0x10);
        assert_eq!(word.as_bytes(), [0x00, 0x16, 0xbd, 0x10]);
    }
}
