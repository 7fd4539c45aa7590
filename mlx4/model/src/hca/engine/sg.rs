//! Scatter/gather lists, and the one copy that a payload gets: from the pieces of one list to those of
//! another.
//!
//! A list is what a WQE names, before any key is checked. A [`Walk`] checks the keys for one burst and hands
//! out host memory piece by piece. A message that takes several bursts walks anew in each, so a key that is
//! taken back in between is noticed.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{VolatileMemory, VolatileSlice};

use crate::hca::burst::Burst;
use crate::hca::counters::Counter;
use crate::hca::tpt::{self, KeyFault, Region, Rights, User};

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// Data in the WQE itself.
    Inline { at: usize, len: u32 },
    /// Memory behind a key.
    Pointer { key: u32, va: u64, len: u32 },
}

impl Element {
    fn len(&self) -> u64 {
        match self {
            Self::Inline { len, .. } | Self::Pointer { len, .. } => u64::from(*len),
        }
    }
}

/// A scatter/gather list. Entries without bytes are left out.
#[derive(Debug, Default)]
pub(super) struct SgList {
    elements: Vec<Element>,
    bytes: u64,
}

impl SgList {
    pub(super) fn clear(&mut self) {
        self.elements.clear();
        self.bytes = 0;
    }

    pub(super) fn push(&mut self, element: Element) {
        if element.len() != 0 {
            self.bytes += element.len();
            self.elements.push(element);
        }
    }

    /// Bytes in all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether some entry is inline data.
    pub(super) fn has_inline(&self) -> bool {
        self.elements.iter().any(|element| matches!(element, Element::Inline { .. }))
    }

    /// The entry that holds byte `from`, and how far into it that is.
    fn find(&self, from: u64) -> (usize, u64) {
        let mut skip = from;
        for (index, element) in self.elements.iter().enumerate() {
            if skip < element.len() {
                return (index, skip);
            }
            skip -= element.len();
        }
        (self.elements.len(), 0)
    }
}

/// Whoever hands out host memory piece by piece.
pub(super) trait Pieces<'b> {
    /// The next piece, of at most `max` bytes (more than zero), and steps over it; empty at the end.
    fn next(&mut self, max: u64) -> Result<VolatileSlice<'b>, KeyFault>;
}

/// The memory of a part of a list, in order.
pub(super) struct Walk<'b> {
    burst: &'b Burst,
    /// The WQE that inline entries lie in.
    inline: VolatileSlice<'b>,
    elements: &'b [Element],
    index: usize,
    skip: u64,
    left: u64,
    current: Option<Region>,
    user: User,
    rights: Rights,
}

impl<'b> Walk<'b> {
    /// Starts at byte `from` of a list, for `len` bytes, by a user. Every key of that part
    /// is checked before the first byte is handed out.
    ///
    /// # Errors
    /// The first key that doesn't allow it.
    #[inline]
    pub(super) fn start(
        burst: &'b Burst,
        list: &'b SgList,
        inline: VolatileSlice<'b>,
        (user, rights): (User, Rights),
        from: u64,
        len: u64,
    ) -> Result<Self, KeyFault> {
        let (index, skip) = list.find(from);
        let elements = &list.elements[..];
        let mut walk = Self { burst, inline, elements, index, skip, left: len, current: None, user, rights };
        walk.current = walk.region(index, skip, len)?;
        let first = elements.get(index).map_or(0, |element| element.len() - skip);
        if first < len {
            walk.check_later(len - first)?;
        }
        Ok(walk)
    }

    /// Checks the keys of the entries behind the first one, for a part that has `len` bytes there.
    fn check_later(&self, len: u64) -> Result<(), KeyFault> {
        let mut left = len;
        for (index, element) in self.elements.iter().enumerate().skip(self.index + 1) {
            if left == 0 {
                break;
            }
            self.region(index, 0, left)?;
            left = left.saturating_sub(element.len());
        }
        Ok(())
    }

    /// Checks the key of an entry, for what of it lies in a part of `len` bytes; `None` for inline data.
    #[inline]
    fn region(&self, index: usize, skip: u64, len: u64) -> Result<Option<Region>, KeyFault> {
        match self.elements.get(index) {
            Some(&Element::Pointer { key, va, len: whole }) => {
                let bytes = (u64::from(whole) - skip).min(len);
                let va = va.wrapping_add(skip);
                tpt::check(self.burst, key, self.user, va, bytes, self.rights).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn inline_piece(&self, at: usize, len: u32, max: u64) -> VolatileSlice<'b> {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let whole = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = usize::try_from(max).unwrap_or(usize::MAX).min(whole.saturating_sub(skip));
        self.inline.subslice(at.saturating_add(skip), bytes).unwrap_or_else(|_| empty())
    }
}

impl<'b> Pieces<'b> for Walk<'b> {
    fn next(&mut self, max: u64) -> Result<VolatileSlice<'b>, KeyFault> {
        let max = max.min(self.left);
        let Some(&element) = self.elements.get(self.index).filter(|_| max != 0) else { return Ok(empty()) };
        let piece = match element {
            Element::Inline { at, len } => self.inline_piece(at, len, max),
            Element::Pointer { .. } => {
                if self.current.is_none() {
                    self.current = self.region(self.index, self.skip, self.left)?;
                }
                match &mut self.current {
                    Some(region) => region.next(self.burst, max)?,
                    None => empty(),
                }
            }
        };
        let n = piece.len() as u64;
        self.skip += n;
        self.left -= n;
        if self.skip >= element.len() {
            (self.index, self.skip, self.current) = (self.index + 1, 0, None);
        }
        Ok(piece)
    }
}

/// The memory of a checked region.
pub(super) struct RegionWalk<'b> {
    pub(super) burst: &'b Burst,
    pub(super) region: Region,
}

impl<'b> Pieces<'b> for RegionWalk<'b> {
    fn next(&mut self, max: u64) -> Result<VolatileSlice<'b>, KeyFault> {
        self.region.next(self.burst, max)
    }
}

/// Memory that is there already, as a packet's payload is.
pub(super) struct Slices<'p, 'b> {
    pub(super) slices: &'p [VolatileSlice<'b>],
}

impl<'b> Pieces<'b> for Slices<'_, 'b> {
    fn next(&mut self, _max: u64) -> Result<VolatileSlice<'b>, KeyFault> {
        while let Some((first, rest)) = self.slices.split_first() {
            self.slices = rest;
            if !first.is_empty() {
                return Ok(*first);
            }
        }
        Ok(empty())
    }
}

/// Which side of a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyFault {
    Source(KeyFault),
    Target(KeyFault),
}

impl CopyFault {
    /// What was wrong, where it doesn't matter on which side.
    pub(super) fn key(self) -> KeyFault {
        match self {
            Self::Source(fault) | Self::Target(fault) => fault,
        }
    }
}

/// Last bytes of a copy, which are stored after all others: programs poll the end of a buffer for what
/// arrives there.
const TAIL: usize = size_of::<u64>();

/// Copies `len` bytes, and counts what it copies. What was copied before a fault stays.
pub(super) fn copy_counted<'s, 't>(
    source: &mut impl Pieces<'s>,
    target: &mut impl Pieces<'t>,
    len: u64,
    counter: &Counter,
) -> Result<(), CopyFault> {
    let mut left = len;
    let result = copy_left(source, target, &mut left);
    counter.add(len - left);
    result
}

/// Copies `len` bytes. What was copied before a fault stays.
pub(super) fn copy<'s, 't>(
    source: &mut impl Pieces<'s>,
    target: &mut impl Pieces<'t>,
    len: u64,
) -> Result<(), CopyFault> {
    copy_left(source, target, &mut { len })
}

/// Copies bytes until none are left to copy; `left` is how many are.
fn copy_left<'s, 't>(
    source: &mut impl Pieces<'s>,
    target: &mut impl Pieces<'t>,
    left: &mut u64,
) -> Result<(), CopyFault> {
    while *left != 0 {
        let mut from = source.next(*left).map_err(CopyFault::Source)?;
        if from.is_empty() {
            return Ok(());
        }
        while !from.is_empty() && *left != 0 {
            let to = target.next((*left).min(from.len() as u64)).map_err(CopyFault::Target)?;
            if to.is_empty() {
                return Ok(());
            }
            let n = to.len().min(from.len());
            *left -= n as u64;
            if *left == 0 {
                copy_tail_last(from, to, n);
            } else {
                from.copy_to_volatile_slice(to);
            }
            from = from.offset(n).unwrap_or_else(|_| empty());
        }
    }
    Ok(())
}

fn copy_tail_last(from: VolatileSlice<'_>, to: VolatileSlice<'_>, n: usize) {
    let Some(body) = n.checked_sub(TAIL) else { return copy_small(from, to, n) };
    if body != 0
        && let Ok(head) = to.subslice(0, body)
    {
        from.copy_to_volatile_slice(head);
        fence(Ordering::Release);
    }
    if let (Ok(from), Ok(to)) = (from.get_ref::<u64>(body), to.get_ref(body)) {
        to.store(from.load());
    }
}

/// Copies less than [`TAIL`] bytes, aligned words at once.
fn copy_small(from: VolatileSlice<'_>, to: VolatileSlice<'_>, n: usize) {
    let mut bytes = [0u8; TAIL];
    let n = from.copy_to(&mut bytes[..n]);
    to.copy_from(&bytes[..n]);
}

/// No memory.
pub(super) fn empty<'a>() -> VolatileSlice<'a> {
    VolatileSlice::from(&mut [][..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory in pieces of at most seven bytes.
    struct Small<'b>(VolatileSlice<'b>);

    impl<'b> Pieces<'b> for Small<'b> {
        fn next(&mut self, max: u64) -> Result<VolatileSlice<'b>, KeyFault> {
            let n = usize::try_from(max).unwrap().min(7).min(self.0.len());
            let (piece, rest) = self.0.split_at(n).unwrap();
            self.0 = rest;
            Ok(piece)
        }
    }

    #[test]
    fn copy_of_any_length_crosses_pieces_of_other_sizes() {
        for len in 0..=100 {
            let mut data: Vec<u8> = (1..=100).collect();
            let mut to = [0u8; 100];
            let from = VolatileSlice::from(&mut data[..]);
            let cuts = [(0, 1), (1, 40), (40, 40), (40, 100)];
            let pieces = cuts.map(|(a, b)| from.subslice(a, b - a).unwrap());
            let mut target = Small(VolatileSlice::from(&mut to[..]));
            copy(&mut Slices { slices: &pieces }, &mut target, len as u64).unwrap();
            assert_eq!((&to[..len], &to[len..]), (&data[..len], &vec![0; 100 - len][..]));
        }
    }

    #[test]
    fn copy_ends_with_the_shorter_list() {
        let (mut data, mut to) = ([1; 9], [0; 9]);
        let pieces = [VolatileSlice::from(&mut data[..5])];
        copy(&mut Slices { slices: &pieces }, &mut Small(VolatileSlice::from(&mut to[..])), 9).unwrap();
        assert_eq!(to[4..], [1, 0, 0, 0, 0]);
        copy(&mut Slices { slices: &pieces }, &mut Small(VolatileSlice::from(&mut to[..3])), 9).unwrap();
    }

    #[test]
    fn list_leaves_out_entries_without_bytes() {
        let mut list = SgList::default();
        list.push(Element::Pointer { key: 1, va: 0, len: 0 });
        list.push(Element::Inline { at: 20, len: 3 });
        list.push(Element::Pointer { key: 1, va: 0, len: 5 });
        assert_eq!((list.bytes(), list.find(2), list.find(3), list.find(8)), (8, (0, 2), (1, 0), (2, 0)));
        assert!(list.has_inline());
    }
}
