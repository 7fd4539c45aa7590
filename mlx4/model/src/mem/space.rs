//! Who may change the table, and how views of older tables are waited for.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::host::WeakRegion;
use super::table::{Mapping, Table};
use super::{DmaError, DmaView, HostRegion, MAX_FILE_BYTES, MAX_MAPPINGS, PAGE_SIZE};

/// How often an unmap looks for views before it sleeps in between.
const SPINS: u32 = 64;
/// Sleep between two looks for views.
const NAP: Duration = Duration::from_micros(50);
/// How long views may take before it is worth a line in the log, and between two lines.
const SLOW: Duration = Duration::from_millis(500);

/// Accesses that didn't happen, in all states of a space together.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Those that the table doesn't allow.
    pub(super) refused: AtomicU64,
    /// Those that came while bus mastering was off.
    pub(super) held_back: AtomicU64,
}

/// One state of the space.
pub(super) struct Snapshot {
    pub(super) table: Table,
    /// Whether bus mastering is on.
    pub(super) enabled: bool,
    pub(super) refusals: Arc<Refusals>,
}

/// The bus-address space of one device; see the [module](super).
pub struct DmaSpace {
    current: ArcSwap<Snapshot>,
    changes: Mutex<Changes>,
    refusals: Arc<Refusals>,
}

/// What whoever changes the space needs.
#[derive(Default)]
struct Changes {
    /// Files that are mapped whole, as long as some mapping uses them.
    files: HashMap<FileKey, WeakRegion>,
    /// States that a view may still show.
    retired: Vec<Arc<Snapshot>>,
}

/// A file, and whether it is mapped writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    writable: bool,
}

impl Default for DmaSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl DmaSpace {
    /// An empty space with bus mastering off, as after power-on.
    pub fn new() -> Self {
        let refusals = Arc::<Refusals>::default();
        let first = Snapshot { table: Table::default(), enabled: false, refusals: Arc::clone(&refusals) };
        Self { current: ArcSwap::from_pointee(first), changes: Mutex::default(), refusals }
    }

    /// The space as it is now. Never blocks.
    pub fn snapshot(&self) -> DmaView {
        DmaView::new(self.current.load_full())
    }

    /// Maps `len` bytes of a file, from `offset` on, at a bus address. The file is mapped into this process
    /// once, whole, however many pieces of it are mapped for the device. On return every view shows it.
    pub fn map_fd(
        &self,
        iova: u64,
        len: u64,
        fd: impl AsFd,
        offset: u64,
        writable: bool,
    ) -> Result<(), DmaError> {
        let last = check_range(iova, len, offset)?;
        let file = File::from(fd.as_fd().try_clone_to_owned().map_err(DmaError::Examine)?);
        let mut changes = self.lock();
        self.check_free(iova, last)?;
        let region = changes.region_of(&file, offset, len, writable)?;
        self.insert(&mut changes, Mapping { start: iova, region, writable });
        Ok(())
    }

    /// Maps memory that this process has mapped already, all of it, at a bus address. On return every view
    /// shows it.
    pub fn map_host(&self, iova: u64, region: HostRegion, writable: bool) -> Result<(), DmaError> {
        let last = check_range(iova, region.len() as u64, region.address())?;
        let mut changes = self.lock();
        self.check_free(iova, last)?;
        self.insert(&mut changes, Mapping { start: iova, region, writable });
        Ok(())
    }

    /// Removes every mapping in a range and returns how many bytes that were. Refuses a range that covers a
    /// part only of a mapping; holes in it are fine. On return no access is under way through a view, and
    /// memory that nothing else uses is unmapped from this process.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<u64, DmaError> {
        let last = check_range(iova, len, 0)?;
        let mut changes = self.lock();
        let now = self.current.load_full();
        for edge in [iova, last] {
            if let Some(map) = now.table.find(edge)
                && (map.start < iova || map.last() > last)
            {
                let (other_iova, other_len) = (map.start, map.len());
                return Err(DmaError::Splits { iova, len, other_iova, other_len });
            }
        }
        let bytes = now.table.bytes_in(iova, last);
        if bytes > 0 {
            let (table, enabled) = (now.table.remove(iova, last), now.enabled);
            // A state that this thread holds would be waited for.
            drop(now);
            self.publish(&mut changes, table, enabled);
            changes.wait_for_views();
        }
        Ok(bytes)
    }

    /// Removes every mapping; as [`DmaSpace::unmap`] in all else.
    pub fn unmap_all(&self) {
        let mut changes = self.lock();
        let enabled = self.current.load().enabled;
        self.publish(&mut changes, Table::default(), enabled);
        changes.wait_for_views();
    }

    /// Turns bus mastering on or off. While it is off every access is refused; when the call that turned it
    /// off has returned, no access is under way.
    pub fn set_enabled(&self, enabled: bool) {
        let mut changes = self.lock();
        let now = self.current.load_full();
        if now.enabled == enabled {
            return;
        }
        let table = now.table.clone();
        drop(now);
        self.publish(&mut changes, table, enabled);
        if !enabled {
            changes.wait_for_views();
        }
    }

    /// Waits until every view that exists now is gone: what a caller has withdrawn from the device by other
    /// means than the table is no longer used when this returns.
    pub fn quiesce(&self) {
        let mut changes = self.lock();
        let (table, enabled) = {
            let now = self.current.load();
            (now.table.clone(), now.enabled)
        };
        self.publish(&mut changes, table, enabled);
        changes.wait_for_views();
    }

    /// Accesses that were refused so far by the table: an IOMMU would report each as a fault.
    pub fn refused(&self) -> u64 {
        self.refusals.refused.load(Ordering::Relaxed)
    }

    /// Accesses that were refused so far as bus mastering was off: a card then sends none to the bus.
    pub fn held_back(&self) -> u64 {
        self.refusals.held_back.load(Ordering::Relaxed)
    }

    /// Number of mappings.
    pub fn mappings(&self) -> usize {
        self.current.load().table.len()
    }

    /// Bytes of bus addresses that are mapped.
    pub fn mapped_bytes(&self) -> u64 {
        self.current.load().table.bytes_in(0, u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        // Every change is one swap, so a panic elsewhere leaves nothing half done.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_free(&self, iova: u64, last: u64) -> Result<(), DmaError> {
        let now = self.current.load();
        if now.table.len() >= MAX_MAPPINGS {
            return Err(DmaError::TooMany);
        }
        now.table.first_in(iova, last).map_or(Ok(()), |map| {
            let len = (last - iova).saturating_add(1);
            Err(DmaError::Overlaps { iova, len, other_iova: map.start, other_len: map.len() })
        })
    }

    fn insert(&self, changes: &mut Changes, map: Mapping) {
        let (table, enabled) = {
            let now = self.current.load();
            (now.table.insert(map), now.enabled)
        };
        self.publish(changes, table, enabled);
        // A burst that is under way may come to work that uses this memory, and would not see it.
        changes.wait_for_views();
    }

    /// Makes a changed state the current one.
    fn publish(&self, changes: &mut Changes, table: Table, enabled: bool) {
        let next = Snapshot { table, enabled, refusals: Arc::clone(&self.refusals) };
        changes.retired.push(self.current.swap(Arc::new(next)));
        changes.drop_unseen();
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace")
            .field("mappings", &self.mappings())
            .field("enabled", &self.current.load().enabled)
            .field("refused", &self.refused())
            .finish()
    }
}

impl Changes {
    /// The region of this process that is `len` bytes of a file from `offset` on.
    fn region_of(
        &mut self,
        file: &File,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<HostRegion, DmaError> {
        let meta = file.metadata().map_err(DmaError::Examine)?;
        if !meta.is_file() {
            return Err(DmaError::NotAFile);
        }
        let key = FileKey { device: meta.dev(), inode: meta.ino(), writable };
        let size = meta.len();
        let outside = || DmaError::OutsideMemory { offset, len, size };
        let as_size = |bytes| usize::try_from(bytes).map_err(|_| outside());
        let (start, bytes, whole) = (as_size(offset)?, as_size(len)?, as_size(size)?);
        let part = |region: HostRegion| region.part(start, bytes);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(outside());
        }
        let candidates = [key, FileKey { writable: true, ..key }];
        let known = candidates.iter().filter_map(|key| self.files.get(key)?.upgrade());
        if let Some(region) = known.filter(|region| !region.state().lost()).find_map(part) {
            return Ok(region);
        }
        let mut mapped = 0;
        self.files.retain(|_, region| {
            let live = region.upgrade();
            mapped += live.as_ref().map_or(0, |region| region.len() as u64);
            live.is_some()
        });
        if size.saturating_add(mapped) > MAX_FILE_BYTES {
            return Err(DmaError::TooLarge { size, mapped });
        }
        let region = HostRegion::map_file(file.as_fd(), whole, writable)
            .map_err(|source| DmaError::Mmap { size, source })?;
        self.files.insert(key, region.downgrade());
        part(region).ok_or_else(outside)
    }

    /// Forgets the states that no view shows any more.
    fn drop_unseen(&mut self) {
        self.retired.retain_mut(|state| Arc::get_mut(state).is_none());
    }

    /// Waits until no view shows a state older than the current one.
    fn wait_for_views(&mut self) {
        let started = Instant::now();
        let mut next_line = SLOW;
        for turn in 0u32.. {
            self.drop_unseen();
            if self.retired.is_empty() {
                return;
            }
            if turn < SPINS {
                thread::yield_now();
                continue;
            }
            thread::sleep(NAP);
            if started.elapsed() >= next_line {
                log::debug!("waiting for {} old dma views since {next_line:?}", self.retired.len());
                next_line += SLOW;
            }
        }
    }
}

/// Checks a range and returns its last address.
fn check_range(iova: u64, len: u64, offset: u64) -> Result<u64, DmaError> {
    if len == 0 {
        return Err(DmaError::Empty { iova });
    }
    if [iova, len, offset].iter().any(|value| !value.is_multiple_of(PAGE_SIZE)) {
        return Err(DmaError::Unaligned { iova, len, offset });
    }
    iova.checked_add(len - 1).ok_or(DmaError::Wraps { iova, len })
}
