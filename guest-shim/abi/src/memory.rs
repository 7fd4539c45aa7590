//! How a request describes guest memory: a list of segments of whole pages, behind the request's body.

use zerocopy::FromBytes;

use crate::{Reason, U64};

/// The unit in which memory is described, in bytes, whatever the page size of the guest.
pub const PAGE_BYTES: u64 = 4096;

layout! {
    size = 16;
    /// A piece of guest memory.
    pub struct Segment {
        /// Where it starts: an address as the device's virtqueues have them.
        pub address: U64,
        /// Its length in bytes.
        pub length: U64,
    }
}

/// Size of a segment in bytes.
pub const SEGMENT_BYTES: usize = size_of::<Segment>();

/// The segments that `bytes` are.
///
/// # Errors
/// [`Reason::BAD_LENGTH`] if `bytes` is not a whole number of segments.
pub fn segments(bytes: &[u8]) -> Result<&[Segment], Reason> {
    <[Segment]>::ref_from_bytes(bytes).map_err(|_| Reason::BAD_LENGTH)
}

/// Bytes that the whole pages around `length` bytes from `iova` have; `None` if they go beyond the last page of
/// the address space.
pub const fn pages_span(iova: u64, length: u64) -> Option<u64> {
    let lead = iova % PAGE_BYTES;
    let Some(bytes) = length.checked_add(lead) else { return None };
    let Some(span) = bytes.checked_next_multiple_of(PAGE_BYTES) else { return None };
    match (iova - lead).checked_add(span) {
        Some(_) => Some(span),
        None => None,
    }
}

/// Checks the form of segments that describe the memory of `length` bytes from `iova`: whole aligned pages,
/// none of them empty or wrapping, and together exactly the pages that those bytes touch.
///
/// A ring has an `iova` of 0. Whether the addresses are in the guest's memory is the device's to check.
///
/// # Errors
/// [`Reason::BAD_SEGMENT`], [`Reason::BAD_SEGMENT_SUM`].
pub fn check_cover<'a>(
    segments: impl IntoIterator<Item = &'a Segment>,
    iova: u64,
    length: u64,
) -> Result<(), Reason> {
    let span = pages_span(iova, length).ok_or(Reason::BAD_SEGMENT_SUM)?;
    let mut sum = 0u64;
    for segment in segments {
        let bytes = check_segment(segment, PAGE_BYTES)?;
        sum = sum.checked_add(bytes).ok_or(Reason::BAD_SEGMENT_SUM)?;
    }
    if sum == span && length != 0 { Ok(()) } else { Err(Reason::BAD_SEGMENT_SUM) }
}

/// Checks the form of segments that hold a list of segments, and returns how many that list has.
///
/// # Errors
/// [`Reason::BAD_SEGMENT`]; [`Reason::TOO_MANY_SEGMENTS`] if there are more than `max`.
pub fn list_length(pieces: &[Segment], max: u32) -> Result<u32, Reason> {
    let mut bytes = 0u64;
    for piece in pieces {
        let length = check_segment(piece, SEGMENT_BYTES as u64)?;
        bytes = bytes.checked_add(length).ok_or(Reason::TOO_MANY_SEGMENTS)?;
    }
    match u32::try_from(bytes / SEGMENT_BYTES as u64) {
        Ok(count) if count <= max => Ok(count),
        _ => Err(Reason::TOO_MANY_SEGMENTS),
    }
}

/// The length of a segment whose address and length are multiples of `unit`.
fn check_segment(segment: &Segment, unit: u64) -> Result<u64, Reason> {
    let (address, length) = (segment.address.get(), segment.length.get());
    let aligned = address.is_multiple_of(unit) && length.is_multiple_of(unit);
    if length == 0 || !aligned || address.checked_add(length).is_none() {
        return Err(Reason::BAD_SEGMENT);
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn segment(address: u64, length: u64) -> Segment {
        Segment { address: U64::new(address), length: U64::new(length) }
    }

    #[test]
    fn segment_has_its_bytes() {
        let bytes = [0, 0x10, 0, 0, 0, 0, 0, 1, 0, 0x20, 0, 0, 0, 0, 0, 0];
        assert_eq!(segment(0x0100_0000_0000_1000, 0x2000).as_bytes(), bytes);
        assert_eq!(segments(&bytes), Ok(&[segment(0x0100_0000_0000_1000, 0x2000)][..]));
        assert_eq!(segments(&bytes[..15]), Err(Reason::BAD_LENGTH));
    }

    #[test]
    fn span_counts_every_page_that_is_touched() {
        assert_eq!(pages_span(0, 1), Some(0x1000));
        assert_eq!(pages_span(0xfff, 2), Some(0x2000));
        assert_eq!(pages_span(0x7f00_0000_0010, 0x1000), Some(0x2000));
        assert_eq!(pages_span(0x1000, u64::MAX), None);
        assert_eq!(pages_span(u64::MAX, 1), None);
    }

    #[test]
    fn cover_of_exactly_the_touched_pages_is_accepted() {
        let pieces = [segment(0x8000, 0x1000), segment(0x2000, 0x3000)];
        assert_eq!(check_cover(&pieces, 0x7f00_0000_0123, 0x3000), Ok(()));
        assert_eq!(check_cover(&pieces, 0, 0x4000), Ok(()));
        assert_eq!(check_cover(&pieces, 0, 0x3000), Err(Reason::BAD_SEGMENT_SUM));
        assert_eq!(check_cover(&pieces, 1, 0x4000), Err(Reason::BAD_SEGMENT_SUM));
        assert_eq!(check_cover(&[], 0, 0), Err(Reason::BAD_SEGMENT_SUM));
    }

    #[test]
    fn segment_empty_wrapping_or_misaligned_is_refused() {
        for bad in [
            segment(0x1000, 0),
            segment(0x1001, 0x1000),
            segment(0x1000, 0x1001),
            segment(u64::MAX - 0xfff, 0x1000),
        ] {
            assert_eq!(check_cover(&[bad], 0, 0x1000), Err(Reason::BAD_SEGMENT), "{bad:?}");
        }
        let halves = [segment(0, 1 << 63), segment(0, 1 << 63)];
        assert_eq!(check_cover(&halves, 0, 0x1000), Err(Reason::BAD_SEGMENT_SUM));
    }

    #[test]
    fn list_is_counted_against_its_limit() {
        let pieces = [segment(0x1010, 0xff0), segment(0x8000, 0x20)];
        assert_eq!(list_length(&pieces, 257), Ok(257));
        assert_eq!(list_length(&pieces, 256), Err(Reason::TOO_MANY_SEGMENTS));
        assert_eq!(list_length(&[segment(0x1008, 0x10)], 9), Err(Reason::BAD_SEGMENT));
        assert_eq!(
            list_length(&[segment(0, 1 << 63), segment(0, 1 << 63)], 9),
            Err(Reason::TOO_MANY_SEGMENTS)
        );
    }
}
