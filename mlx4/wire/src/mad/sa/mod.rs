//! Subnet administration: MADs of class 03, the header of their multi-packet transport (RMPP), and codes
//! (IBTA vol. 1, 13.6 and ch. 15). The records themselves are in [`record`], paths and multicast groups
//! in [`path`].
#![expect(
    missing_debug_implementations,
    reason = "hidden types that zerocopy derives for a tuple struct's field"
)]

pub mod path;
pub mod record;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::{MadHeader, Status};
use crate::{U16, U32, U64};

open_enum! {
    /// Attribute ids of subnet administration.
    pub enum SaAttribute: u16 {
        CLASS_PORT_INFO = 0x0001,
        NOTICE = 0x0002,
        INFORM_INFO = 0x0003,
        NODE_RECORD = 0x0011,
        PORT_INFO_RECORD = 0x0012,
        SL_TO_VL_MAPPING_TABLE_RECORD = 0x0013,
        SWITCH_INFO_RECORD = 0x0014,
        LINEAR_FORWARDING_TABLE_RECORD = 0x0015,
        MULTICAST_FORWARDING_TABLE_RECORD = 0x0017,
        SM_INFO_RECORD = 0x0018,
        LINK_RECORD = 0x0020,
        GUID_INFO_RECORD = 0x0030,
        SERVICE_RECORD = 0x0031,
        P_KEY_TABLE_RECORD = 0x0033,
        PATH_RECORD = 0x0035,
        VL_ARBITRATION_TABLE_RECORD = 0x0036,
        MC_MEMBER_RECORD = 0x0038,
        TRACE_RECORD = 0x0039,
        MULTI_PATH_RECORD = 0x003a,
        SERVICE_ASSOCIATION_RECORD = 0x003b,
        INFORM_INFO_RECORD = 0x00f3,
    }
}

open_enum! {
    /// Type of an RMPP packet.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub enum RmppType: u8 {
        NONE = 0,
        DATA = 1,
        ACK = 2,
        STOP = 3,
        ABORT = 4,
    }
}

open_enum! {
    /// Status of an RMPP packet: why a transfer was stopped or aborted.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub enum RmppStatus: u8 {
        NORMAL = 0,
        RESOURCES_EXHAUSTED = 1,
        TOTAL_TIME_TOO_LONG = 118,
        INCONSISTENT_LAST = 119,
        INCONSISTENT_FIRST = 120,
        BAD_TYPE = 121,
        NEW_WINDOW_LAST_TOO_SMALL = 122,
        SEGMENT_NUMBER_TOO_BIG = 123,
        ILLEGAL_STATUS = 124,
        UNSUPPORTED_VERSION = 125,
        TOO_MANY_RETRIES = 126,
        UNSPECIFIED = 127,
    }
}

bits! {
    /// Response time and flags of an RMPP packet.
    pub struct RmppFlags: u8 {
        /// The answer comes within 4.096 µs × 2^n; [`NO_RESP_TIME`](Self::NO_RESP_TIME) for not given.
        #[bits(5)]
        pub resp_time: u8,
        pub last: bool,
        pub first: bool,
        /// The MAD belongs to a multi-packet transfer; otherwise the whole header is void.
        pub active: bool,
    }
}

impl RmppFlags {
    /// The response time isn't given.
    pub const NO_RESP_TIME: u8 = 0x1f;
}

wire! {
    size = 12;
    /// Header of the reliable multi-packet transaction protocol (13.6.2).
    pub struct RmppHeader {
        /// 1.
        pub version: u8,
        /// Type.
        pub rmpp_type: RmppType,
        /// Response time and flags.
        pub flags: RmppFlags,
        /// Status.
        pub status: RmppStatus,
        /// Data and ACK: segment number, from 1.
        pub segment_number: U32,
        /// Data: payload length in bytes, of all segments in the first and of the rest in the last;
        /// the SA header of each segment counts. ACK: last segment number that may be sent.
        pub length_or_window: U32,
    }
}

impl RmppHeader {
    /// The version.
    pub const VERSION: u8 = 1;
}

wire! {
    size = 256;
    /// A MAD of subnet administration.
    pub struct SaMad {
        /// Common header.
        pub header: MadHeader,
        /// RMPP header.
        pub rmpp: RmppHeader,
        /// Zero from those who aren't trusted.
        pub sm_key: U64,
        /// Distance between records in 8-byte units.
        pub attribute_offset: U16,
        /// Zero.
        pub _reserved: U16,
        /// Which components of the record count.
        pub component_mask: U64,
        /// The record, or a part of the table.
        pub data: [u8; 200],
    }
}

offsets!(SaMad { rmpp: 0x18, sm_key: 0x24, attribute_offset: 0x2c, component_mask: 0x30, data: 0x38 });

impl SaMad {
    /// The version of the class.
    pub const CLASS_VERSION: u8 = 2;
    /// Bytes of the SA header, which RMPP counts as payload of each segment.
    pub const SA_HEADER_SIZE: usize = 20;
    /// Bytes of records in a segment.
    pub const DATA_SIZE: usize = 200;

    /// Reads a MAD from its bytes.
    pub fn from_mad(mad: &[u8; 256]) -> Self {
        zerocopy::transmute!(*mad)
    }

    /// The bytes of the MAD.
    pub fn to_mad(&self) -> [u8; 256] {
        zerocopy::transmute!(*self)
    }

    /// Attribute id.
    pub const fn attribute_id(&self) -> SaAttribute {
        SaAttribute(self.header.attribute_id.get())
    }

    /// Status.
    pub const fn status(&self) -> Status {
        Status(self.header.status.get())
    }

    /// The record at the start of the data, at most 200 bytes.
    pub fn attribute<T: FromBytes + IntoBytes>(&self) -> T {
        read_attribute!(T, self.data, 200)
    }

    /// Sets the data to the record, followed by zeros.
    pub fn set_attribute<T: IntoBytes + Immutable>(&mut self, value: &T) {
        write_attribute!(T, value, self.data, 200);
    }
}

/// Bits of the administrator's ClassPortInfo capability mask.
pub mod capability {
    /// Optional records are supported.
    pub const OPTIONAL_RECORDS: u16 = 1 << 8;
    /// Multicast of UD is supported.
    pub const UD_MULTICAST: u16 = 1 << 9;
    /// MultiPathRecord is supported.
    pub const MULTI_PATH: u16 = 1 << 10;
    /// PortInfo capability masks can be matched.
    pub const PORT_INFO_CAPABILITY_MASK_MATCH: u16 = 1 << 13;
}

/// Bits of the administrator's ClassPortInfo capability mask 2.
pub mod capability2 {
    /// Send-only full members of multicast groups are supported.
    pub const SEND_ONLY_FULL_MEMBER: u32 = 1 << 12;
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::path::PathRecord;
    use super::*;

    #[test]
    fn single_segment_answer_has_the_bytes_of_the_kernel() {
        let mut mad = SaMad::new_zeroed();
        mad.rmpp = RmppHeader {
            version: RmppHeader::VERSION,
            rmpp_type: RmppType::DATA,
            flags: RmppFlags::new().with_last(true).with_first(true).with_active(true),
            status: RmppStatus::NORMAL,
            segment_number: U32::new(1),
            length_or_window: U32::new(20 + 64),
        };
        mad.sm_key = U64::new(1);
        mad.attribute_offset = U16::new(8);
        mad.component_mask = U64::new(PathRecord::MASK_DGID | PathRecord::MASK_SGID);
        let bytes = mad.to_mad();
        assert_eq!(bytes[0x18..0x24], [1, 1, 7, 0, 0, 0, 0, 1, 0, 0, 0, 84]);
        assert_eq!(bytes[0x24..0x38], [0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0c]);
        assert_eq!(SaMad::from_mad(&bytes), mad);
    }

    #[test]
    fn response_time_is_above_the_flags() {
        assert_eq!(
            RmppFlags::new().with_resp_time(RmppFlags::NO_RESP_TIME).with_active(true).into_bits(),
            0xf9
        );
    }
}
