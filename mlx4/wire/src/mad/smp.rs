//! Subnet management packets, LID routed (class 01) and directed route (class 81) (IBTA vol. 1, 14.2.1).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::header::{MadHeader, Status};
use crate::{U16, U64};

open_enum! {
    /// Attribute ids of subnet management.
    pub enum SmpAttribute: u16 {
        NOTICE = 0x0002,
        NODE_DESCRIPTION = 0x0010,
        NODE_INFO = 0x0011,
        SWITCH_INFO = 0x0012,
        GUID_INFO = 0x0014,
        PORT_INFO = 0x0015,
        P_KEY_TABLE = 0x0016,
        SL_TO_VL_MAPPING_TABLE = 0x0017,
        VL_ARBITRATION_TABLE = 0x0018,
        LINEAR_FORWARDING_TABLE = 0x0019,
        RANDOM_FORWARDING_TABLE = 0x001a,
        MULTICAST_FORWARDING_TABLE = 0x001b,
        SM_INFO = 0x0020,
        VENDOR_DIAG = 0x0030,
        LED_INFO = 0x0031,
        /// Mellanox: whether the link may run FDR10.
        MLNX_EXTENDED_PORT_INFO = 0xff90,
    }
}

wire! {
    size = 256;
    /// A subnet management packet. A LID-routed one uses neither the DR LIDs nor the paths.
    pub struct Smp {
        /// Common header; in a directed-route SMP with D bit, hop pointer and hop count.
        pub header: MadHeader,
        /// Management key.
        pub m_key: U64,
        /// Directed route: source LID of the route's start, ffff if that part is empty.
        pub dr_slid: U16,
        /// Directed route: destination LID of the route's end, ffff if that part is empty.
        pub dr_dlid: U16,
        /// Zero.
        pub _reserved: [u8; 28],
        /// The attribute.
        pub data: [u8; 64],
        /// Egress port of hop k at index k; index 0 isn't used.
        pub initial_path: [u8; 64],
        /// Ingress port of hop k at index k; index 0 isn't used.
        pub return_path: [u8; 64],
    }
}

offsets!(Smp {
    m_key: 0x18,
    dr_slid: 0x20,
    dr_dlid: 0x22,
    data: 0x40,
    initial_path: 0x80,
    return_path: 0xc0
});

impl Smp {
    /// The version of both classes.
    pub const CLASS_VERSION: u8 = 1;
    /// The longest route.
    pub const MAX_HOPS: u8 = 63;
    /// The D bit of the status word: a directed-route SMP on its way back.
    pub const DIRECTION: u16 = 0x8000;

    /// Reads an SMP from its bytes.
    pub fn from_mad(mad: &[u8; 256]) -> Self {
        zerocopy::transmute!(*mad)
    }

    /// The bytes of the SMP.
    pub fn to_mad(&self) -> [u8; 256] {
        zerocopy::transmute!(*self)
    }

    /// Directed route: hop pointer.
    pub const fn hop_pointer(&self) -> u8 {
        self.header.class_specific[0]
    }

    /// Directed route: sets the hop pointer.
    pub const fn set_hop_pointer(&mut self, value: u8) {
        self.header.class_specific[0] = value;
    }

    /// Directed route: hop count.
    pub const fn hop_count(&self) -> u8 {
        self.header.class_specific[1]
    }

    /// Directed route: sets the hop count.
    pub const fn set_hop_count(&mut self, value: u8) {
        self.header.class_specific[1] = value;
    }

    /// Directed route: the D bit, set on the way back.
    pub const fn is_returning(&self) -> bool {
        self.header.status.get() & Self::DIRECTION != 0
    }

    /// Directed route: sets or clears the D bit.
    pub const fn set_returning(&mut self, returning: bool) {
        let d = if returning { Self::DIRECTION } else { 0 };
        self.header.status = U16::new(self.header.status.get() & !Self::DIRECTION | d);
    }

    /// The status without the D bit.
    pub const fn status(&self) -> Status {
        Status(self.header.status.get() & !Self::DIRECTION)
    }

    /// Sets the status and keeps the D bit.
    pub const fn set_status(&mut self, status: Status) {
        let d = self.header.status.get() & Self::DIRECTION;
        self.header.status = U16::new(status.0 & !Self::DIRECTION | d);
    }

    /// Attribute id.
    pub const fn attribute_id(&self) -> SmpAttribute {
        SmpAttribute(self.header.attribute_id.get())
    }

    /// The attribute at the start of the data, at most 64 bytes.
    pub fn attribute<T: FromBytes + IntoBytes>(&self) -> T {
        read_attribute!(T, self.data, 64)
    }

    /// Sets the data to the attribute, followed by zeros.
    pub fn set_attribute<T: IntoBytes + Immutable>(&mut self, value: &T) {
        write_attribute!(T, value, self.data, 64);
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::super::header::{Method, MgmtClass};
    use super::*;

    #[test]
    fn directed_route_fields_lie_in_the_common_header() {
        let mut smp = Smp::new_zeroed();
        smp.header.mgmt_class = MgmtClass::SUBN_DIRECTED_ROUTE;
        smp.header.method = Method::GET_RESP;
        smp.set_returning(true);
        smp.set_status(Status::INVALID_VALUE);
        smp.set_hop_pointer(2);
        smp.set_hop_count(3);
        let bytes = smp.to_mad();
        assert_eq!(bytes[..8], [0, 0x81, 0, 0x81, 0x80, 0x1c, 2, 3]);
        let back = Smp::from_mad(&bytes);
        assert!(back.is_returning());
        assert_eq!(back.status(), Status::INVALID_VALUE);
    }

    #[test]
    fn attribute_is_followed_by_zeros() {
        let mut smp = Smp::new_zeroed();
        smp.data = [0xee; 64];
        smp.set_attribute(&[1u8, 2, 3]);
        assert_eq!(smp.data[..4], [1, 2, 3, 0]);
        assert_eq!(smp.attribute::<[u8; 4]>(), [1, 2, 3, 0]);
    }
}
