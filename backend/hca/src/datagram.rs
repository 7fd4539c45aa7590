//! Paths, address vectors, and multicast groups.

use log::Level;
use mlx4::GlobalRoute;
use paraverbs_tenant::hca::{AddressVector, Gid, Grh, HcaError, McastGroup, Path, PdId, QpId};
use zerocopy::IntoBytes;

use crate::error::told_of_destruction;
use crate::groups::Joining;
use crate::hca::Running;
use crate::objects::{Qp, known};

/// First byte of a multicast GID.
const MULTICAST: u8 = 0xff;

/// A path as the driver takes it. Ethernet's part of it means nothing on an InfiniBand port.
pub(crate) fn to_driver(path: &Path) -> Result<mlx4::Path, HcaError> {
    let grh = path.grh.map(|grh| {
        Ok(GlobalRoute {
            dgid: grh.dgid.0,
            sgid_index: u8::try_from(grh.sgid_index).map_err(|_| HcaError::Refused)?,
            hop_limit: grh.hop_limit,
            traffic_class: grh.traffic_class,
            flow_label: grh.flow_label,
        })
    });
    Ok(mlx4::Path {
        port: path.port,
        dlid: path.dlid,
        sl: path.sl,
        path_bits: path.src_path_bits,
        static_rate: path.static_rate,
        grh: grh.transpose()?,
    })
}

/// A path as the driver tells it.
pub(crate) fn from_driver(path: &mlx4::Path) -> Path {
    Path {
        port: path.port,
        dlid: path.dlid,
        sl: path.sl,
        src_path_bits: path.path_bits,
        static_rate: path.static_rate,
        grh: path.grh.map(|grh| Grh {
            dgid: Gid(grh.dgid),
            sgid_index: grh.sgid_index.into(),
            flow_label: grh.flow_label,
            hop_limit: grh.hop_limit,
            traffic_class: grh.traffic_class,
        }),
        dmac: [0; 6],
    }
}

impl Running {
    /// The address vector, and behind it zeros, where Ethernet ports have theirs.
    pub(crate) fn address_vector(&self, pd: PdId, path: &Path) -> Result<AddressVector, HcaError> {
        let pd = known(&self.objects().pds, pd.0)?;
        let av = self.driver.address_vector(&pd.driver, &to_driver(path)?);
        let av = av.map_err(|error| self.fail(&error))?;
        let mut vector = AddressVector([0; 48]);
        vector.0[..size_of_val(&av)].copy_from_slice(av.as_bytes());
        Ok(vector)
    }

    /// If its port is known already, that begins to join the group.
    pub(crate) fn attach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<Option<Joining>, HcaError> {
        let qp = known(&self.objects().qps, qp.0)?;
        if group.mgid.0[0] != MULTICAST {
            return Err(HcaError::NoGroup);
        }
        let mut membership = qp.membership();
        if membership.groups.contains(&group.mgid.0) {
            return Ok(None);
        }
        let result = self.driver.attach_multicast(&qp.driver, &group.mgid.0, qp.block_loopback);
        match result.map_err(|error| self.fail(&error)) {
            Ok(()) => {
                membership.groups.insert(group.mgid.0);
                Ok(membership.port.map(|port| self.groups().join(port, group.mgid.0)))
            }
            Err(error) => {
                membership.uncertain |= error.leaves_open();
                Err(error)
            }
        }
    }

    pub(crate) fn detach_mcast(&self, qp: QpId, group: &McastGroup) -> Result<(), HcaError> {
        let qp = known(&self.objects().qps, qp.0)?;
        let mut membership = qp.membership();
        if !membership.groups.remove(&group.mgid.0) {
            return Err(HcaError::NoGroup);
        }
        if let Some(port) = membership.port {
            self.groups().leave(port, group.mgid.0);
        }
        self.driver.detach_multicast(&qp.driver, &group.mgid.0).map_err(|error| {
            self.fail(&error);
            let level = self.log.level(Level::Warn);
            log::log!(level, "queue pair {:#x} stays in a group: {error}", qp.driver.number());
            membership.uncertain = true;
            told_of_destruction(&error)
        })
    }

    /// A queue pair is on a port now, and so are its groups.
    pub(crate) fn moved(&self, qp: &Qp, port: u8) {
        let mut membership = qp.membership();
        let before = membership.port.replace(port);
        if before == Some(port) {
            return;
        }
        for group in &membership.groups {
            self.groups().join(port, *group);
            if let Some(before) = before {
                self.groups().leave(before, *group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_goes_to_the_driver_and_back() {
        let grh = Grh {
            dgid: Gid(*b"0123456789abcdef"),
            sgid_index: 3,
            flow_label: 0xa_bcde,
            hop_limit: 64,
            traffic_class: 7,
        };
        let path =
            Path { port: 2, dlid: 9, sl: 5, src_path_bits: 1, static_rate: 3, grh: Some(grh), dmac: [0; 6] };
        assert_eq!(to_driver(&path).map(|path| from_driver(&path)), Ok(path));
        let far = Path { grh: Some(Grh { sgid_index: 256, ..grh }), ..path };
        assert_eq!(to_driver(&far), Err(HcaError::Refused));
    }
}
