//! Address handles.

use std::sync::Arc;

use mlx4_wire::wqe::{Av, DatagramSeg};
use virtio_rdma::request::datagram::CreateAh;
use virtio_rdma::{Reserved, U32};
use zerocopy::FromBytes;

use crate::attr::Gid;
use crate::error::{Error, Result};
use crate::pd::Domain;
use crate::qp::{AhAttr, Grh};
use crate::wr::{GRH_BYTES, Wc};

/// A path that datagrams go (`ibv_ah`). It costs the device nothing; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Ah {
    _domain: Arc<Domain>,
    av: Av,
}

impl Ah {
    pub(crate) fn new(domain: &Arc<Domain>, attr: &AhAttr) -> Result<Self> {
        let pd = U32::new(domain.handle());
        let body = CreateAh { pd, reserved: Reserved::ZERO, attributes: attr.to_wire() };
        let vector = domain.open().call(&body)?.vector;
        let segment = DatagramSeg::read_from_bytes(&vector);
        let av = segment.map_err(|_| Error::Hca("an address vector of another size".into()))?.av;
        Ok(Self { _domain: Arc::clone(domain), av })
    }

    pub(crate) fn av(&self) -> Av {
        self.av
    }
}

impl AhAttr {
    /// The path back to whoever sent a datagram (`ibv_init_ah_from_wc`), from the port that it came to. `grh` is the
    /// start of the receive's memory, which counts if the completion says so ([`Wc::grh`]); `sgid_index` tells the
    /// index of a GID in the port's table.
    ///
    /// # Errors
    /// The GID that it was sent to is not in the table (`EINVAL`).
    pub fn to_sender(
        wc: &Wc,
        grh: &[u8; GRH_BYTES],
        port_num: u8,
        sgid_index: impl FnOnce(Gid) -> Option<u8>,
    ) -> Result<Self> {
        let path = Self {
            dlid: wc.slid,
            sl: wc.sl,
            src_path_bits: wc.dlid_path_bits,
            ..Self::to_lid(wc.slid, port_num)
        };
        if !wc.grh {
            return Ok(path);
        }
        let header = Header::of(grh);
        let sgid_index = sgid_index(header.dgid)
            .ok_or_else(|| Error::Invalid(format!("{} is no GID of port {port_num}", header.dgid)))?;
        let grh = Grh {
            dgid: header.sgid,
            flow_label: header.flow_label,
            sgid_index,
            hop_limit: 0xff,
            traffic_class: header.traffic_class,
        };
        Ok(Self { grh: Some(grh), ..path })
    }
}

/// What a GRH says (IBTA 8.3): version, traffic class and flow label; payload length, next header, hop limit;
/// both GIDs.
struct Header {
    traffic_class: u8,
    flow_label: u32,
    sgid: Gid,
    dgid: Gid,
}

impl Header {
    fn of(bytes: &[u8; GRH_BYTES]) -> Self {
        let (mut sgid, mut dgid) = ([0; 16], [0; 16]);
        sgid.copy_from_slice(&bytes[8..24]);
        dgid.copy_from_slice(&bytes[24..40]);
        let [a, b, c, d, ..] = *bytes;
        Self {
            traffic_class: a << 4 | b >> 4,
            flow_label: u32::from_be_bytes([0, b & 0xf, c, d]),
            sgid: Gid(sgid),
            dgid: Gid(dgid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(grh: bool) -> Wc {
        Wc { slid: 7, sl: 3, dlid_path_bits: 1, grh, ..Wc::default() }
    }

    fn header() -> [u8; GRH_BYTES] {
        let mut bytes = [0; GRH_BYTES];
        bytes[..8].copy_from_slice(&[0x6a, 0xb1, 0x23, 0x45, 0, 16, 0x1b, 64]);
        bytes[8..24].fill(0x11);
        bytes[24..].fill(0x22);
        bytes
    }

    #[test]
    fn path_to_the_sender_is_that_of_the_datagram_turned_round() {
        let known = |gid: Gid| (gid == Gid([0x22; 16])).then_some(5);
        let path = AhAttr::to_sender(&received(true), &header(), 2, known).unwrap();
        assert_eq!((path.dlid, path.sl, path.src_path_bits, path.port_num), (7, 3, 1, 2));
        let grh = Grh {
            dgid: Gid([0x11; 16]),
            flow_label: 0x1_2345,
            sgid_index: 5,
            hop_limit: 0xff,
            traffic_class: 0xab,
        };
        assert_eq!(path.grh, Some(grh));
        assert_eq!(AhAttr::to_sender(&received(false), &header(), 2, |_| None).unwrap().grh, None);
        let foreign = AhAttr::to_sender(&received(true), &header(), 2, |_| None);
        assert_eq!(foreign.unwrap_err().errno(), libc::EINVAL);
    }
}
