//! Packet headers as they go over the wire: those of a datagram, which software builds for QP0 and QP1.
//!
//! A packet is LRH, GRH (if `next_header` of the LRH says so), BTH, then by opcode DETH and immediate data,
//! payload, 0 to 3 bytes of padding, ICRC and VCRC.
//!
//! Sources: IBTA vol. 1, chapters 7.7 (LRH), 8.3 (GRH), 9.2 (BTH), 9.3.3 (DETH); Linux
//! `include/rdma/ib_pack.h`.

use core::mem::offset_of;

use crate::{Number24, U16, U32};

open_enum! {
    /// What follows the LRH (2 bits).
    pub enum LinkNextHeader: u8 {
        /// Raw, with an EtherType.
        RAW = 0,
        /// IPv6, no InfiniBand transport.
        IP = 1,
        /// BTH.
        BTH = 2,
        /// GRH.
        GRH = 3,
    }
}

bits! {
    /// First half of an LRH.
    pub struct LrhStart: u16 {
        /// Virtual lane.
        #[bits(4)]
        pub vl: u8,
        /// Link version: 0.
        #[bits(4)]
        pub version: u8,
        /// Service level.
        #[bits(4)]
        pub sl: u8,
        #[bits(2)]
        __: u8,
        /// What follows.
        #[bits(2)]
        pub next_header: LinkNextHeader,
    }
}

bits! {
    /// Length of a packet.
    pub struct LrhLength: u16 {
        #[bits(5)]
        __: u16,
        /// From the LRH through the ICRC, in 4-byte words.
        #[bits(11)]
        pub words: u16,
    }
}

wire! {
    size = 8;
    /// Local route header.
    pub struct Lrh {
        /// Virtual lane, service level and what follows.
        pub start: LrhStart,
        /// Destination LID.
        pub dlid: U16,
        /// Length.
        pub length: LrhLength,
        /// Source LID.
        pub slid: U16,
    }
}

bits! {
    /// First word of a GRH.
    pub struct GrhStart: u32 {
        /// IP version: 6.
        #[bits(4)]
        pub ip_version: u8,
        /// Traffic class.
        #[bits(8)]
        pub traffic_class: u8,
        /// Flow label.
        #[bits(20)]
        pub flow_label: u32,
    }
}

/// `ip_version` of a GRH.
pub const GRH_IP_VERSION: u8 = 6;

/// `next_header` of a GRH that a BTH follows.
pub const GRH_NEXT_HEADER: u8 = 0x1b;

wire! {
    size = 40;
    /// Global route header.
    pub struct GrhHeader {
        /// IP version, traffic class and flow label.
        pub start: GrhStart,
        /// Bytes after the GRH, through the ICRC.
        pub payload_bytes: U16,
        /// What follows: [`GRH_NEXT_HEADER`].
        pub next_header: u8,
        /// Hop limit.
        pub hop_limit: u8,
        /// Source GID.
        pub sgid: [u8; 16],
        /// Destination GID.
        pub dgid: [u8; 16],
    }
}

open_enum! {
    /// Operation of a packet; here the datagrams only.
    pub enum PacketOpcode: u8 {
        /// A datagram.
        UD_SEND_ONLY = 0x64,
        /// A datagram with immediate data.
        UD_SEND_ONLY_IMM = 0x65,
    }
}

bits! {
    /// Second byte of a BTH.
    pub struct BthFlags: u8 {
        /// Solicited event.
        pub solicited: bool,
        /// Migration state.
        pub migrated: bool,
        /// Bytes of padding after the payload.
        #[bits(2)]
        pub pad_count: u8,
        /// Transport version: 0.
        #[bits(4)]
        pub version: u8,
    }
}

bits! {
    /// Last word of a BTH.
    pub struct BthPsn: u32 {
        /// The other end shall acknowledge.
        pub ack_request: bool,
        #[bits(7)]
        __: u8,
        /// Packet sequence number.
        #[bits(24)]
        pub psn: u32,
    }
}

wire! {
    size = 12;
    /// Base transport header.
    pub struct Bth {
        opcode: u8,
        /// Solicited event, padding.
        pub flags: BthFlags,
        /// P_Key.
        pub pkey: U16,
        /// Destination QP.
        pub dest_qp: Number24,
        /// Sequence number.
        pub psn: BthPsn,
    }
}

impl Bth {
    /// Operation.
    pub const fn opcode(&self) -> PacketOpcode {
        PacketOpcode(self.opcode)
    }

    /// Sets the operation.
    pub const fn set_opcode(&mut self, opcode: PacketOpcode) {
        self.opcode = opcode.0;
    }
}

wire! {
    size = 8;
    /// Datagram extended transport header.
    pub struct Deth {
        /// Q_Key.
        pub qkey: U32,
        /// Source QP.
        pub src_qp: Number24,
    }
}

/// Size of the immediate data header in bytes.
pub const IMMEDIATE_BYTES: usize = 4;

/// Size of the invariant CRC in bytes.
pub const ICRC_BYTES: usize = 4;

const _: () = {
    assert!(offset_of!(Lrh, slid) == 6);
    assert!(offset_of!(GrhHeader, payload_bytes) == 4);
    assert!(offset_of!(GrhHeader, sgid) == 8);
    assert!(offset_of!(GrhHeader, dgid) == 24);
    assert!(offset_of!(Bth, pkey) == 2);
    assert!(offset_of!(Bth, psn) == 8);
    assert!(offset_of!(Deth, src_qp) == 4);
};

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn lrh_of_an_smp_has_its_bytes() {
        let mut lrh = Lrh::new_zeroed();
        lrh.start = LrhStart::new().with_vl(15).with_sl(2).with_next_header(LinkNextHeader::BTH);
        lrh.dlid = U16::new(0xffff);
        lrh.length = LrhLength::new().with_words(72);
        lrh.slid = U16::new(0x0102);
        assert_eq!(lrh.as_bytes(), [0xf0, 0x22, 0xff, 0xff, 0, 0x48, 1, 2]);
    }

    #[test]
    fn grh_has_version_class_and_flow_in_its_first_word() {
        let mut grh = GrhHeader::new_zeroed();
        let start = GrhStart::new().with_ip_version(GRH_IP_VERSION).with_traffic_class(0xab);
        grh.start = start.with_flow_label(0xc_def0);
        grh.payload_bytes = U16::new(0x118);
        grh.next_header = GRH_NEXT_HEADER;
        grh.hop_limit = 64;
        assert_eq!(grh.as_bytes()[..8], [0x6a, 0xbc, 0xde, 0xf0, 1, 0x18, 0x1b, 64]);
    }

    #[test]
    fn bth_and_deth_have_their_bytes() {
        let mut bth = Bth::new_zeroed();
        bth.set_opcode(PacketOpcode::UD_SEND_ONLY);
        bth.flags = BthFlags::new().with_solicited(true).with_pad_count(3);
        bth.pkey = U16::new(0x7fff);
        bth.dest_qp = Number24::wrapping(1);
        bth.psn = BthPsn::new().with_ack_request(true).with_psn(0xab_cdef);
        assert_eq!(bth.as_bytes(), [0x64, 0xb0, 0x7f, 0xff, 0, 0, 0, 1, 0x80, 0xab, 0xcd, 0xef]);
        let mut deth = Deth::new_zeroed();
        deth.qkey = U32::new(0x8001_0000);
        deth.src_qp = Number24::wrapping(0x12_3456);
        assert_eq!(deth.as_bytes(), [0x80, 1, 0, 0, 0, 0x12, 0x34, 0x56]);
    }
}
