//! Datagram segment: where a UD message goes.

use core::mem::offset_of;

use crate::ctx::path::{PathSource, TrafficClass};
use crate::{Number24, U16, U32};

bits! {
    /// First word of an address vector.
    pub struct AvPort: u32 {
        /// Loop the packet back.
        pub force_loopback: bool,
        #[bits(1)]
        __: u32,
        /// The packet has a VLAN tag (RoCE).
        pub vlan_present: bool,
        #[bits(3)]
        __: u32,
        /// Port number, from 1.
        #[bits(2)]
        pub port: u8,
        /// Protection domain of the address handle.
        #[bits(24)]
        pub pd: u32,
    }
}

wire! {
    size = 32;
    /// Address vector, which an address handle stands for.
    pub struct Av {
        /// Port and protection domain.
        pub port: AvPort,
        __0: u8,
        /// Source path bits and GRH.
        pub source: PathSource,
        /// Destination LID.
        pub remote_lid: U16,
        __1: u8,
        /// Index of the source GID in the port's table, bits 6:0. (iPXE counts over both ports.)
        pub sgid_index: u8,
        /// Static rate: verbs rate code + [`STATIC_RATE_BASE`](crate::ctx::path::STATIC_RATE_BASE), or 0.
        pub static_rate: u8,
        /// Hop limit of the GRH.
        pub hop_limit: u8,
        /// Service level; traffic class and flow label of the GRH.
        pub traffic_class: TrafficClass,
        /// Destination GID.
        pub remote_gid: [u8; 16],
    }
}

wire! {
    size = 48;
    /// Datagram segment.
    pub struct DatagramSeg {
        /// Address vector.
        pub av: Av,
        /// Destination QP; all ones for multicast.
        pub remote_qpn: Number24,
        /// Q_Key; with bit 31 set the QP's own is sent.
        pub qkey: U32,
        /// VLAN tag (RoCE).
        pub vlan: U16,
        /// Destination MAC (RoCE).
        pub mac: [u8; 6],
    }
}

const _: () = {
    assert!(offset_of!(Av, source) == 0x05);
    assert!(offset_of!(Av, remote_lid) == 0x06);
    assert!(offset_of!(Av, sgid_index) == 0x09);
    assert!(offset_of!(Av, static_rate) == 0x0a);
    assert!(offset_of!(Av, hop_limit) == 0x0b);
    assert!(offset_of!(Av, traffic_class) == 0x0c);
    assert!(offset_of!(Av, remote_gid) == 0x10);
    assert!(offset_of!(DatagramSeg, remote_qpn) == 0x20);
    assert!(offset_of!(DatagramSeg, qkey) == 0x24);
    assert!(offset_of!(DatagramSeg, vlan) == 0x28);
    assert!(offset_of!(DatagramSeg, mac) == 0x2a);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn datagram_has_its_bytes() {
        let mut segment = DatagramSeg::new_zeroed();
        segment.av.port = AvPort::new().with_force_loopback(true).with_port(2).with_pd(0x1_0203);
        segment.av.source = PathSource::new().with_grh(true).with_path_bits(5);
        segment.av.remote_lid = U16::new(0xc001);
        segment.av.sgid_index = 3;
        segment.av.static_rate = 7;
        segment.av.hop_limit = 64;
        segment.av.traffic_class =
            TrafficClass::new().with_sl(9).with_traffic_class(0xab).with_flow_label(0xc_def0);
        segment.av.remote_gid = *b"0123456789abcdef";
        segment.remote_qpn = Number24::wrapping(Number24::MAX);
        segment.qkey = U32::new(0x8001_0000);
        segment.vlan = U16::new(0x0102);
        segment.mac = [1, 2, 3, 4, 5, 6];

        let bytes = segment.as_bytes();
        assert_eq!(bytes[0x00..0x08], [0x82, 1, 2, 3, 0, 0x85, 0xc0, 0x01]);
        assert_eq!(bytes[0x08..0x10], [0, 3, 7, 64, 0x9a, 0xbc, 0xde, 0xf0]);
        assert_eq!(bytes[0x10..0x20], *b"0123456789abcdef");
        assert_eq!(bytes[0x20..0x28], [0, 0xff, 0xff, 0xff, 0x80, 1, 0, 0]);
        assert_eq!(bytes[0x28..0x30], [1, 2, 1, 2, 3, 4, 5, 6]);
        assert_eq!(AvPort::new().with_vlan_present(true).as_bytes(), [0x20, 0, 0, 0]);
    }
}
