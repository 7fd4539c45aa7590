//! Survives guest memory that is taken away while it is in use.
//!
//! A file that a guest's process cuts short leaves pages behind that nothing backs, and an access to one
//! raises SIGBUS. The handler puts anonymous zero pages over the whole mapping, which is private memory then,
//! and marks it lost: the access that was under way ends, and whoever owns the mapping is to refuse every later
//! one ([`State::lost`]). All other mappings of the same file are marked too ([`State::file_lost`]), and
//! [`loss_event`] becomes readable, so that somebody who waits can cut off the guest.
//!
//! A SIGBUS of any other origin goes to the handler that was there before. Does not: map or access memory.
#![expect(unsafe_code, reason = "a signal handler")]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};

/// Mappings that one block of the table has room for. More blocks are added as they are needed.
const BLOCK: usize = 1024;

/// States of a mapping: as it should be; replaced by zeroes; replaced, and reported.
const BACKED: u8 = 0;
const LOST: u8 = 1;
const TOLD: u8 = 2;

/// What the handler knows: atomics only, since it may run in the middle of anything.
static TABLE: Block = Block::new();
/// Held while a slot is taken or given back.
static CHANGE: Mutex<()> = Mutex::new(());
/// The action that was set before; set before the handler can run.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// The event that the handler raises; set before the handler can run.
static LOSS: OnceLock<OwnedFd> = OnceLock::new();
/// Whether the handler is in place, or the error number why not.
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// Which file a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl FileKey {
    /// The file behind a descriptor.
    ///
    /// # Errors
    /// It can't be looked at.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `stat`, and the kernel writes it before it is used.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: the descriptor is open as long as it is borrowed, and the structure is ours.
        if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// A mapping that the handler watches.
#[derive(Debug)]
struct Slot {
    base: AtomicUsize,
    /// Bytes; 0 in a free slot. Written last when it is taken, first when it is given back.
    len: AtomicUsize,
    device: AtomicU64,
    inode: AtomicU64,
    state: AtomicU8,
    file_lost: AtomicBool,
}

impl Slot {
    const fn free() -> Self {
        Self {
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
            state: AtomicU8::new(BACKED),
            file_lost: AtomicBool::new(false),
        }
    }

    fn is_of(&self, device: u64, inode: u64) -> bool {
        self.device.load(Ordering::SeqCst) == device && self.inode.load(Ordering::SeqCst) == inode
    }
}

/// A part of the table. Blocks are never freed.
struct Block {
    slots: [Slot; BLOCK],
    next: OnceLock<Box<Block>>,
}

impl Block {
    const fn new() -> Self {
        Self { slots: [const { Slot::free() }; BLOCK], next: OnceLock::new() }
    }

    /// A slot that is free; adds a block where all are taken.
    fn free_slot(&'static self) -> &'static Slot {
        let mut block = self;
        loop {
            if let Some(slot) = block.slots.iter().find(|slot| slot.len.load(Ordering::SeqCst) == 0) {
                return slot;
            }
            block = block.next.get_or_init(|| Box::new(Self::new()));
        }
    }

    /// All slots that there are now.
    fn all(&'static self) -> impl Iterator<Item = &'static Slot> {
        std::iter::successors(Some(self), |block| block.next.get().map(|next| &**next))
            .flat_map(|block| &block.slots)
    }
}

/// The watch over one mapping. It must be dropped before the mapping is undone.
#[derive(Debug)]
pub struct Watch(&'static Slot);

impl Watch {
    /// Watches a mapping of `len` bytes of a file.
    ///
    /// # Safety
    /// The range is one whole mapping, readable or writable, that stays until this is dropped. It is only ever
    /// reached by volatile or atomic accesses, for which its content may change at any time: it may become
    /// private zero pages.
    ///
    /// # Errors
    /// The handler can't be installed.
    pub unsafe fn new(base: NonNull<u8>, len: usize, file: FileKey) -> io::Result<Self> {
        ready()?;
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = TABLE.free_slot();
        slot.base.store(base.addr().get(), Ordering::SeqCst);
        slot.device.store(file.device, Ordering::SeqCst);
        slot.inode.store(file.inode, Ordering::SeqCst);
        slot.state.store(BACKED, Ordering::SeqCst);
        slot.file_lost.store(false, Ordering::SeqCst);
        slot.len.store(len, Ordering::SeqCst);
        Ok(Self(slot))
    }

    /// The state of the mapping, valid as long as the watch.
    pub fn state(&self) -> State {
        State(self.0)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.len.store(0, Ordering::SeqCst);
    }
}

/// Whether the memory of a mapping is still what it was.
#[derive(Clone, Copy, Debug)]
pub struct State(&'static Slot);

impl State {
    /// Of memory that nobody watches.
    pub fn unwatched() -> Self {
        static NEVER_LOST: Slot = Slot::free();
        Self(&NEVER_LOST)
    }

    /// Whether the memory is gone.
    pub fn lost(self) -> bool {
        self.0.state.load(Ordering::Relaxed) != BACKED
    }

    /// Whether this mapping, or another one of the same file, is gone.
    pub fn file_lost(self) -> bool {
        self.lost() || self.0.file_lost.load(Ordering::Relaxed)
    }

    /// True once after the memory was lost, for whoever is to report it.
    pub fn tell(self) -> bool {
        self.0.state.compare_exchange(LOST, TOLD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// An eventfd that is written whenever a mapping is lost. It is the whole process's and stays readable: wait for
/// it edge-triggered (`EPOLLET`), and don't read it.
///
/// # Errors
/// The handler can't be installed.
pub fn loss_event() -> io::Result<BorrowedFd<'static>> {
    ready()?;
    let event: &'static OwnedFd = LOSS.get().ok_or(io::ErrorKind::NotFound)?;
    Ok(event.as_fd())
}

fn ready() -> io::Result<()> {
    INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

fn install() -> Result<(), i32> {
    // SAFETY: no memory is involved; what it returns is checked.
    let event = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if event < 0 {
        return Err(errno());
    }
    // SAFETY: the descriptor is new, so nobody else owns it.
    let event = unsafe { OwnedFd::from_raw_fd(event) };
    // SAFETY: all zeroes is a valid sigaction, and it is written before it is used.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: with no new action this only reads the present one into a structure of ours.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action) } != 0 {
        return Err(errno());
    }
    // Nobody else sets them: this runs once.
    let _first = (PREVIOUS.set(action), LOSS.set(event));
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and lives as long as the process; the
    // mask is the valid one of the previous action.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and for SIGBUS it has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    if !replace(address) {
        forward(signal, info, context);
    }
}

/// Puts zero pages over the watched mapping that an address lies in; false if there is none.
fn replace(address: usize) -> bool {
    for slot in TABLE.all() {
        let len = slot.len.load(Ordering::SeqCst);
        let base = slot.base.load(Ordering::SeqCst);
        // A slot that changes hands meanwhile isn't the one: its mapping has no user.
        let steady = len != 0 && slot.len.load(Ordering::SeqCst) == len;
        if !steady || !(base..base.saturating_add(len)).contains(&address) {
            continue;
        }
        // First, so that whoever sees the zeroes by another thread's fault sees this too.
        slot.state.store(LOST, Ordering::SeqCst);
        return keeping_errno(|| {
            tell_file(slot);
            put_zeroes(base, len)
        });
    }
    false
}

/// Runs a piece of the handler, which the interrupted code must not notice.
fn keeping_errno<T>(run: impl FnOnce() -> T) -> T {
    // SAFETY: the address of this thread's errno is valid for as long as the thread.
    let before = unsafe { *libc::__errno_location() };
    let result = run();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = before };
    result
}

/// Marks all mappings of the file that `lost` is of, and raises the event.
fn tell_file(lost: &Slot) {
    let (device, inode) = (lost.device.load(Ordering::SeqCst), lost.inode.load(Ordering::SeqCst));
    for slot in TABLE.all().filter(|slot| slot.is_of(device, inode)) {
        slot.file_lost.store(true, Ordering::SeqCst);
    }
    if let Some(event) = LOSS.get() {
        let one = 1u64;
        // SAFETY: the descriptor is never closed, and the eight bytes are ours. A full counter is refused, and is
        // readable already.
        unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }
}

fn put_zeroes(base: usize, len: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let at = ptr::without_provenance_mut(base);
    // SAFETY: the range is one whole mapping of the watch's owner, who reaches it only through volatile and
    // atomic accesses, for which its content may change at any time. mmap is a bare system call.
    unsafe { libc::mmap(at, len, prot, flags, -1, 0) != libc::MAP_FAILED }
}

/// Does what would have been done without this module.
fn forward(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    let handler = previous.sa_sigaction;
    // SAFETY: what is called is the handler that was set before, by the signature that its flags say;
    // otherwise the default action is set, and the access that is repeated on return ends the process.
    unsafe {
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            libc::signal(signal, libc::SIG_DFL);
        } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = mem::transmute(handler);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(c_int) = mem::transmute(handler);
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const LEN: usize = 0x2000;

    /// A watched mapping of a file.
    struct Mapped {
        watch: Watch,
        base: NonNull<u8>,
    }

    impl Mapped {
        fn new(file: &File) -> Self {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new shared mapping at an address that the kernel chooses touches no memory in use.
            let base =
                unsafe { libc::mmap(ptr::null_mut(), LEN, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
            assert_ne!(base, libc::MAP_FAILED);
            let base = NonNull::new(base.cast()).unwrap();
            // SAFETY: the mapping is never undone, and only read as volatile.
            let watch = unsafe { Watch::new(base, LEN, FileKey::of(file.as_fd()).unwrap()) }.unwrap();
            Self { watch, base }
        }

        fn read(&self, offset: usize) -> u8 {
            assert!(offset < LEN);
            // SAFETY: the offset lies in the mapping.
            unsafe { self.base.as_ptr().add(offset).read_volatile() }
        }

        fn lost(&self) -> (bool, bool) {
            (self.watch.state().lost(), self.watch.state().file_lost())
        }
    }

    fn memfd() -> File {
        // SAFETY: the name is a string with its end, and what is returned is checked.
        let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new, so nobody else owns it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(LEN as u64).unwrap();
        file
    }

    fn losses() -> u64 {
        let event = File::from(loss_event().unwrap().try_clone_to_owned().unwrap());
        let mut count = 0u64;
        // SAFETY: the eight bytes are ours. An empty counter leaves them.
        unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        count
    }

    #[test]
    fn loss_of_one_mapping_is_told_to_all_of_its_file_and_to_no_other() {
        let (file, other) = (memfd(), memfd());
        let [first, second] = [Mapped::new(&file), Mapped::new(&file)];
        let bystander = Mapped::new(&other);
        file.set_len(0x1000).unwrap();
        assert_eq!((first.read(0), first.lost()), (0, (false, false)));

        assert_eq!(first.read(0x1000), 0);
        assert_eq!((first.lost(), second.lost()), ((true, true), (false, true)));
        assert_eq!((bystander.lost(), bystander.read(0x1000)), ((false, false), 0));
        assert!(losses() > 0);
        assert!(first.watch.state().tell());
        assert!(!first.watch.state().tell());

        // The other mapping is lost by itself, when it is touched.
        assert_eq!(second.read(0x1000), 0);
        assert_eq!(second.lost(), (true, true));
    }

    #[test]
    fn table_grows_and_slots_are_used_again() {
        let file = memfd();
        let key = FileKey::of(file.as_fd()).unwrap();
        let mapped = Mapped::new(&file);
        let watch = |_| {
            // SAFETY: the mapping is never undone, and only read as volatile.
            unsafe { Watch::new(mapped.base, LEN, key) }.unwrap()
        };
        let watches: Vec<_> = (0..3 * BLOCK).map(watch).collect();
        let blocks = TABLE.all().count() / BLOCK;
        assert!(blocks >= 4);
        drop(watches);
        let _again: Vec<_> = (0..2 * BLOCK).map(watch).collect();
        assert_eq!(TABLE.all().count() / BLOCK, blocks);
    }
}
