//! Survives guest memory that is taken away while it is in use.
//!
//! A file that a guest's process cuts short leaves pages behind that nothing backs, and an access to one
//! raises SIGBUS. The handler puts anonymous zero pages over the whole mapping, which is private memory then,
//! and marks it lost: the access that was under way ends, and every later one is refused with
//! [`FaultCause::Lost`](super::FaultCause::Lost). A SIGBUS of any other origin goes to the handler that was
//! there before.
#![expect(unsafe_code, reason = "a signal handler")]

use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};

/// Files that the process can have mapped at once.
const SLOTS: usize = 1024;

/// States of a mapping: as it should be; replaced by zeroes; replaced, and reported.
const BACKED: u8 = 0;
const LOST: u8 = 1;
const TOLD: u8 = 2;

/// What the handler knows: atomics only, since it may run in the middle of anything.
static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];
/// Held while a slot is taken or given back.
static CHANGE: Mutex<()> = Mutex::new(());
/// The action that was set before; set before the handler can run.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether the handler is in place, or the error number why not.
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// A mapping that the handler watches.
#[derive(Debug)]
struct Slot {
    base: AtomicUsize,
    /// Bytes; 0 in a free slot. Written last when it is taken, first when it is given back.
    len: AtomicUsize,
    state: AtomicU8,
}

impl Slot {
    const fn free() -> Self {
        Self { base: AtomicUsize::new(0), len: AtomicUsize::new(0), state: AtomicU8::new(BACKED) }
    }
}

/// The watch over one mapping. It must be dropped before the mapping is undone.
#[derive(Debug)]
pub(super) struct Watch(&'static Slot);

impl Watch {
    /// Watches a mapping of `len` bytes that belongs to the caller alone.
    pub(super) fn new(base: NonNull<u8>, len: usize) -> io::Result<Self> {
        INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)?;
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = TABLE
            .iter()
            .find(|slot| slot.len.load(Ordering::SeqCst) == 0)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        slot.base.store(base.addr().get(), Ordering::SeqCst);
        slot.state.store(BACKED, Ordering::SeqCst);
        slot.len.store(len, Ordering::SeqCst);
        Ok(Self(slot))
    }

    /// The state of the mapping, valid as long as the watch.
    pub(super) fn state(&self) -> State {
        State(&self.0.state)
    }
}

/// Whether the memory of a mapping is still what it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct State(&'static AtomicU8);

impl State {
    /// Of memory that nobody watches.
    pub(super) fn unwatched() -> Self {
        static NEVER_LOST: AtomicU8 = AtomicU8::new(BACKED);
        Self(&NEVER_LOST)
    }

    /// Whether the memory is gone.
    pub(super) fn lost(self) -> bool {
        self.0.load(Ordering::Relaxed) != BACKED
    }

    /// True once after the memory was lost, for whoever is to report it.
    pub(super) fn tell(self) -> bool {
        self.0.compare_exchange(LOST, TOLD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.len.store(0, Ordering::SeqCst);
    }
}

fn install() -> Result<(), i32> {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: all zeroes is a valid sigaction, and it is written before it is used.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: with no new action this only reads the present one into a structure of ours.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action) } != 0 {
        return Err(errno());
    }
    // Nobody else sets it: this runs once.
    let _first = PREVIOUS.set(action);
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
    for slot in &TABLE {
        let len = slot.len.load(Ordering::SeqCst);
        let base = slot.base.load(Ordering::SeqCst);
        // A slot that changes hands meanwhile isn't the one: its mapping has no user.
        let steady = len != 0 && slot.len.load(Ordering::SeqCst) == len;
        if !steady || !(base..base.saturating_add(len)).contains(&address) {
            continue;
        }
        // First, so that whoever sees the zeroes by another thread's fault sees this too.
        slot.state.store(LOST, Ordering::SeqCst);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let at = ptr::without_provenance_mut(base);
        // SAFETY: the range is one whole mapping of the watch's owner, who reaches it only through volatile
        // and atomic accesses, for which its content may change at any time. mmap is a bare system call,
        // and errno is put back, so the interrupted code notices nothing.
        return unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            let result = libc::mmap(at, len, prot, flags, -1, 0);
            *errno = before;
            result != libc::MAP_FAILED
        };
    }
    false
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
