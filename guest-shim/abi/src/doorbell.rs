//! The doorbell area: where a guest rings its queues without leaving the CPU's caches.
//!
//! An area is a header page and 8-byte slots behind it, one for each send queue and each CQ of a UAR. A ring
//! stores a value in the slot, sets the slot's bit in a lower summary word, and that word's bit in the upper
//! one; so the reader looks at nothing that is idle. Before the reader sleeps it says so in the header, and then
//! a writer kicks it through a virtqueue.
//!
//! [`ring`] is the writer, [`Reader`] the reader. Both work on [`Words`], memory that the two sides share.
//! Neither trusts the other: a writer that breaks the rules loses its own rings, a reader stays inside the area.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::{Reserved, U32, U64};

/// Version of the layout, in the header.
pub const AREA_VERSION: u32 = 1;

/// Slots of one lower summary word, and lower summary words of an area.
pub const FAN_OUT: u32 = 64;

/// Most slots of an area.
pub const MAX_SLOTS: u32 = FAN_OUT * FAN_OUT;

/// Size of a slot in bytes.
pub const SLOT_BYTES: u32 = 8;

/// Alignment of an area in bytes.
pub const AREA_ALIGN: u64 = 4096;

layout! {
    size = 4096;
    /// The header page. The device writes it before it answers `ALLOC_UAR`; later the driver writes the summary
    /// words, and the device those and the sleeping flag.
    pub struct AreaHeader {
        /// Version of the layout: 1.
        pub version: U32,
        /// Number of slots.
        pub slots: U32,
        /// Zero.
        pub reserved_header: Reserved<56>,
        /// Not zero while the reader sleeps, or is about to.
        pub sleeping: U64,
        /// Zero.
        pub reserved_sleeping: Reserved<56>,
        /// Upper summary: bit `n` says that `lower[n]` is not empty.
        pub upper: U64,
        /// Zero.
        pub reserved_upper: Reserved<376>,
        /// Lower summaries: bit `b` of word `n` says that slot `64 n + b` was rung.
        pub lower: [U64; 64],
        /// Zero.
        pub reserved_lower: Reserved<3072>,
    }
}

/// Offset of the first slot in bytes.
pub const FIRST_SLOT: u32 = 4096;

const _: () = assert!(size_of::<AreaHeader>() as u64 == FIRST_SLOT as u64);

const SLEEPING: usize = core::mem::offset_of!(AreaHeader, sleeping) / 8;
const UPPER: usize = core::mem::offset_of!(AreaHeader, upper) / 8;
const LOWER: usize = core::mem::offset_of!(AreaHeader, lower) / 8;

/// Size in bytes of an area of `slots` slots; `None` if an area can't have so many, or has none.
pub const fn area_bytes(slots: u32) -> Option<u32> {
    if slots == 0 || slots > MAX_SLOTS {
        return None;
    }
    Some(slot_offset(slots))
}

/// Offset of a slot in its area, in bytes.
pub const fn slot_offset(slot: u32) -> u32 {
    FIRST_SLOT + SLOT_BYTES * slot
}

/// The slot at an offset in an area; `None` if none starts there.
pub const fn slot_at(offset: u32) -> Option<u32> {
    match offset.checked_sub(FIRST_SLOT) {
        Some(bytes) if bytes.is_multiple_of(SLOT_BYTES) && bytes / SLOT_BYTES < MAX_SLOTS => {
            Some(bytes / SLOT_BYTES)
        }
        _ => None,
    }
}

/// The header that the device writes into an area of `slots` slots. It is asleep until it looks.
pub fn header(slots: u32) -> AreaHeader {
    AreaHeader {
        version: U32::new(AREA_VERSION),
        slots: U32::new(slots),
        sleeping: U64::new(1),
        ..zerocopy::FromZeros::new_zeroed()
    }
}

/// The 64-bit words of an area in memory that both sides share.
///
/// Every word may change at any time. Words are little endian in memory.
pub trait Words {
    /// The word `index` (in words, from the area's start). Only asked for words of the area: up to
    /// `area_bytes(slots) / 8` of the slots that the caller names.
    fn word(&self, index: usize) -> &AtomicU64;
}

impl Words for [AtomicU64] {
    fn word(&self, index: usize) -> &AtomicU64 {
        &self[index]
    }
}

impl<W: Words + ?Sized> Words for &W {
    fn word(&self, index: usize) -> &AtomicU64 {
        (**self).word(index)
    }
}

const fn slot_word(slot: u32) -> usize {
    slot_offset(slot) as usize / 8
}

/// Rings: puts `value` into `slot`, which the device gave, and tells whether the device must be kicked.
///
/// All that this thread has written before is visible to whoever reads the value. Any thread may ring any slot;
/// of two rings of one slot the reader may see the later one only. `slot` is one of the area's
/// ([`DoorbellPlace::slot`]).
#[must_use = "a device that sleeps must be kicked"]
pub fn ring(area: &(impl Words + ?Sized), slot: u32, value: u64) -> bool {
    let (word, bit) = (slot / FAN_OUT, slot % FAN_OUT);
    area.word(slot_word(slot)).store(value.to_le(), Ordering::Relaxed);
    area.word(LOWER + word as usize).fetch_or((1u64 << bit).to_le(), Ordering::Release);
    area.word(UPPER).fetch_or((1u64 << word).to_le(), Ordering::Release);
    // Against `Reader::prepare_sleep`: either the reader sees the bit, or this sees the flag.
    fence(Ordering::SeqCst);
    area.word(SLEEPING).load(Ordering::Relaxed) != 0
}

/// The reader of an area. There is one for each area.
#[derive(Debug)]
pub struct Reader<W> {
    area: W,
    slots: u32,
}

impl<W: Words> Reader<W> {
    /// The reader of an area of `slots` slots; `None` if an area can't have so many.
    pub fn new(area: W, slots: u32) -> Option<Self> {
        area_bytes(slots).map(|_| Self { area, slots })
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether anything was rung since the last [`drain`](Self::drain): one load.
    pub fn is_rung(&self) -> bool {
        self.area.word(UPPER).load(Ordering::Relaxed) != 0
    }

    /// Calls `rung` with each slot that was rung and its value, and returns how many.
    ///
    /// What the writer wrote before its ring is visible in `rung`. The work is bounded by the number of slots,
    /// whatever the writer does. Bits of slots that the area doesn't have are dropped.
    pub fn drain(&self, mut rung: impl FnMut(u32, u64)) -> u32 {
        if !self.is_rung() {
            return 0;
        }
        let mut count = 0;
        for word in bits(take(self.area.word(UPPER))) {
            for bit in bits(take(self.area.word(LOWER + word as usize))) {
                let slot = word * FAN_OUT + bit;
                if slot < self.slots {
                    rung(slot, u64::from_le(self.area.word(slot_word(slot)).load(Ordering::Relaxed)));
                    count += 1;
                }
            }
        }
        count
    }

    /// Asks writers for a kick from now on. Returns whether the reader may sleep: `false` if something was rung
    /// meanwhile, and then it is awake again.
    #[must_use = "with something rung the reader must not sleep"]
    pub fn prepare_sleep(&self) -> bool {
        self.area.word(SLEEPING).store(1u64.to_le(), Ordering::Relaxed);
        // Against `ring`: either this sees the bit, or the writer sees the flag.
        fence(Ordering::SeqCst);
        let quiet = !self.is_rung();
        if !quiet {
            self.wake();
        }
        quiet
    }

    /// Ends the wish for kicks, before the next [`drain`](Self::drain).
    pub fn wake(&self) {
        self.area.word(SLEEPING).store(0, Ordering::Relaxed);
    }
}

/// Empties a summary word.
fn take(word: &AtomicU64) -> u64 {
    u64::from_le(word.swap(0, Ordering::Acquire))
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

codes! {
    /// How a UAR's doorbells reach the HCA.
    pub enum DoorbellMode {
        /// An area in guest memory, which the device reads.
        RELAYED = 1,
        /// An area in the device's shared-memory region.
        DIRECT = 2,
        /// A UAR page of the HCA in the device's shared-memory region: no summary, no sleeping flag.
        REGISTERS = 3,
    }
}

/// Id of the device's shared-memory region, which all doorbells of the modes [`DoorbellMode::DIRECT`] and
/// [`DoorbellMode::REGISTERS`] lie in.
pub const SHARED_REGION_ID: u8 = 0;

layout! {
    size = 8;
    /// Where an object's doorbell is.
    pub struct DoorbellPlace {
        /// Offset from the start of the UAR's area or page, in bytes.
        pub offset: U32,
        /// Its width in bytes: 8 in an area, 4 or 8 as a register; 0: the object has no doorbell.
        pub width: u8,
        /// Must be ignored.
        pub reserved: Reserved<3>,
    }
}

impl DoorbellPlace {
    /// The place of an object without a doorbell.
    pub const NONE: Self = Self { offset: U32::ZERO, width: 0, reserved: Reserved::ZERO };

    /// The place of a slot of an area.
    pub const fn of_slot(slot: u32) -> Self {
        Self { offset: U32::new(slot_offset(slot)), width: 8, reserved: Reserved::ZERO }
    }

    /// The slot in an area of `slots` slots; `None` if this is no slot of it.
    pub fn slot(&self, slots: u32) -> Option<u32> {
        slot_at(self.offset.get()).filter(|slot| self.width == 8 && *slot < slots)
    }
}

#[cfg(test)]
mod tests;
