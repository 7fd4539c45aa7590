//! One doorbell area, in guest memory or in the device's region, shared by who reads it and who closes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use paraverbs_tenant::SlotTable;
use paraverbs_tenant::hca::Hca;
use virtio_rdma::doorbell::{Reader, Words};

use crate::mapping::Mapping;

/// The holder of the relay's role is in it, or about to see that it may not be.
const READING: u8 = 1;
/// Nobody may enter it any more.
const CLOSED: u8 = 2;

/// A guest among those whose areas are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuestNumber(pub(crate) u64);

/// The words of an area.
#[derive(Debug)]
struct AreaWords {
    mapping: Arc<Mapping>,
    offset: usize,
    /// Instead of a word that isn't there; there is none, since the tenant has checked the area.
    missing: AtomicU64,
}

impl Words for AreaWords {
    fn word(&self, index: usize) -> &AtomicU64 {
        self.mapping.word(self.offset + 8 * index).unwrap_or(&self.missing)
    }
}

/// A doorbell area. Only the holder of the relay's role calls its methods but [`Area::close`].
#[derive(Debug)]
pub(crate) struct Area {
    /// Whose it is.
    guest: GuestNumber,
    reader: Reader<AreaWords>,
    table: Arc<SlotTable>,
    direct: Option<u32>,
    state: AtomicU8,
}

impl Area {
    /// The area of `slots` slots at an offset in a mapping.
    pub(crate) fn new(
        guest: GuestNumber,
        (mapping, offset): (Arc<Mapping>, u64),
        slots: u32,
        table: &Arc<SlotTable>,
    ) -> Option<Self> {
        let words = AreaWords { mapping, offset: usize::try_from(offset).ok()?, missing: AtomicU64::new(0) };
        let reader = Reader::new(words, slots)?;
        Some(Self { guest, reader, table: Arc::clone(table), direct: None, state: AtomicU8::new(0) })
    }

    /// The same area, as one at this offset in the device's region.
    pub(crate) fn at(self, offset: u32) -> Self {
        Self { direct: Some(offset), ..self }
    }

    /// Where in the device's region it is, if it is there.
    pub(crate) fn direct(&self) -> Option<u32> {
        self.direct
    }

    /// Whose it is.
    pub(crate) fn guest(&self) -> GuestNumber {
        self.guest
    }

    /// Whether it is the area of this table.
    pub(crate) fn is_of(&self, table: &Arc<SlotTable>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// Passes on what was rung, at most one ring a slot. Answers how much that was.
    pub(crate) fn relay(&self, hca: &dyn Hca) -> u32 {
        if !self.reader.is_rung() {
            return 0;
        }
        self.read(|reader| reader.drain(|slot, value| self.table.ring(hca, slot, value))).unwrap_or(0)
    }

    /// Asks for kicks; false if something was rung meanwhile.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.read(Reader::prepare_sleep).unwrap_or(true)
    }

    /// Asks for kicks no more.
    pub(crate) fn wake(&self) {
        self.read(Reader::wake);
    }

    /// Runs `with` on the area, unless it is closed.
    fn read<T>(&self, with: impl FnOnce(&Reader<AreaWords>) -> T) -> Option<T> {
        let before = self.state.fetch_or(READING, Ordering::AcqRel);
        let _reading = Reading(&self.state);
        (before & CLOSED == 0).then(|| with(&self.reader))
    }

    /// From now on nobody writes to it, or rings for it. Waits for its reader, who is in the area for one pass at
    /// most and blocks for nothing there.
    pub(crate) fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) & READING != 0 {
            std::thread::yield_now();
        }
    }
}

/// The reader is in an area, until this is dropped.
struct Reading<'a>(&'a AtomicU8);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!READING, Ordering::Release);
    }
}
