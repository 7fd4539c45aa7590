//! A MAD with the headers it came with or goes out with, held by value.

use mlx4_wire::mad::{DEFAULT_PKEY, LID_PERMISSIVE, MAD_SIZE, QP1_QKEY};
use vm_memory::VolatileSlice;

use super::packet::{Headers, Packet};

/// A management datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    /// Its headers.
    pub(crate) headers: Headers,
    /// Its payload.
    pub(crate) mad: [u8; MAD_SIZE],
}

impl Datagram {
    /// A directed-route SMP, as it leaves for its next hop.
    pub(crate) fn directed(mad: [u8; MAD_SIZE]) -> Self {
        Self { headers: smp_headers(LID_PERMISSIVE, LID_PERMISSIVE), mad }
    }

    /// A LID-routed SMP.
    pub(crate) fn lid_routed(slid: u16, dlid: u16, mad: [u8; MAD_SIZE]) -> Self {
        Self { headers: smp_headers(slid, dlid), mad }
    }

    /// The answer to this datagram, back the way it came: LIDs, queue pairs and GIDs swapped. It comes from
    /// `own_lid` if the request went to the permissive LID.
    pub(crate) fn answer(&self, own_lid: u16, mad: [u8; MAD_SIZE]) -> Self {
        let mut headers = self.headers;
        headers.dlid = self.headers.slid;
        headers.slid = if self.headers.dlid == LID_PERMISSIVE { own_lid } else { self.headers.dlid };
        headers.dest_qp = self.headers.src_qp;
        headers.src_qp = self.headers.dest_qp;
        headers.solicited = false;
        headers.immediate = None;
        if !headers.vl15 {
            headers.qkey = QP1_QKEY;
        }
        if let Some(grh) = &mut headers.grh {
            std::mem::swap(&mut grh.sgid, &mut grh.dgid);
            grh.hop_limit = u8::MAX;
        }
        Self { headers, mad }
    }

    /// Copies the MAD out of a packet; `None` unless it has the size of a MAD.
    pub(crate) fn read(packet: &Packet<'_>) -> Option<Self> {
        let mut mad = [0; MAD_SIZE];
        let whole = packet.payload_len() == MAD_SIZE && packet.copy_payload(&mut mad) == MAD_SIZE;
        whole.then_some(Self { headers: packet.headers, mad })
    }

    /// Hands the datagram over as a packet.
    pub(crate) fn with_packet<R>(&self, f: impl FnOnce(&Packet<'_>) -> R) -> R {
        let mut mad = self.mad;
        f(&Packet { headers: self.headers, payload: &[VolatileSlice::from(&mut mad[..])] })
    }
}

fn smp_headers(slid: u16, dlid: u16) -> Headers {
    Headers { vl15: true, slid, dlid, pkey: DEFAULT_PKEY, ..Headers::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::packet::Grh;

    #[test]
    fn answer_goes_back_the_way_the_request_came() {
        let grh = Grh { sgid: [1; 16], dgid: [2; 16], ..Grh::default() };
        let headers = Headers {
            slid: 3,
            dlid: 1,
            src_qp: 0x40,
            dest_qp: 1,
            pkey: 0x8005,
            grh: Some(grh),
            ..Headers::default()
        };
        let answer = Datagram { headers, mad: [0; MAD_SIZE] }.answer(9, [7; MAD_SIZE]);
        assert_eq!((answer.headers.slid, answer.headers.dlid), (1, 3));
        assert_eq!((answer.headers.src_qp, answer.headers.dest_qp), (1, 0x40));
        assert_eq!((answer.headers.qkey, answer.headers.pkey), (QP1_QKEY, 0x8005));
        assert_eq!(answer.headers.grh.unwrap().dgid, [1; 16]);
    }

    #[test]
    fn packet_of_another_size_is_no_mad() {
        let mut data = [0; 255];
        let payload = [VolatileSlice::from(&mut data[..])];
        assert!(Datagram::read(&Packet { headers: Headers::default(), payload: &payload }).is_none());
        let datagram = Datagram::directed([5; MAD_SIZE]);
        assert_eq!(datagram.with_packet(Datagram::read), Some(datagram));
    }
}
