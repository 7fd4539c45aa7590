//! Large send: one work request whose payload goes out in packets of a size, each behind a copy of a header
//! from the work request.
//!
//! A header of IP over InfiniBand with TCP (RFC 4391: four bytes, then IPv4 or IPv6) is made right for each
//! packet: lengths, IPv4 identification, sequence number, flags, and the checksums that the control segment
//! asks for. Any other header goes out as it is.

use vm_memory::VolatileSlice;

/// Bytes before the IP header: EtherType and two reserved bytes.
const ENCAPSULATION: usize = 4;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// TCP flags that the last packet alone has, and the one that the first alone has.
const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// What a large send does, besides its destination and its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Offset of the header in the WQE.
    pub(super) header_at: usize,
    /// Bytes of the header.
    pub(super) header_bytes: usize,
    /// Payload of each packet but the last.
    pub(super) size: u64,
    /// Compute the checksum of the IP header, and that of TCP.
    pub(super) ip_checksum: bool,
    pub(super) l4_checksum: bool,
}

/// Which packet of a large send a header is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Bytes of payload before this packet.
    pub(super) from: u64,
    /// It is the last one.
    pub(super) last: bool,
}

/// Makes a header right for one packet with its payload.
pub(super) fn adapt(header: &mut [u8], segments: &Segments, place: Place, payload: &[VolatileSlice<'_>]) {
    let Some((ether, ip)) = header.split_at_mut_checked(ENCAPSULATION) else { return };
    let bytes: usize = payload.iter().map(VolatileSlice::len).sum();
    let total = u16::try_from(ip.len() + bytes).unwrap_or(u16::MAX);
    let (tcp_at, pseudo) = match [ether[0], ether[1]] {
        ETHERTYPE_IPV4 => match ipv4(ip, total, segments, place) {
            Some(found) => found,
            None => return,
        },
        ETHERTYPE_IPV6 if ip.len() >= IPV6_HEADER && ip[6] == TCP => {
            let after = u16::try_from(ip.len() + bytes - IPV6_HEADER).unwrap_or(u16::MAX);
            ip[4..6].copy_from_slice(&after.to_be_bytes());
            (IPV6_HEADER, Sum::default().add(&ip[8..40]))
        }
        _ => return,
    };
    let length = u16::try_from(ip.len() + bytes - tcp_at).unwrap_or(u16::MAX);
    let Some(tcp) = ip.get_mut(tcp_at..).filter(|tcp| tcp.len() >= TCP_HEADER) else { return };
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let before = u32::try_from(place.from & u64::from(u32::MAX)).unwrap_or(0);
    tcp[4..8].copy_from_slice(&sequence.wrapping_add(before).to_be_bytes());
    if !place.last {
        tcp[13] &= !FIN_PSH;
    }
    if place.from != 0 {
        tcp[13] &= !CWR;
    }
    if segments.l4_checksum {
        tcp[16..18].fill(0);
        let start = pseudo.add(&[0, TCP]).add(&length.to_be_bytes()).add(tcp);
        let sum = payload.iter().fold(start, |sum, piece| sum.add_memory(piece));
        tcp[16..18].copy_from_slice(&sum.finish());
    }
}

/// Makes an IPv4 header right. Gives where TCP begins, and the sum of the addresses.
fn ipv4(ip: &mut [u8], total: u16, segments: &Segments, place: Place) -> Option<(usize, Sum)> {
    let length = usize::from(ip.first()? & 0xf) * 4;
    if length < 20 || ip.len() < length || ip[9] != TCP {
        return None;
    }
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let number = place.from / segments.size.max(1);
    let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(u16::try_from(number & 0xffff).unwrap_or(0));
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    if segments.ip_checksum {
        ip[10..12].fill(0);
        let sum = Sum::default().add(&ip[..length]).finish();
        ip[10..12].copy_from_slice(&sum);
    }
    Some((length, Sum::default().add(&ip[12..20])))
}

/// The checksum of the Internet protocols (RFC 1071) while it is computed.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    words: u64,
    /// An odd number of bytes was added.
    odd: bool,
}

impl Sum {
    fn add(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |Self { words, odd }, &byte| {
            let byte = u64::from(byte);
            Self { words: words + if odd { byte } else { byte << 8 }, odd: !odd }
        })
    }

    fn add_memory(mut self, memory: &VolatileSlice<'_>) -> Self {
        let mut chunk = [0; 256];
        let mut at = 0;
        while let Ok(rest) = memory.offset(at) {
            let n = rest.copy_to(&mut chunk);
            if n == 0 {
                break;
            }
            self = self.add(&chunk[..n]);
            at += n;
        }
        self
    }

    fn finish(self) -> [u8; 2] {
        let mut sum = self.words;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).unwrap_or(0)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3, in even and odd pieces.
    #[test]
    fn checksum_is_that_of_the_standard() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&data).finish(), (!0xddf2u16).to_be_bytes());
        assert_eq!(Sum::default().add(&data[..3]).add(&data[3..]).finish(), (!0xddf2u16).to_be_bytes());
        let mut long = [0xabu8; 999];
        let memory = VolatileSlice::from(&mut long[..]);
        assert_eq!(Sum::default().add_memory(&memory).finish(), Sum::default().add(&[0xab; 999]).finish());
    }

    #[test]
    fn header_that_is_cut_off_or_none_of_ip_stays() {
        let segments =
            Segments { header_at: 0, header_bytes: 0, size: 8, ip_checksum: true, l4_checksum: true };
        let place = Place { from: 8, last: false };
        let ipv6 = [&ETHERTYPE_IPV6[..], &[0, 0], &[0; 36]].concat();
        let mut short_tcp = [&ETHERTYPE_IPV4[..], &[0, 0, 0x4f], &[0; 19]].concat();
        short_tcp[13] = TCP;
        for header in [vec![], vec![1, 2, 3], b"some header".to_vec(), ipv6, short_tcp] {
            let mut adapted = header.clone();
            adapt(&mut adapted, &segments, place, &[]);
            assert_eq!(adapted, header);
        }
    }
}
