//! Guest memory as the seam takes it.
//!
//! Unsafe code: one call that passes a guest's piece on to the seam; both promise the same of it.
#![expect(unsafe_code, reason = "guest memory passes from its keeper to the seam")]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use mlx4_pci::HostMemory;
use paraverbs_tenant::GuestPiece;

/// A piece of guest memory, with a descriptor of its file; `None` if it is nowhere.
pub(crate) fn host_memory(piece: &GuestPiece<'_>, file: Arc<File>) -> Option<HostMemory> {
    let length = usize::try_from(piece.length).ok()?;
    piece.host_address.checked_add(length)?;
    let base = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(piece.host_address))?;
    // SAFETY: `GuestPiece` promises that `keep` keeps these bytes mapped in this process, that its pages are
    // whole (so they are aligned), and that everybody accesses guest memory, which changes at any time, without
    // references into it. A piece that isn't writable is given to the HCA for reading only, and nobody here
    // writes through this value.
    Some(unsafe { HostMemory::new(file, piece.offset, base, length, Arc::clone(piece.keep)) })
}
