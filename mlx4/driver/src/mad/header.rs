//! The packet headers of a datagram from a special queue pair: LRH, GRH, BTH, DETH. The device adds the CRCs,
//! and the source LID but for its low bits.

use mlx4_wire::mad::MAD_SIZE;
use mlx4_wire::packet::{
    Bth, BthPsn, Deth, GRH_IP_VERSION, GRH_NEXT_HEADER, GrhHeader, GrhStart, ICRC_BYTES, LinkNextHeader, Lrh,
    LrhLength, LrhStart, PacketOpcode,
};
use mlx4_wire::{Number24, U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::path::GlobalRoute;
use crate::port::Gid;

/// Greatest size of the headers.
const MAX: usize = size_of::<Lrh>() + size_of::<GrhHeader>() + size_of::<Bth>() + size_of::<Deth>();

/// What follows the GRH.
const AFTER_GRH: usize = size_of::<Bth>() + size_of::<Deth>() + MAD_SIZE + ICRC_BYTES;

/// What the headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UdHeader {
    pub(super) vl: u8,
    pub(super) sl: u8,
    pub(super) dlid: u16,
    /// Low bits of the source LID, or the permissive LID.
    pub(super) slid: u16,
    pub(super) grh: Option<(GlobalRoute, Gid)>,
    pub(super) pkey: u16,
    pub(super) remote_qpn: u32,
    pub(super) psn: u32,
    pub(super) qkey: u32,
    pub(super) source_qpn: u32,
}

/// The headers' bytes.
pub(super) struct HeaderBytes {
    bytes: [u8; MAX],
    length: usize,
}

impl HeaderBytes {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn put<T: IntoBytes + Immutable>(&mut self, header: &T) {
        self.bytes[self.length..self.length + size_of::<T>()].copy_from_slice(header.as_bytes());
        self.length += size_of::<T>();
    }
}

impl UdHeader {
    /// The headers of a packet with a datagram of 256 bytes.
    pub(super) fn bytes(&self) -> HeaderBytes {
        let mut out = HeaderBytes { bytes: [0; MAX], length: 0 };
        out.put(&self.local());
        if let Some((route, sgid)) = &self.grh {
            out.put(&global(route, sgid));
        }
        let mut bth = Bth::new_zeroed();
        bth.set_opcode(PacketOpcode::UD_SEND_ONLY);
        bth.pkey = U16::new(self.pkey);
        bth.dest_qp = Number24::wrapping(self.remote_qpn);
        bth.psn = BthPsn::new().with_psn(self.psn & Number24::MAX);
        out.put(&bth);
        out.put(&Deth { qkey: U32::new(self.qkey), src_qp: Number24::wrapping(self.source_qpn) });
        out
    }

    fn local(&self) -> Lrh {
        let grh = if self.grh.is_some() { size_of::<GrhHeader>() } else { 0 };
        let next = if self.grh.is_some() { LinkNextHeader::GRH } else { LinkNextHeader::BTH };
        Lrh {
            start: LrhStart::new().with_vl(self.vl & 0xf).with_sl(self.sl & 0xf).with_next_header(next),
            dlid: U16::new(self.dlid),
            length: LrhLength::new().with_words(small((size_of::<Lrh>() + grh + AFTER_GRH) / 4)),
            slid: U16::new(self.slid),
        }
    }
}

fn global(route: &GlobalRoute, sgid: &Gid) -> GrhHeader {
    GrhHeader {
        start: GrhStart::new()
            .with_ip_version(GRH_IP_VERSION)
            .with_traffic_class(route.traffic_class)
            .with_flow_label(route.flow_label & 0xf_ffff),
        payload_bytes: U16::new(small(AFTER_GRH)),
        next_header: GRH_NEXT_HEADER,
        hop_limit: route.hop_limit,
        sgid: *sgid,
        dgid: route.dgid,
    }
}

/// A length of less than 2 KiB.
fn small(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(0) & 0x7ff
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: UdHeader = UdHeader {
        vl: 15,
        sl: 0,
        dlid: 0xffff,
        slid: 0xffff,
        grh: None,
        pkey: 0xffff,
        remote_qpn: 0,
        psn: 7,
        qkey: 0,
        source_qpn: 0,
    };

    #[test]
    fn subnet_management_packet_has_the_bytes_of_the_standard() {
        let bytes = PLAIN.bytes();
        assert_eq!(
            bytes.as_slice(),
            [
                0xf0, 0x02, 0xff, 0xff, 0, 0x48, 0xff, 0xff, //
                0x64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 7, //
                0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn packet_with_a_global_route_has_its_lengths() {
        let route = GlobalRoute {
            dgid: [0xdd; 16],
            sgid_index: 0,
            hop_limit: 64,
            traffic_class: 0xab,
            flow_label: 0xc_def0,
        };
        let header = UdHeader { grh: Some((route, [0x55; 16])), qkey: 0x8001_0000, source_qpn: 1, ..PLAIN };
        let bytes = header.bytes();
        let bytes = bytes.as_slice();
        assert_eq!(bytes.len(), 68);
        assert_eq!((bytes[1], &bytes[4..6]), (3, &[0, 0x52][..]));
        assert_eq!(bytes[8..16], [0x6a, 0xbc, 0xde, 0xf0, 0x01, 0x18, 0x1b, 64]);
        assert_eq!((&bytes[16..32], &bytes[32..48]), (&[0x55; 16][..], &[0xdd; 16][..]));
        assert_eq!(bytes[60..68], [0x80, 1, 0, 0, 0, 0, 0, 1]);
    }
}
