//! The packet headers of a datagram from a special queue pair (IBTA vol. 1, ch. 7 to 9): LRH, GRH, BTH, DETH.
//! The device adds the CRCs, and the source LID but for its low bits.

use mlx4_wire::mad::MAD_SIZE;

use super::GRH_BYTES;
use crate::path::GlobalRoute;
use crate::port::Gid;

const LRH: usize = 8;
const BTH: usize = 12;
const DETH: usize = 8;
/// Size of the ICRC at a packet's end.
pub(super) const ICRC: usize = 4;

/// Local route header's next header: BTH follows, or GRH.
const NEXT_BTH: u8 = 2;
const NEXT_GRH: u8 = 3;
/// IP version and next header of a GRH.
const GRH_VERSION: u32 = 6;
const GRH_NEXT: u8 = 0x1b;
/// UD SEND only.
const OPCODE: u8 = 0x64;

/// Greatest size of the headers.
const MAX: usize = LRH + GRH_BYTES + BTH + DETH;

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

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }
}

impl UdHeader {
    /// The headers of a packet with a datagram of 256 bytes.
    pub(super) fn bytes(&self) -> HeaderBytes {
        let mut out = HeaderBytes { bytes: [0; MAX], length: 0 };
        let after_grh = BTH + DETH + MAD_SIZE + ICRC;
        let packet = LRH + if self.grh.is_some() { GRH_BYTES } else { 0 } + after_grh;
        let next = if self.grh.is_some() { NEXT_GRH } else { NEXT_BTH };
        out.put(&[self.vl << 4, self.sl << 4 | next]);
        out.put(&self.dlid.to_be_bytes());
        out.put(&half(packet / 4));
        out.put(&self.slid.to_be_bytes());
        if let Some((route, sgid)) = &self.grh {
            let word = GRH_VERSION << 28 | u32::from(route.traffic_class) << 20 | route.flow_label & 0xf_ffff;
            out.put(&word.to_be_bytes());
            out.put(&half(after_grh));
            out.put(&[GRH_NEXT, route.hop_limit]);
            out.put(sgid);
            out.put(&route.dgid);
        }
        out.put(&[OPCODE, 0]);
        out.put(&self.pkey.to_be_bytes());
        out.put(&(self.remote_qpn & 0xff_ffff).to_be_bytes());
        out.put(&(self.psn & 0xff_ffff).to_be_bytes());
        out.put(&self.qkey.to_be_bytes());
        out.put(&(self.source_qpn & 0xff_ffff).to_be_bytes());
        out
    }
}

/// A length of less than 64 KiB.
fn half(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(0).to_be_bytes()
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
