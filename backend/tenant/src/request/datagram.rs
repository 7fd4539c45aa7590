//! Address vectors and multicast groups.

use virtio_rdma::request::datagram::{AddressVector, AttachMcast, CreateAh, DetachMcast};
use virtio_rdma::request::{Done, Request};
use virtio_rdma::{Reason, U16};

use super::{CarryOut, path};
use crate::hca::{Gid, McastGroup, QpId, QpKind};
use crate::objects::found;
use crate::state::State;

/// The first byte of a multicast GID.
const MULTICAST_GID: u8 = 0xff;
/// Multicast LIDs (IBTA 4.1.3).
const MULTICAST_LIDS: std::ops::Range<u16> = 0xc000..0xffff;

impl CarryOut for CreateAh {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<AddressVector, Reason> {
        let pd = state.objects.pd(self.pd.get())?;
        let path = path::from_guest(state, &self.attributes)?;
        let vector = state.hca().address_vector(pd, &path).map_err(|error| error.reason())?;
        Ok(AddressVector { vector: vector.0 })
    }
}

/// A group as a request names it.
fn group(mgid: [u8; 16], mlid: U16) -> Result<McastGroup, Reason> {
    if mgid[0] != MULTICAST_GID || !MULTICAST_LIDS.contains(&mlid.get()) {
        return Err(Reason::BAD_GID);
    }
    Ok(McastGroup { mgid: Gid(mgid), mlid: mlid.get() })
}

/// A queue pair that can be in groups, and whether it is in this one.
fn member(state: &State, handle: u32, group: &McastGroup) -> Result<(QpId, bool), Reason> {
    let qp = found(state.objects.qps.get(handle))?;
    if qp.geometry.kind != QpKind::Ud {
        return Err(Reason::BAD_TYPE);
    }
    Ok((qp.base.live()?, qp.groups.contains(group)))
}

/// How many queue pairs of the guest are in a group.
fn members(state: &State, group: &McastGroup) -> u32 {
    let members = state.objects.qps.iter().filter(|(_, qp)| qp.groups.contains(group));
    u32::try_from(members.count()).unwrap_or(u32::MAX)
}

impl CarryOut for AttachMcast {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let group = group(self.mgid, self.mlid)?;
        let (qp, is_member) = member(state, self.qp.get(), &group)?;
        if is_member {
            return Ok(Done {});
        }
        let limits = &state.config.limits;
        if state.attachments >= limits.mcast_attachments || members(state, &group) >= limits.mcast_members {
            return Err(Reason::OBJECT_LIMIT);
        }
        if let Err(error) = state.hca().attach_mcast(qp, &group) {
            // It may be in the group: it is taken out, or its number stays out of use.
            if error.leaves_open() && state.hca().detach_mcast(qp, &group).is_err() {
                log::warn!("{qp:?} may be in a multicast group that it was not attached to: {error}");
            }
            return Err(error.reason());
        }
        state.attachments += 1;
        found(state.objects.qps.get_mut(self.qp.get()))?.groups.insert(group);
        Ok(Done {})
    }
}

impl CarryOut for DetachMcast {
    fn carry_out(&self, state: &mut State, _: &Request<'_>) -> Result<Done, Reason> {
        let group = group(self.mgid, self.mlid)?;
        let (qp, is_member) = member(state, self.qp.get(), &group)?;
        if !is_member {
            return Err(Reason::BAD_GID);
        }
        let result = state.hca().detach_mcast(qp, &group);
        if result.is_err_and(|error| !error.leaves_open()) {
            return result.map(|()| Done {}).map_err(|error| error.reason());
        }
        found(state.objects.qps.get_mut(self.qp.get()))?.groups.remove(&group);
        state.attachments = state.attachments.saturating_sub(1);
        result.map(|()| Done {}).map_err(|error| error.reason_of_destruction())
    }
}
