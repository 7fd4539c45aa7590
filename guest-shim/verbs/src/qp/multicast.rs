//! Multicast groups of a UD queue pair.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use virtio_rdma::request::datagram::{AttachMcast, DetachMcast};
use virtio_rdma::{Reserved, U16, U32};

use super::Qp;
use crate::attr::Gid;
use crate::error::Result;

/// The groups that a queue pair is in: GIDs and LIDs.
#[derive(Debug, Default)]
pub(super) struct Groups(BTreeSet<([u8; 16], u16)>);

impl Qp {
    /// From now on what is sent to a group comes to this queue pair too (`ibv_attach_mcast`). The device has the port
    /// join the group, if it exists in the subnet or as soon as it does; a program needn't, and can't create one.
    /// Waits for the subnet administrator, for a second at most. Twice counts once.
    ///
    /// # Errors
    /// It is no GID or LID of a group, or the queue pair is not one of UD (`EINVAL`); there are too many (`ENOMEM`);
    /// the device has no multicast (`EOPNOTSUPP`); the device is lost.
    pub fn attach_mcast(&self, gid: &Gid, lid: u16) -> Result<()> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let qp = U32::new(self.handle);
        let body = AttachMcast { qp, mlid: U16::new(lid), reserved: Reserved::ZERO, mgid: gid.0 };
        self.open().call(&body)?;
        groups.0.insert((gid.0, lid));
        Ok(())
    }

    /// Leaves a group (`ibv_detach_mcast`).
    ///
    /// # Errors
    /// The queue pair is not in it (`EINVAL`); the device is lost.
    pub fn detach_mcast(&self, gid: &Gid, lid: u16) -> Result<()> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        self.detach(gid.0, lid)?;
        groups.0.remove(&(gid.0, lid));
        Ok(())
    }

    fn detach(&self, mgid: [u8; 16], lid: u16) -> Result<()> {
        let qp = U32::new(self.handle);
        let body = DetachMcast { qp, mlid: U16::new(lid), reserved: Reserved::ZERO, mgid };
        self.open().end(&body, &[])
    }

    /// Leaves all groups, without which a queue pair can't end.
    pub(super) fn leave_groups(&self) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        for (mgid, lid) in std::mem::take(&mut groups.0) {
            if let Err(error) = self.detach(mgid, lid) {
                log::warn!("{error}");
            }
        }
    }
}
