//! The eventfds of a device's MSI-X vectors.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::InterruptError;

/// One eventfd for each vector, made when it's first asked for and then kept. For whoever implements
/// [`PciDevice`](crate::PciDevice).
#[derive(Debug)]
pub struct Vectors {
    fds: Box<[OnceLock<EventFd>]>,
    making: Mutex<()>,
}

impl Vectors {
    /// A table of `count` vectors.
    pub fn new(count: u16) -> Self {
        Self { fds: (0..count).map(|_| OnceLock::new()).collect(), making: Mutex::new(()) }
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        // Made from a u16.
        u16::try_from(self.fds.len()).unwrap_or(u16::MAX)
    }

    /// The eventfd of a vector.
    ///
    /// # Errors
    /// There is no such vector, or no descriptor left.
    pub fn get(&self, vector: u16) -> Result<&EventFd, InterruptError> {
        let missing = InterruptError::NoVector { vector, vectors: self.count() };
        let slot = self.fds.get(usize::from(vector)).ok_or(missing)?;
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = slot.get() {
            return Ok(fd);
        }
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let fd = fd.map_err(|source| InterruptError::EventFd { vector, source })?;
        Ok(slot.get_or_init(|| fd))
    }

    /// A duplicate of the eventfd of a vector.
    ///
    /// # Errors
    /// As for [`Vectors::get`].
    pub fn duplicate(&self, vector: u16) -> Result<EventFd, InterruptError> {
        self.get(vector)?.try_clone().map_err(|source| InterruptError::EventFd { vector, source })
    }

    /// The eventfds of the vectors from 0 to before `count`.
    ///
    /// # Errors
    /// There are fewer vectors, or no descriptor left.
    pub fn first(&self, count: u16) -> Result<Vec<&EventFd>, InterruptError> {
        (0..count).map(|vector| self.get(vector)).collect()
    }

    /// Adds one to the eventfd of a vector, if that was made. Never blocks.
    ///
    /// # Errors
    /// The count is at its limit, so whoever waits wakes up anyway.
    pub fn signal(&self, vector: u16) -> io::Result<()> {
        self.fds.get(usize::from(vector)).and_then(OnceLock::get).map_or(Ok(()), |fd| fd.write(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_reaches_every_duplicate_and_no_other_vector() {
        let vectors = Vectors::new(2);
        let (one, other) = (vectors.duplicate(1).unwrap(), vectors.duplicate(0).unwrap());
        vectors.signal(1).unwrap();
        vectors.signal(1).unwrap();
        assert_eq!(one.read().unwrap(), 2);
        assert_eq!(one.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(other.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn vector_past_the_table_is_refused() {
        let vectors = Vectors::new(2);
        let error = vectors.get(2).unwrap_err();
        assert_eq!(error.to_string(), "device has 2 interrupt vectors, not one numbered 2");
        assert!(vectors.first(3).is_err());
        assert_eq!(vectors.first(2).unwrap().len(), 2);
        vectors.signal(9).unwrap();
    }
}
