//! Address path: how the packets of a connected QP reach the other end; and the port of any QP.
//!
//! The Ethernet fields are kept as plain bytes: InfiniBand ports don't use them.
//!
//! Sources: Linux `struct mlx4_qp_path` and `mlx4_set_path` users; iPXE `hermonprm_address_path`. Counter
//! and VLAN index are where Linux has them; iPXE's header has them at 24 and 25.

use core::mem::offset_of;

use crate::U16;

bits! {
    /// First byte of a path.
    pub struct PathFlags: u8 {
        /// Packets are looped back whatever their destination.
        pub force_loopback: bool,
        /// Check the VLAN (Ethernet).
        pub check_vlan: bool,
        /// Strip the VLAN (Ethernet).
        pub strip_vlan: bool,
        #[bits(2)]
        __: u8,
        /// Leave the VLAN out of the CQE (Ethernet).
        pub hide_cqe_vlan: bool,
        /// Drop own multicast by source (Ethernet).
        pub check_multicast_source: bool,
        /// Drop own unicast by source (Ethernet).
        pub check_unicast_source: bool,
    }
}

bits! {
    /// P_Key check of a path.
    pub struct PathPkeyCheck: u8 {
        #[bits(1)]
        __: u8,
        /// The P_Key of what arrives is not checked.
        pub disable: bool,
        #[bits(6)]
        __: u8,
    }
}

bits! {
    /// Source path bits, and whether packets have a GRH; also a byte of the address vector.
    pub struct PathSource: u8 {
        /// Packets have a GRH.
        pub grh: bool,
        /// Low bits of the source LID.
        #[bits(7)]
        pub path_bits: u8,
    }
}

bits! {
    /// Local ACK timeout and link type of a path.
    pub struct PathTimeout: u8 {
        /// Local ACK timeout: 4.096 µs × 2^n; 0 is none (IBTA 9.7.6.1.3).
        #[bits(5)]
        pub ack_timeout: u8,
        /// Link type: 0 InfiniBand, 1 Ethernet.
        #[bits(3)]
        pub link_type: u8,
    }
}

bits! {
    /// Traffic class and flow label of a path's GRH; in the address vector also the SL.
    pub struct TrafficClass: u32 {
        /// Service level; address vector only.
        #[bits(4)]
        pub sl: u8,
        /// Traffic class.
        #[bits(8)]
        pub traffic_class: u8,
        /// Flow label.
        #[bits(20)]
        pub flow_label: u32,
    }
}

bits! {
    /// The schedule queue of a path: port and service level.
    pub struct SchedQueue: u8 {
        #[bits(1)]
        __: u8,
        /// Port number less 1.
        #[bits(1)]
        pub port_index: u8,
        /// Service level (QP0: all ones).
        #[bits(4)]
        pub sl: u8,
        #[bits(2)]
        __: u8,
    }
}

impl SchedQueue {
    /// The value that drivers add port and service level to.
    pub const BASE: Self = Self::from_bits(0x83);

    /// The value that drivers add the port to, for QP0.
    pub const BASE_QP0: Self = Self::from_bits(0x3f);

    /// Port number: 1 or 2.
    pub const fn port(self) -> u8 {
        self.port_index() + 1
    }
}

/// What drivers add to a verbs rate code to make a static rate; a static rate of 0 is the port's rate.
pub const STATIC_RATE_BASE: u8 = 5;

/// Bit of the source GID index of a UD QP's path: all its packets have that GID, whatever their address vector
/// says. The stock driver sets it for virtual functions.
pub const FORCE_SGID: u8 = 0x80;

wire! {
    size = 0x2c;
    /// An address path of a QP.
    pub struct AddressPath {
        /// Loopback and Ethernet flags.
        pub flags: PathFlags,
        /// Control (Ethernet).
        pub control: u8,
        /// P_Key check.
        pub pkey_check: PathPkeyCheck,
        /// Index in the port's P_Key table, bits 6:0.
        pub pkey_index: u8,
        /// Counter index; 0xff, or the last counter, counts nothing.
        pub counter_index: u8,
        /// Source path bits and GRH.
        pub source: PathSource,
        /// LID of the other end.
        pub remote_lid: U16,
        /// Local ACK timeout and link type.
        pub timeout: PathTimeout,
        /// Index of the source GID in the port's table, bits 6:0; [`FORCE_SGID`].
        pub sgid_index: u8,
        /// Static rate: verbs rate code + [`STATIC_RATE_BASE`], or 0.
        pub static_rate: u8,
        /// Hop limit of the GRH.
        pub hop_limit: u8,
        /// Traffic class and flow label of the GRH.
        pub traffic_class: TrafficClass,
        /// GID of the other end.
        pub remote_gid: [u8; 16],
        /// Port and service level.
        pub sched_queue: SchedQueue,
        /// VLAN index (Ethernet).
        pub vlan_index: u8,
        /// Forced priority, source MAC and VLAN (Ethernet).
        pub force: u8,
        /// Forced VLAN of what arrives (Ethernet).
        pub force_receive: u8,
        __0: [u8; 2],
        /// Destination MAC (Ethernet).
        pub mac: [u8; 6],
    }
}

const _: () = {
    assert!(offset_of!(AddressPath, pkey_index) == 0x03);
    assert!(offset_of!(AddressPath, counter_index) == 0x04);
    assert!(offset_of!(AddressPath, source) == 0x05);
    assert!(offset_of!(AddressPath, remote_lid) == 0x06);
    assert!(offset_of!(AddressPath, timeout) == 0x08);
    assert!(offset_of!(AddressPath, sgid_index) == 0x09);
    assert!(offset_of!(AddressPath, static_rate) == 0x0a);
    assert!(offset_of!(AddressPath, hop_limit) == 0x0b);
    assert!(offset_of!(AddressPath, traffic_class) == 0x0c);
    assert!(offset_of!(AddressPath, remote_gid) == 0x10);
    assert!(offset_of!(AddressPath, sched_queue) == 0x20);
    assert!(offset_of!(AddressPath, mac) == 0x26);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn path_with_grh_has_its_bytes() {
        let mut path = AddressPath::new_zeroed();
        path.flags = PathFlags::new().with_force_loopback(true);
        path.pkey_check = PathPkeyCheck::new().with_disable(true);
        path.pkey_index = 0x7f;
        path.counter_index = 0xff;
        path.source = PathSource::new().with_grh(true).with_path_bits(3);
        path.remote_lid = U16::new(0x0102);
        path.timeout = PathTimeout::new().with_ack_timeout(14);
        path.sgid_index = 1;
        path.static_rate = 7 + STATIC_RATE_BASE;
        path.hop_limit = 64;
        path.traffic_class = TrafficClass::new().with_traffic_class(0xab).with_flow_label(0xc_def0);
        path.remote_gid = *b"0123456789abcdef";

        let bytes = path.as_bytes();
        assert_eq!(bytes[0x00..0x04], [0x80, 0, 0x40, 0x7f]);
        assert_eq!(bytes[0x04..0x08], [0xff, 0x83, 1, 2]);
        assert_eq!(bytes[0x08..0x0c], [14 << 3, 1, 12, 64]);
        assert_eq!(bytes[0x0c..0x10], [0x0a, 0xbc, 0xde, 0xf0]);
        assert_eq!(bytes[0x10..0x20], *b"0123456789abcdef");
    }

    #[test]
    fn flags_of_linux_are_at_their_places() {
        assert_eq!(PathFlags::new().with_check_vlan(true).into_bits(), 1 << 6);
        assert_eq!(PathFlags::new().with_strip_vlan(true).into_bits(), 1 << 5);
        assert_eq!(PathFlags::new().with_hide_cqe_vlan(true).into_bits(), 1 << 2);
        assert_eq!(PathFlags::new().with_check_multicast_source(true).into_bits(), 1 << 1);
        assert_eq!(PathFlags::new().with_check_unicast_source(true).into_bits(), 1);
    }

    #[test]
    fn sched_queue_of_the_stock_driver_gives_port_and_sl() {
        let port_2_sl_5 = SchedQueue::from_bits(0x83 | 1 << 6 | 5 << 2);
        assert_eq!((port_2_sl_5.port(), port_2_sl_5.sl()), (2, 5));
        assert_eq!(SchedQueue::BASE.with_port_index(1).with_sl(5), port_2_sl_5);
        assert_eq!(SchedQueue::BASE_QP0.with_port_index(1).into_bits(), 0x7f);
        assert_eq!(SchedQueue::BASE_QP0.port(), 1);
    }
}
