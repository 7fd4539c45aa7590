//! Interrupts as eventfds that the client passed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::device::Interrupts;

/// One eventfd for each MSI-X vector, or none. Raising an interrupt takes no lock and never blocks.
#[derive(Debug)]
pub struct EventFdInterrupts {
    vectors: Box<[ArcSwapOption<File>]>,
}

impl EventFdInterrupts {
    /// As many vectors as the function's MSI-X table has, none of them connected.
    pub fn new(vectors: u16) -> Self {
        Self { vectors: (0..vectors).map(|_| ArcSwapOption::empty()).collect() }
    }

    /// Number of vectors.
    pub(super) fn count(&self) -> u32 {
        // Made from a u16.
        u32::try_from(self.vectors.len()).unwrap_or(u32::MAX)
    }

    /// Connects the vectors from `start` on, and disconnects those for which there is no eventfd.
    pub(super) fn connect(&self, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        let vectors = self.range(start, count)?;
        if fds.len() > vectors.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut fds = fds.into_iter();
        for vector in vectors {
            vector.store(fds.next().map(nonblocking).transpose()?.map(Arc::new));
        }
        Ok(())
    }

    /// Raises the interrupts of several vectors, as a client may ask for to test them.
    pub(super) fn raise(&self, start: u32, count: u32) -> io::Result<()> {
        self.range(start, count)?.iter().for_each(signal);
        Ok(())
    }

    /// Closes all eventfds.
    pub(super) fn disconnect(&self) {
        self.vectors.iter().for_each(|vector| vector.store(None));
    }

    fn range(&self, start: u32, count: u32) -> io::Result<&[ArcSwapOption<File>]> {
        let range = usize::try_from(start).ok().zip(usize::try_from(count).ok());
        range
            .and_then(|(start, count)| self.vectors.get(start..start.checked_add(count)?))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Interrupts for EventFdInterrupts {
    fn signal(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            signal(vector);
        }
    }
}

/// Adds one to an eventfd. A full one, or a descriptor that is something else, is the client's own loss.
fn signal(vector: &ArcSwapOption<File>) {
    if let Some(fd) = &*vector.load()
        && let Err(error) = (&**fd).write(&1u64.to_ne_bytes())
    {
        log::trace!("interrupt lost: {error}");
    }
}

/// A descriptor whose writes never wait: whoever raises an interrupt must not depend on the client.
fn nonblocking(fd: File) -> io::Result<File> {
    // The standard library sets the flag on sockets only, by an ioctl that every descriptor has.
    let fd = UnixDatagram::from(OwnedFd::from(fd));
    fd.set_nonblocking(true)?;
    Ok(File::from(OwnedFd::from(fd)))
}
