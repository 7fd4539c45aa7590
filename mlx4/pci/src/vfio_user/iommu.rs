//! The function's addresses, which its server translates.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::IntoBytes;

use super::message::{Command, DmaMap, DmaUnmap, MAP_READ, MAP_WRITE, argsz};
use super::server::Server;
use crate::{DmaAccess, DmaError, DmaSpace, Geometry, HostMemory, Iommu, Limits};

/// Above what a process or a guest uses for itself, so that an address of theirs is none of the function's.
const FIRST: u64 = 1 << 50;
const LAST: u64 = (1 << 51) - 0x1001;
/// Granule of mappings in bytes.
const PAGE: u64 = 4096;

/// The space of a server that nothing has been mapped at yet.
pub(super) fn space(server: &Arc<Server>) -> DmaSpace {
    let geometry = Geometry { ranges: vec![FIRST..=LAST], granule: PAGE };
    let iommu = VfioUserIommu { server: Arc::clone(server), used: AtomicU64::new(0) };
    DmaSpace::new(geometry, Box::new(iommu))
}

#[derive(Debug)]
struct VfioUserIommu {
    server: Arc<Server>,
    /// Mappings that there are.
    used: AtomicU64,
}

impl Iommu for VfioUserIommu {
    fn map(&self, iova: u64, memory: &HostMemory, access: DmaAccess) -> Result<(), DmaError> {
        let (len, maximum) = (memory.len() as u64, self.server.abilities.maps);
        let take = |used: u64| (used < maximum).then_some(used + 1);
        if self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            return Err(DmaError::NoMapping { maximum });
        }
        let write = if access == DmaAccess::ReadWrite { MAP_WRITE } else { 0 };
        let map = DmaMap {
            argsz: argsz::<DmaMap>(),
            flags: MAP_READ | write,
            offset: memory.offset(),
            address: iova,
            size: len,
        };
        let link = &self.server.link;
        link.call(Command::DmaMap, &[map.as_bytes()], &[memory.fd().as_raw_fd()], &mut []).map(drop).map_err(
            |source| {
                self.used.fetch_sub(1, Ordering::SeqCst);
                match source.raw_os_error() {
                    Some(libc::ENOSPC) => DmaError::NoMapping { maximum },
                    _ => DmaError::Map { iova, len, source },
                }
            },
        )
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), DmaError> {
        let failed = |source| DmaError::Unmap { iova, len, source };
        let unmap = DmaUnmap { argsz: argsz::<DmaUnmap>(), flags: 0, address: iova, size: len };
        let mut answer = DmaUnmap::default();
        let link = &self.server.link;
        let bytes =
            link.call(Command::DmaUnmap, &[unmap.as_bytes()], &[], answer.as_mut_bytes()).map_err(failed)?;
        if bytes != size_of::<DmaUnmap>() || (answer.address, answer.size) != (iova, len) {
            return Err(failed(io::Error::other("the server unmapped something else")));
        }
        self.used.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn limits(&self) -> Result<Limits, DmaError> {
        let maximum = self.server.abilities.maps;
        Ok(Limits { left: maximum.saturating_sub(self.used.load(Ordering::SeqCst)), maximum })
    }
}
