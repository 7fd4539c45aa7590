//! Packets with a P_Key or Q_Key that their queue pair doesn't take: counted at the port, and told to the
//! subnet manager (IBTA vol. 1, 14.2.5.1, traps 257 and 258).

use mlx4_wire::mad::notice::{BadKeyDetails, OffendingQp, Trap};
use mlx4_wire::{Number24, U16, U32};
use zerocopy::FromZeros;

use super::side::Side;
use crate::fabric::packet::Headers;
use crate::hca::Hca;
use crate::node::port::PortState;

/// A datagram whose `key` queue pair `number` of a port doesn't take.
pub(super) fn datagram(hca: &Hca, port: u8, trap: Trap, key: u32, headers: &Headers, number: u32) {
    let mut details = BadKeyDetails::new_zeroed();
    details.lid1 = U16::new(headers.slid);
    details.lid2 = U16::new(headers.dlid);
    details.key = U32::new(key);
    details.qp1 = offender(headers.sl, headers.src_qp);
    details.qp2 = offender(0, number);
    if let Some(grh) = &headers.grh {
        (details.gid1, details.gid2) = (grh.sgid, grh.dgid);
    }
    hca.bad_key(port, trap, &details);
}

/// Packets of the connected queue pair `own`, sent from LID `slid`, whose P_Key the queue pair at the other end
/// doesn't take; `hca` and `port` are that one's.
pub(super) fn connection(own: &Side<'_>, from: &PortState, slid: u16, pkey: u16, hca: &Hca, port: u8) {
    let path = &own.attrs.path;
    let mut details = BadKeyDetails::new_zeroed();
    details.lid1 = U16::new(slid);
    details.lid2 = path.remote_lid;
    details.key = U32::new(pkey.into());
    details.qp1 = offender(path.sched_queue.sl(), own.attrs.qpn);
    details.qp2 = offender(0, own.attrs.remote_qpn);
    if path.source.grh() {
        details.gid1 = from.gid(usize::from(path.sgid_index & 0x7f)).unwrap_or_default();
        details.gid2 = path.remote_gid;
    }
    hca.bad_key(port, Trap::BAD_P_KEY, &details);
}

fn offender(sl: u8, qpn: u32) -> OffendingQp {
    OffendingQp::new().with_sl(u32::from(sl & 0xf)).with_qp(qpn & Number24::MAX)
}
