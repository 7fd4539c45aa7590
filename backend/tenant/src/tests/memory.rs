//! Guest memory for tests.

use std::fs::File;
use std::sync::Arc;

use crate::memory::{FileId, GuestRegion};

/// A region that no one reads or writes.
pub(crate) fn region(guest_address: u64, length: u64, offset: u64) -> GuestRegion {
    GuestRegion {
        guest_address,
        length,
        fd: File::open("/dev/null").unwrap().into(),
        file: FileId { device: 1, inode: 2 },
        offset,
        host_address: 0x7000_0000_0000,
        writable: true,
        keep: Arc::new(()),
    }
}
