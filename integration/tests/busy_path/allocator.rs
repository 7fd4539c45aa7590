//! A global allocator that counts, for each thread, how often it allocates.
//!
//! Unsafe code: the allocator's trait, whose calls are passed on to the system's.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// Threads that have places of their own; those after them share the last.
const THREADS: usize = 1024;

static COUNTS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
static IDS: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PLACE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The place of this thread; none while the thread ends.
fn place() -> Option<usize> {
    PLACE
        .try_with(|place| {
            place.get().unwrap_or_else(|| {
                let new = NEXT.fetch_add(1, Ordering::Relaxed).min(THREADS - 1);
                IDS[new].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
                place.set(Some(new));
                new
            })
        })
        .ok()
}

struct Counting;

// SAFETY: all calls are passed on as they are; what is done besides touches statics only and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(place) = place() {
            COUNTS[place].fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the memory is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations of a thread.
pub(crate) struct Allocations(usize);

impl Allocations {
    /// So many up to now.
    pub(crate) fn count(&self) -> u64 {
        COUNTS[self.0].load(Ordering::Relaxed)
    }
}

/// Those of this thread.
pub(crate) fn of_this_thread() -> Allocations {
    Allocations(place().unwrap())
}

/// Those of the newest thread of this process with a name that has allocated.
pub(crate) fn of_thread(name: &str) -> Option<Allocations> {
    let named = |id: i32| {
        let comm = fs::read_to_string(format!("/proc/self/task/{id}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    };
    let used = NEXT.load(Ordering::Relaxed).min(THREADS);
    (0..used).rev().find(|place| named(IDS[*place].load(Ordering::Relaxed))).map(Allocations)
}
