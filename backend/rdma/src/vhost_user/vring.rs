//! A ring whose event descriptors come from someone hostile.
//!
//! `VringMutex` reads a kick and writes a call with calls that block where the guest has emptied or filled its
//! eventfd. Here a kick is read without waiting, and a call is written only where there is room.

use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{ReadWriteFlags, preadv2};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

type Space = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// So many wakings in a row without a kick end the worker: the guest plays with its eventfds.
const MAX_FRUITLESS: u32 = 1 << 12;

/// "From where the file is now", for a file that has no such place.
const NO_OFFSET: u64 = u64::MAX;

/// The descriptors of a ring, and how often the kick was read in vain.
#[derive(Debug, Default)]
struct Events {
    kick: Mutex<Option<File>>,
    call: Mutex<Option<Arc<File>>>,
    fruitless: AtomicU32,
    kicked: AtomicBool,
}

/// A ring. Clones are the same ring.
#[derive(Clone)]
pub(crate) struct Vring {
    ring: VringMutex<Space>,
    events: Arc<Events>,
}

impl std::fmt::Debug for Vring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vring").field("events", &self.events).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vring {
    /// Tells the driver that chains were used. Does nothing where it has been told and hasn't looked.
    pub(crate) fn signal(&self) {
        let Some(call) = lock(&self.events.call).clone() else { return };
        let mut ready = [PollFd::new(&*call, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut ready, Some(&at_once)) == Ok(1) && ready[0].revents().contains(PollFlags::OUT) {
            // A guest whose descriptor can't be written doesn't hear of it.
            let _deaf = (&*call).write(&1u64.to_ne_bytes());
        }
    }

    /// Whether it was kicked since this was asked last: workers are called when a ring is enabled, too.
    pub(crate) fn was_kicked(&self) -> bool {
        self.events.kicked.swap(false, Ordering::Relaxed)
    }

    /// Empties the call's counter, for a writer that the guest has made wait.
    pub(crate) fn release(&self) {
        if let Some(call) = &*lock(&self.events.call) {
            let _empty = take(call);
        }
    }
}

/// Reads an eventfd without waiting; whether there was something.
fn take(event: &File) -> bool {
    let mut count = [0; 8];
    let read = || preadv2(event, &mut [IoSliceMut::new(&mut count)], NO_OFFSET, ReadWriteFlags::NOWAIT);
    rustix::io::retry_on_intr(read) == Ok(8)
}

/// An eventfd, or another anonymous file of the kernel's: nothing that could make us wait by itself.
fn is_anonymous(file: &File) -> bool {
    fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Unknown)
}

impl<'a> VringStateGuard<'a, Space> for Vring {
    type G = <VringMutex<Space> as VringStateGuard<'a, Space>>::G;
}

impl<'a> VringStateMutGuard<'a, Space> for Vring {
    type G = <VringMutex<Space> as VringStateMutGuard<'a, Space>>::G;
}

impl VringT<Space> for Vring {
    fn new(mem: Space, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self { ring: VringMutex::new(mem, max_queue_size)?, events: Arc::default() })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Space>>::G {
        self.ring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Space>>::G {
        self.ring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.ring.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.signal();
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.ring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.ring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.ring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), QueueError> {
        self.ring.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.ring.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.ring.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        // Another one would be refused with a line in the log, as often as the guest likes.
        if num.is_power_of_two() {
            self.ring.set_queue_size(num);
        }
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.ring.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        let file = file.filter(is_anonymous);
        *lock(&self.events.kick) = file.as_ref().and_then(|file| file.try_clone().ok());
        self.ring.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        let kicked = lock(&self.events.kick).as_ref().is_none_or(take);
        if kicked {
            self.events.fruitless.store(0, Ordering::Relaxed);
            self.events.kicked.store(true, Ordering::Relaxed);
        } else if self.events.fruitless.fetch_add(1, Ordering::Relaxed) >= MAX_FRUITLESS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.ring.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        *lock(&self.events.call) = file.filter(is_anonymous).map(Arc::new);
    }

    fn set_err(&self, _: Option<File>) {}
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn only_anonymous_files_are_taken_for_events() {
        let event = File::from(eventfd(0, EventfdFlags::empty()).unwrap());
        let memory = File::from(memfd_create("memory", MemfdFlags::empty()).unwrap());
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_anonymous(&event));
        assert!(!is_anonymous(&memory));
        assert!(!is_anonymous(&File::from(OwnedFd::from(socket))));
    }

    #[test]
    fn empty_event_is_read_without_waiting() {
        let event = File::from(eventfd(2, EventfdFlags::empty()).unwrap());
        assert!(take(&event));
        assert!(!take(&event));
    }

    #[test]
    fn full_event_is_written_without_waiting() {
        let ring = Vring::new(Space::new(GuestMemoryMmap::new()), 8).unwrap();
        let call = File::from(eventfd(0, EventfdFlags::empty()).unwrap());
        (&call).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        ring.set_call(Some(call.try_clone().unwrap()));
        ring.signal();
        ring.release();
        assert!(!take(&call));
        ring.signal();
        assert!(take(&call));
    }

    #[test]
    fn kick_that_is_never_there_ends_the_worker() {
        let ring = Vring::new(Space::new(GuestMemoryMmap::new()), 8).unwrap();
        ring.set_enabled(true);
        ring.set_kick(Some(File::from(eventfd(1, EventfdFlags::empty()).unwrap())));
        let ended = (0..=MAX_FRUITLESS + 1).position(|_| ring.read_kick().is_err());
        assert_eq!(ended, usize::try_from(MAX_FRUITLESS + 1).ok());
    }
}
