//! A guest's memory table as a transport mapped it: what is accepted, and how the tenant gets it.
//!
//! Each region's mapping is watched before anybody uses it. Does not: compare tables (the tenant does).

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use paraverbs_tenant::{FileId, GuestFault, GuestMemory, GuestRegion, MemoryError};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::mapping::Mapping;

/// A guest's memory, by guest address.
pub(crate) type Memory = GuestMemoryMmap<()>;

/// What `statfs` says of a memfd.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// What `statfs` says of huge pages, memfd or not.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Why a device doesn't take a guest's memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryRefused {
    /// It is another kind of file.
    #[error("memory at {address:#x} is neither a memfd nor hugetlbfs; share the guest's memory as memfd")]
    Kind {
        /// The guest's address.
        address: u64,
    },
    /// The guest could take it away.
    #[error(
        "memory at {address:#x} lacks F_SEAL_SHRINK, which this socket requires; seal it or set require_seals off"
    )]
    NotSealed {
        /// The guest's address.
        address: u64,
    },
    /// The file is shorter than the region.
    #[error("memory at {address:#x} ends at {end:#x} of a file of {bytes:#x} bytes")]
    TooShort {
        /// The guest's address.
        address: u64,
        /// Where in the file the region ends.
        end: u64,
        /// Size of the file in bytes.
        bytes: u64,
    },
    /// A system call failed.
    #[error("memory at {address:#x} can't be used")]
    System {
        /// The guest's address.
        address: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The table as a whole is none that the guest may have.
    #[error(transparent)]
    Table(#[from] MemoryError),
}

/// A memory table with the watches over its regions.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable {
    memory: Memory,
    mappings: Vec<Arc<Mapping>>,
}

impl MemoryTable {
    /// Takes in the table that the transport has mapped; what `before` watches already stays watched.
    pub(crate) fn new(memory: Memory, before: &Self, require_seals: bool) -> Result<Self, MemoryRefused> {
        let mut mappings = Vec::with_capacity(memory.num_regions());
        for region in memory.iter() {
            mappings.push(before.mapping_of(region).map_or_else(|| watch(region, require_seals), Ok)?);
        }
        Ok(Self { memory, mappings })
    }

    fn mapping_of(&self, region: &GuestRegionMmap) -> Option<Arc<Mapping>> {
        let region = region.get_mmap();
        self.mappings.iter().find(|mapping| mapping.is_of(&region)).cloned()
    }

    /// The memory, for virtqueues.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether the guest has taken some of it away.
    pub(crate) fn is_lost(&self) -> bool {
        self.mappings.iter().any(|mapping| mapping.state().file_lost())
    }

    /// The regions, for the tenant.
    pub(crate) fn regions(&self) -> Result<Vec<GuestRegion>, MemoryRefused> {
        self.memory
            .iter()
            .zip(&self.mappings)
            .map(|(region, mapping)| guest_region(region, mapping))
            .collect()
    }
}

fn file_of(region: &GuestRegionMmap) -> Result<(&File, u64), MemoryRefused> {
    let address = region.start_addr().raw_value();
    let file = region.file_offset().ok_or(MemoryRefused::Kind { address })?;
    Ok((file.file(), file.start()))
}

fn watch(region: &GuestRegionMmap, require_seals: bool) -> Result<Arc<Mapping>, MemoryRefused> {
    let address = region.start_addr().raw_value();
    let system = |source: io::Error| MemoryRefused::System { address, source };
    let (file, start) = file_of(region)?;
    let mapping = Mapping::new(region.get_mmap(), file).map_err(system)?;

    let stat = fstat(file).map_err(|errno| system(errno.into()))?;
    let kind = u64::try_from(fstatfs(file).map_err(|errno| system(errno.into()))?.f_type).unwrap_or(0);
    // A memfd is a file of a tmpfs without a name.
    if kind != HUGETLBFS_MAGIC && (kind != TMPFS_MAGIC || stat.st_nlink != 0) {
        return Err(MemoryRefused::Kind { address });
    }
    let (end, bytes) = (start.saturating_add(region.len()), u64::try_from(stat.st_size).unwrap_or(0));
    if end > bytes {
        return Err(MemoryRefused::TooShort { address, end, bytes });
    }
    // A file that can't be sealed has no seals.
    if require_seals && !fcntl_get_seals(file).unwrap_or(SealFlags::empty()).contains(SealFlags::SHRINK) {
        return Err(MemoryRefused::NotSealed { address });
    }
    Ok(Arc::new(mapping))
}

fn guest_region(region: &GuestRegionMmap, mapping: &Arc<Mapping>) -> Result<GuestRegion, MemoryRefused> {
    let guest_address = region.start_addr().raw_value();
    let (file, offset) = file_of(region)?;
    let fd = file.try_clone().map_err(|source| MemoryRefused::System { address: guest_address, source })?;
    let key = mapping.file();
    Ok(GuestRegion {
        guest_address,
        length: region.len(),
        fd: OwnedFd::from(fd),
        file: FileId { device: key.device, inode: key.inode },
        offset,
        host_address: mapping.address(),
        // The transport maps nothing that it can't write.
        writable: true,
        keep: Arc::clone(mapping) as Arc<dyn Any + Send + Sync>,
    })
}

/// The mapping of a region that [`MemoryTable::regions`] made.
pub(crate) fn mapping_of(region: &GuestRegion) -> Option<Arc<Mapping>> {
    Arc::clone(&region.keep).downcast().ok()
}

/// Copies for the tenant.
#[derive(Debug)]
pub(crate) struct Copies;

impl GuestMemory for Copies {
    fn read(&self, region: &GuestRegion, offset: u64, to: &mut [u8]) -> Result<(), GuestFault> {
        let done = mapping_of(region).is_some_and(|mapping| mapping.read(offset, to));
        if done { Ok(()) } else { Err(GuestFault) }
    }

    fn write(&self, region: &GuestRegion, offset: u64, from: &[u8]) -> Result<(), GuestFault> {
        let done = mapping_of(region).is_some_and(|mapping| mapping.write(offset, from));
        if done { Ok(()) } else { Err(GuestFault) }
    }
}
