//! Performance management: the counters of a port (IBTA vol. 1, 16.1).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::header::{MadHeader, Status};
use crate::{U16, U32, U64};

open_enum! {
    /// Attribute ids of performance management.
    pub enum PerfAttribute: u16 {
        CLASS_PORT_INFO = 0x0001,
        PORT_SAMPLES_CONTROL = 0x0010,
        PORT_SAMPLES_RESULT = 0x0011,
        PORT_COUNTERS = 0x0012,
        PORT_RCV_ERROR_DETAILS = 0x0015,
        PORT_XMIT_DISCARD_DETAILS = 0x0016,
        PORT_COUNTERS_EXTENDED = 0x001d,
        PORT_XMIT_DATA_SL = 0x0036,
        PORT_RCV_DATA_SL = 0x0037,
    }
}

/// Bits of the class's ClassPortInfo capability mask.
pub mod capability {
    /// Port ff selects all ports.
    pub const ALL_PORT_SELECT: u16 = 1 << 8;
    /// PortCountersExtended, with unicast and multicast counters.
    pub const EXTENDED_WIDTH: u16 = 1 << 9;
    /// PortCountersExtended, without unicast and multicast counters.
    pub const EXTENDED_WIDTH_NO_IETF: u16 = 1 << 10;
    /// PortCounters has PortXmitWait.
    pub const PORT_XMIT_WAIT: u16 = 1 << 12;
    /// PortCounters has QP1Dropped.
    pub const QP1_DROPPED: u16 = 1 << 15;
}

/// Bits of the class's ClassPortInfo capability mask 2.
pub mod capability2 {
    /// PortCountersExtended has the error counters.
    pub const ADDITIONAL_EXTENDED_COUNTERS: u32 = 1 << 1;
}

/// The port number that selects all ports of a node.
pub const ALL_PORTS: u8 = 0xff;

wire! {
    size = 256;
    /// A MAD of performance management.
    pub struct PerfMad {
        /// Common header.
        pub header: MadHeader,
        /// Zero.
        pub _reserved: [u8; 40],
        /// The attribute.
        pub data: [u8; 192],
    }
}

offsets!(PerfMad { data: 0x40 });

impl PerfMad {
    /// The version of the class.
    pub const CLASS_VERSION: u8 = 1;

    /// Reads a MAD from its bytes.
    pub fn from_mad(mad: &[u8; 256]) -> Self {
        zerocopy::transmute!(*mad)
    }

    /// The bytes of the MAD.
    pub fn to_mad(&self) -> [u8; 256] {
        zerocopy::transmute!(*self)
    }

    /// Attribute id.
    pub const fn attribute_id(&self) -> PerfAttribute {
        PerfAttribute(self.header.attribute_id.get())
    }

    /// Sets the status.
    pub const fn set_status(&mut self, status: Status) {
        self.header.status = U16::new(status.0);
    }

    /// The attribute at the start of the data, at most 192 bytes.
    pub fn attribute<T: FromBytes + IntoBytes>(&self) -> T {
        read_attribute!(T, self.data, 192)
    }

    /// Sets the data to the attribute, followed by zeros.
    pub fn set_attribute<T: IntoBytes + Immutable>(&mut self, value: &T) {
        write_attribute!(T, value, self.data, 192);
    }
}

bits! {
    /// Two counters of four bits.
    pub struct SmallCounters: u8 {
        #[bits(4)]
        pub local_link_integrity_errors: u8,
        #[bits(4)]
        pub excessive_buffer_overrun_errors: u8,
    }
}

wire! {
    size = 44;
    /// PortCounters (16.1.3.5). A counter stops at its greatest value. A Set writes the selected ones.
    pub struct PortCounters {
        /// Zero.
        pub _reserved: u8,
        /// Port number, or [`ALL_PORTS`].
        pub port_select: u8,
        /// Bits `SELECT_*`: counters that a Set writes.
        pub counter_select: U16,
        /// Minor link errors.
        pub symbol_error_counter: U16,
        /// Successful recoveries of the link.
        pub link_error_recovery_counter: u8,
        /// Failed recoveries: how often the link went down.
        pub link_downed_counter: u8,
        /// Packets received with an error.
        pub port_rcv_errors: U16,
        /// Packets received that were marked bad by a switch.
        pub port_rcv_remote_physical_errors: U16,
        /// Packets received that a switch couldn't forward.
        pub port_rcv_switch_relay_errors: U16,
        /// Packets not sent because the link was down or congested.
        pub port_xmit_discards: U16,
        /// Packets not sent because of a partition key or as raw packets.
        pub port_xmit_constraint_errors: u8,
        /// Packets dropped on receive for the same reasons.
        pub port_rcv_constraint_errors: u8,
        /// Bits `SELECT2_*`: more counters that a Set writes.
        pub counter_select2: u8,
        /// Local link integrity and buffer overrun errors.
        pub small: SmallCounters,
        /// Packets for QP1 that were dropped.
        pub qp1_dropped: U16,
        /// Packets on VL15 that were dropped.
        pub vl15_dropped: U16,
        /// Sent, in 4-byte words, without the link's own packets.
        pub port_xmit_data: U32,
        /// Received, in 4-byte words.
        pub port_rcv_data: U32,
        /// Packets sent.
        pub port_xmit_pkts: U32,
        /// Packets received.
        pub port_rcv_pkts: U32,
        /// Ticks in which the port had data but nothing could be sent.
        pub port_xmit_wait: U32,
    }
}

offsets!(PortCounters {
    counter_select: 2,
    symbol_error_counter: 4,
    port_rcv_errors: 8,
    port_xmit_discards: 0xe,
    counter_select2: 0x12,
    small: 0x13,
    vl15_dropped: 0x16,
    port_xmit_data: 0x18,
    port_xmit_wait: 0x28,
});

#[allow(missing_docs)]
impl PortCounters {
    pub const SELECT_SYMBOL_ERROR: u16 = 1 << 0;
    pub const SELECT_LINK_ERROR_RECOVERY: u16 = 1 << 1;
    pub const SELECT_LINK_DOWNED: u16 = 1 << 2;
    pub const SELECT_RCV_ERRORS: u16 = 1 << 3;
    pub const SELECT_RCV_REMOTE_PHYSICAL: u16 = 1 << 4;
    pub const SELECT_RCV_SWITCH_RELAY: u16 = 1 << 5;
    pub const SELECT_XMIT_DISCARDS: u16 = 1 << 6;
    pub const SELECT_XMIT_CONSTRAINT: u16 = 1 << 7;
    pub const SELECT_RCV_CONSTRAINT: u16 = 1 << 8;
    pub const SELECT_LOCAL_LINK_INTEGRITY: u16 = 1 << 9;
    pub const SELECT_EXCESSIVE_BUFFER_OVERRUN: u16 = 1 << 10;
    pub const SELECT_VL15_DROPPED: u16 = 1 << 11;
    pub const SELECT_XMIT_DATA: u16 = 1 << 12;
    pub const SELECT_RCV_DATA: u16 = 1 << 13;
    pub const SELECT_XMIT_PKTS: u16 = 1 << 14;
    pub const SELECT_RCV_PKTS: u16 = 1 << 15;
    pub const SELECT2_XMIT_WAIT: u8 = 1 << 0;
    pub const SELECT2_QP1_DROPPED: u8 = 1 << 1;
}

wire! {
    size = 184;
    /// PortCountersExtended (16.1.4.11). The error counters are valid only if the capability mask 2 says so.
    pub struct PortCountersExtended {
        /// Zero.
        pub _reserved: u8,
        /// Port number, or [`ALL_PORTS`].
        pub port_select: u8,
        /// Bit n selects `data[n]` for a Set.
        pub counter_select: U16,
        /// Bit n selects `errors[n]` for a Set.
        pub counter_select2: U32,
        /// By index `XMIT_DATA` and following.
        pub data: [U64; 8],
        /// By index `SYMBOL_ERROR` and following.
        pub errors: [U64; 14],
    }
}

offsets!(PortCountersExtended { counter_select: 2, counter_select2: 4, data: 8, errors: 0x48 });

#[allow(missing_docs)]
impl PortCountersExtended {
    pub const XMIT_DATA: usize = 0;
    pub const RCV_DATA: usize = 1;
    pub const XMIT_PKTS: usize = 2;
    pub const RCV_PKTS: usize = 3;
    pub const UNICAST_XMIT_PKTS: usize = 4;
    pub const UNICAST_RCV_PKTS: usize = 5;
    pub const MULTICAST_XMIT_PKTS: usize = 6;
    pub const MULTICAST_RCV_PKTS: usize = 7;

    pub const SYMBOL_ERROR: usize = 0;
    pub const LINK_ERROR_RECOVERY: usize = 1;
    pub const LINK_DOWNED: usize = 2;
    pub const RCV_ERRORS: usize = 3;
    pub const RCV_REMOTE_PHYSICAL: usize = 4;
    pub const RCV_SWITCH_RELAY: usize = 5;
    pub const XMIT_DISCARDS: usize = 6;
    pub const XMIT_CONSTRAINT: usize = 7;
    pub const RCV_CONSTRAINT: usize = 8;
    pub const LOCAL_LINK_INTEGRITY: usize = 9;
    pub const EXCESSIVE_BUFFER_OVERRUN: usize = 10;
    pub const VL15_DROPPED: usize = 11;
    pub const XMIT_WAIT: usize = 12;
    pub const QP1_DROPPED: usize = 13;
}

bits! {
    /// Width of the sample counters.
    pub struct CounterWidth: u8 {
        #[bits(5)]
        __: u8,
        /// 16 + 4 × n bits.
        #[bits(3)]
        pub counter_width: u8,
    }
}

bits! {
    /// Progress of a sample.
    pub struct SampleStatus: u8 {
        #[bits(6)]
        __: u8,
        /// 0 done, 1 the sample hasn't started, 2 under way.
        #[bits(2)]
        pub sample_status: u8,
    }
}

wire! {
    size = 68;
    /// PortSamplesControl (16.1.3.2).
    pub struct PortSamplesControl {
        /// Operation of vendor counters.
        pub op_code: u8,
        /// Port number.
        pub port_select: u8,
        /// Tick of the sample clock, in units of the port's clock.
        pub tick: u8,
        /// Width of the counters.
        pub counter_width: CounterWidth,
        /// What counters 0 to 9 can count, 3 bits each, counter 0 lowest.
        pub counter_masks_0_to_9: U32,
        /// The same for counters 10 to 14.
        pub counter_masks_10_to_14: U16,
        /// Sampling mechanisms besides the first.
        pub sample_mechanisms: u8,
        /// Progress.
        pub status: SampleStatus,
        /// Optional counters that are supported.
        pub option_mask: U64,
        /// Vendor counters that are supported.
        pub vendor_mask: U64,
        /// Ticks until the sample starts.
        pub sample_start: U32,
        /// Ticks that it lasts.
        pub sample_interval: U32,
        /// Tag of the sample, found again in the result.
        pub tag: U16,
        /// What each counter counts.
        pub counter_select: [U16; 15],
    }
}

offsets!(PortSamplesControl {
    counter_masks_0_to_9: 4,
    status: 0xb,
    option_mask: 0xc,
    sample_start: 0x1c,
    tag: 0x24,
    counter_select: 0x26
});

wire! {
    size = 64;
    /// PortSamplesResult (16.1.3.4).
    pub struct PortSamplesResult {
        /// Tag of the sample.
        pub tag: U16,
        /// Zero.
        pub _reserved: u8,
        /// Progress.
        pub status: SampleStatus,
        /// The counters.
        pub counters: [U32; 15],
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn counters_have_the_bytes_of_the_standard() {
        let mut counters = PortCounters::new_zeroed();
        counters.port_select = 1;
        counters.counter_select.set(PortCounters::SELECT_RCV_PKTS);
        counters.small =
            SmallCounters::new().with_local_link_integrity_errors(3).with_excessive_buffer_overrun_errors(4);
        counters.port_rcv_pkts.set(5);
        let mut mad = PerfMad::new_zeroed();
        mad.set_attribute(&counters);
        let bytes = mad.to_mad();
        assert_eq!(bytes[0x41..0x44], [1, 0x80, 0]);
        assert_eq!(bytes[0x40 + 0x13], 0x34);
        assert_eq!(bytes[0x40 + 0x24..0x40 + 0x28], [0, 0, 0, 5]);
        assert_eq!(PerfMad::from_mad(&bytes).attribute::<PortCounters>(), counters);
    }

    #[test]
    fn extended_counters_lie_at_their_offsets() {
        let mut counters = PortCountersExtended::new_zeroed();
        counters.data[PortCountersExtended::MULTICAST_RCV_PKTS].set(1);
        counters.errors[PortCountersExtended::QP1_DROPPED].set(2);
        assert_eq!(counters.as_bytes()[0x47], 1);
        assert_eq!(counters.as_bytes()[0xb7], 2);
    }
}
