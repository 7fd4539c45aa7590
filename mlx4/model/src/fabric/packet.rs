//! An InfiniBand packet as the model carries it: headers as plain values, and the payload by reference to
//! the sender's memory, so that it is copied once, into the receiver's.
//!
//! Only datagrams (UD, and MADs on QP0 and QP1) cross the switch as packets. Connected transports look up
//! the far port once for each burst, by the same tables, and then work on both queue pairs directly.

use mlx4_wire::mad::{LID_MULTICAST_FIRST, LID_PERMISSIVE};
use vm_memory::VolatileSlice;

/// Bytes of the headers and check sum that every datagram has.
const LRH_BTH_DETH_ICRC: usize = 8 + 12 + 8 + 4;
/// Bytes of the global route header.
const GRH_SIZE: usize = 40;

/// The local route header, Global route header and transport headers of a datagram (IBTA vol. 1, ch. 7-9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Virtual lane is VL15: subnet management, not subject to port state beyond link-up.
    pub vl15: bool,
    /// Service level, 0 to 15.
    pub sl: u8,
    /// Destination LID; 0xffff is the permissive LID.
    pub dlid: u16,
    /// Source LID.
    pub slid: u16,
    /// Global route header, where there is one.
    pub grh: Option<Grh>,
    /// Solicited event bit.
    pub solicited: bool,
    /// P_Key in the BTH.
    pub pkey: u16,
    /// Destination queue pair, 24 bits; 0xffffff for multicast.
    pub dest_qp: u32,
    /// Packet sequence number, 24 bits.
    pub psn: u32,
    /// Q_Key in the DETH.
    pub qkey: u32,
    /// Source queue pair, 24 bits.
    pub src_qp: u32,
    /// Immediate data, as it lies on the wire.
    pub immediate: Option<[u8; 4]>,
}

impl Headers {
    /// Whether the destination LID is that of a multicast group.
    pub fn is_multicast(&self) -> bool {
        is_multicast(self.dlid)
    }
}

/// Whether a LID is that of a multicast group.
pub(crate) fn is_multicast(lid: u16) -> bool {
    (LID_MULTICAST_FIRST..LID_PERMISSIVE).contains(&lid)
}

/// The global route header (IBTA vol. 1, 8.3), without version, next header and payload length, which
/// follow from the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grh {
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source GID.
    pub sgid: [u8; 16],
    /// Destination GID; a multicast GID starts with 0xff.
    pub dgid: [u8; 16],
}

/// A datagram on its way.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The headers.
    pub headers: Headers,
    /// The payload's pieces, in order. For a MAD they add up to 256 bytes.
    pub payload: &'a [VolatileSlice<'a>],
}

impl Packet<'_> {
    /// Payload length in bytes.
    pub fn payload_len(&self) -> usize {
        self.payload.iter().map(VolatileSlice::len).sum()
    }

    /// Length from the local route header through the invariant CRC, in 4-byte words, as counters count it.
    pub fn words(&self) -> u64 {
        let headers = &self.headers;
        let bytes = LRH_BTH_DETH_ICRC
            + if headers.grh.is_some() { GRH_SIZE } else { 0 }
            + headers.immediate.map_or(0, |immediate| immediate.len())
            + self.payload_len();
        u64::try_from(bytes.div_ceil(4)).unwrap_or(0)
    }

    /// Copies as much of the payload as fits in `to`; returns the number of bytes copied.
    pub fn copy_payload(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.payload {
            if done == to.len() {
                break;
            }
            let n = piece.len().min(to.len() - done);
            piece.copy_to(&mut to[done..done + n]);
            done += n;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mad_counts_as_on_the_wire() {
        let mut mad = [0; 256];
        let payload = [VolatileSlice::from(&mut mad[..])];
        let mut packet = Packet { headers: Headers::default(), payload: &payload };
        assert_eq!(packet.words(), 72);
        packet.headers.grh = Some(Grh::default());
        assert_eq!(packet.words(), 82);
    }
}
