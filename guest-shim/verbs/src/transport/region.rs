//! The device's shared-memory region over vhost-user: this side maps of it what the daemon says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Error, FrontendReqHandler};
use virtio_rdma::doorbell::SHARED_REGION_ID;

use crate::event_fd::{FileMapper, Files, near_end};
use crate::memory::{Chunk, Span};

/// Most mappings of a region.
const MAX_MAPPINGS: usize = 64;

/// What is mapped of the region.
#[derive(Debug)]
struct Mappings {
    /// Size of the region in bytes.
    bytes: u64,
    /// Where in the region each begins.
    mapped: Mutex<Vec<(u64, Arc<Chunk>)>>,
}

fn refused(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl Mappings {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Arc<Chunk>)>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileMapper for Mappings {
    fn map(&self, request: VhostUserMMap, file: File) -> io::Result<()> {
        let (start, len) = (request.shm_offset, request.len);
        let end = start.checked_add(len).filter(|end| *end <= self.bytes);
        let end = end.ok_or_else(|| refused("it is outside the region"))?;
        if request.shmid != SHARED_REGION_ID || request.flags != VhostUserMMapFlags::WRITABLE.bits() {
            return Err(refused("another region, or not to be written"));
        }
        let mut mapped = self.lock();
        let overlaps = |(at, chunk): &(u64, Arc<Chunk>)| *at < end && start < at + chunk.len() as u64;
        if mapped.len() >= MAX_MAPPINGS || mapped.iter().any(overlaps) {
            return Err(refused("it is mapped already"));
        }
        let len = usize::try_from(len).map_err(|_| refused("it is too large"))?;
        mapped.push((start, Arc::new(Chunk::of_device(file, request.fd_offset, len)?)));
        Ok(())
    }

    fn unmap(&self, request: VhostUserMMap) -> io::Result<()> {
        let (start, len) = (request.shm_offset, request.len);
        let mut mapped = self.lock();
        let it = |(at, chunk): &(u64, Arc<Chunk>)| *at == start && chunk.len() as u64 == len;
        let index = mapped.iter().position(it).ok_or_else(|| refused("it is not mapped"))?;
        // Doorbells in it keep it until they are gone.
        mapped.swap_remove(index);
        Ok(())
    }
}

/// The region of a connection, and the channel on which the daemon says what to map.
pub(super) struct Region {
    mappings: Arc<Mappings>,
    handler: Mutex<FrontendReqHandler<Files<Mappings>>>,
    /// The near end of the channel, for waiting.
    channel: OwnedFd,
}

impl Region {
    /// A region of so many bytes, of which nothing is mapped.
    pub(super) fn new(bytes: u64) -> io::Result<Self> {
        let mappings = Arc::new(Mappings { bytes, mapped: Mutex::default() });
        let files = Arc::new(Files(Arc::clone(&mappings)));
        let mut handler = FrontendReqHandler::new(files).map_err(io::Error::other)?;
        handler.set_reply_ack_flag(true);
        let channel = near_end(&handler)?;
        Ok(Self { mappings, handler: Mutex::new(handler), channel })
    }

    fn handler(&self) -> MutexGuard<'_, FrontendReqHandler<Files<Mappings>>> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's end of the channel.
    pub(super) fn far_end(&self) -> RawFd {
        self.handler().get_tx_raw_fd()
    }

    /// A descriptor that is readable when the daemon has said something.
    pub(super) fn wanted(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Does what the daemon says. False if nothing can come any more.
    pub(super) fn serve(&self) -> bool {
        match self.handler().handle_request() {
            Ok(_) => true,
            Err(Error::ReqHandlerError(error)) => {
                log::warn!("the daemon's doorbells are not mapped: {error}");
                true
            }
            Err(error) => {
                log::warn!("the daemon can't have doorbells mapped any more: {error}");
                false
            }
        }
    }

    /// `bytes` bytes at an offset; `None` if they aren't mapped.
    pub(super) fn span(&self, offset: u64, bytes: usize) -> Option<Span> {
        self.mappings.lock().iter().find_map(|(start, chunk)| {
            let within = usize::try_from(offset.checked_sub(*start)?).ok()?;
            Span::new(chunk, within, bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

    use super::*;
    use crate::event_fd::far_end;

    fn request(shm_offset: u64, len: u64) -> VhostUserMMap {
        VhostUserMMap {
            shm_offset,
            len,
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..VhostUserMMap::default()
        }
    }

    fn memory() -> (Arc<Chunk>, impl Fn() -> File) {
        let chunk = Arc::new(Chunk::new(0x2000).unwrap());
        let file = chunk.fd().try_clone_to_owned().unwrap();
        (chunk, move || File::from(file.try_clone().unwrap()))
    }

    #[test]
    fn what_is_mapped_is_the_devices_memory_until_it_is_unmapped() {
        let (theirs, file) = memory();
        let mappings = Mappings { bytes: 0x4000, mapped: Mutex::default() };
        mappings.map(request(0x1000, 0x2000), file()).unwrap();
        let (_, chunk) = mappings.lock()[0].clone();
        Span::new(&chunk, 0x1000, 8).unwrap().copy_in(0, b"doorbell");
        let mut seen = [0; 8];
        Span::new(&theirs, 0x1000, 8).unwrap().copy_out(0, &mut seen);
        assert_eq!(&seen, b"doorbell");
        mappings.unmap(request(0x1000, 0x1000)).unwrap_err();
        mappings.unmap(request(0x1000, 0x2000)).unwrap();
        mappings.unmap(request(0x1000, 0x2000)).unwrap_err();
    }

    #[test]
    fn what_does_not_fit_is_not_mapped() {
        let (_theirs, file) = memory();
        let mappings = Mappings { bytes: 0x4000, mapped: Mutex::default() };
        mappings.map(request(0x1000, 0x1000), file()).unwrap();
        let other = |change: fn(&mut VhostUserMMap)| {
            let mut request = request(0x2000, 0x1000);
            change(&mut request);
            mappings.map(request, file()).unwrap_err()
        };
        other(|request| request.shmid = 1);
        other(|request| request.flags = 0);
        other(|request| request.shm_offset = 0x4000);
        other(|request| request.shm_offset = u64::MAX);
        other(|request| request.shm_offset = 0x1000);
        other(|request| (request.shm_offset, request.len) = (0, 0x4000));
        other(|request| request.fd_offset = 0x2000);
        mappings.map(request(0x2000, 0x1000), file()).unwrap();
    }

    #[test]
    fn channel_carries_requests_and_ends_with_the_daemon() {
        let (theirs, _file) = memory();
        let region = Region::new(0x4000).unwrap();
        let far = UnixStream::from(far_end(&region.handler()).unwrap());
        let daemon = Backend::from_stream(far);
        daemon.set_shmem_flag(true);
        daemon.set_reply_ack_flag(true);
        std::thread::scope(|scope| {
            let served = scope.spawn(|| [region.serve(), region.serve(), region.serve()]);
            daemon.shmem_map(&request(0, 0x2000), &theirs.fd()).unwrap();
            daemon.shmem_map(&request(0, 0x2000), &theirs.fd()).unwrap_err();
            assert!(region.span(0x1ff8, 8).is_some());
            assert!(region.span(0x1ff8, 16).is_none() && region.span(0x2000, 8).is_none());
            daemon.shmem_unmap(&request(0, 0x2000)).unwrap();
            assert_eq!(served.join().unwrap(), [true; 3]);
        });
        assert!(region.span(0, 8).is_none());
    }
}
