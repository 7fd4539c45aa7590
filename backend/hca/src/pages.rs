//! Lists of mapped pieces, as pages of one size.

use paraverbs_tenant::hca::{HcaError, Piece};

/// log2 of the page size of rings.
pub(crate) const LOG2_RING_PAGE: u8 = 12;
/// log2 of the smallest and the greatest page of a region.
const LOG2_LEAST: u32 = 12;
const LOG2_MOST: u32 = 31;
const PAGE: u64 = 1 << LOG2_RING_PAGE;

/// Pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) addresses: Vec<u64>,
    /// log2 of their size in bytes.
    pub(crate) log2: u8,
}

/// Checks that pieces are whole pages which don't wrap; their length together in bytes.
fn total(pieces: &[Piece]) -> Result<u64, HcaError> {
    pieces.iter().try_fold(0u64, |sum, piece| {
        let whole = piece.length != 0 && [piece.iova.0, piece.length].iter().all(|n| n.is_multiple_of(PAGE));
        let inside = piece.iova.0.checked_add(piece.length).is_some();
        sum.checked_add(piece.length).filter(|_| whole && inside).ok_or(HcaError::Refused)
    })
}

/// The pages of a ring of so many bytes.
pub(crate) fn ring_pages(pieces: &[Piece], bytes: u64) -> Result<Vec<u64>, HcaError> {
    if total(pieces)? != bytes {
        return Err(HcaError::Refused);
    }
    Ok(pieces
        .iter()
        .flat_map(|piece| (0..piece.length / PAGE).map(|page| piece.iova.0 + page * PAGE))
        .collect())
}

/// The largest pages that a region can have: each of its bytes lies as deep in its page as its address says.
///
/// The first and the last may begin before, and end behind, the region: the HCA holds accesses to its bounds.
pub(crate) fn region_pages(start: u64, length: u64, pieces: &[Piece]) -> Result<Pages, HcaError> {
    let inside = start % PAGE;
    let needed = inside.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE));
    if length == 0 || start.checked_add(length - 1).is_none() || needed != Some(total(pieces)?) {
        return Err(HcaError::Refused);
    }
    let merged = merged(pieces);
    let mut address = start - inside;
    // Bits in which an address and what is behind it differ, or at which a piece ends too early.
    let mut differing = 0;
    for (index, piece) in merged.iter().enumerate() {
        differing |= address ^ piece.iova.0;
        if index != 0 {
            differing |= address;
        }
        address = address.wrapping_add(piece.length);
    }
    let enough = needed.unwrap_or(PAGE).next_power_of_two().ilog2();
    let log2 = differing.trailing_zeros().min(enough).clamp(LOG2_LEAST, LOG2_MOST);
    let page = 1u64 << log2;
    let addresses = merged
        .iter()
        .flat_map(|piece| {
            let first = piece.iova.0 & !(page - 1);
            let end = piece.iova.0 + piece.length;
            (0..(end - first).div_ceil(page)).map(move |index| first + index * page)
        })
        .collect();
    // At most 31.
    Ok(Pages { addresses, log2: u8::try_from(log2).unwrap_or(LOG2_RING_PAGE) })
}

/// The same pieces, those that follow each other made one.
fn merged(pieces: &[Piece]) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match all.last_mut() {
            Some(last) if last.iova.0 + last.length == piece.iova.0 => last.length += piece.length,
            _ => all.push(*piece),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use paraverbs_tenant::hca::Iova;

    use super::*;

    fn pieces(all: &[(u64, u64)]) -> Vec<Piece> {
        all.iter().map(|(iova, length)| Piece { iova: Iova(*iova), length: *length }).collect()
    }

    fn pages(start: u64, length: u64, all: &[(u64, u64)]) -> (u8, Vec<u64>) {
        let pages = region_pages(start, length, &pieces(all)).unwrap();
        (pages.log2, pages.addresses)
    }

    #[test]
    fn ring_is_cut_into_pages() {
        let all = pieces(&[(0x5000, 0x2000), (0x1_0000, 0x1000)]);
        assert_eq!(ring_pages(&all, 0x3000), Ok(vec![0x5000, 0x6000, 0x1_0000]));
        assert_eq!(ring_pages(&all, 0x2000), Err(HcaError::Refused));
        assert_eq!(ring_pages(&pieces(&[(0x5800, 0x1000)]), 0x1000), Err(HcaError::Refused));
        assert_eq!(ring_pages(&pieces(&[(u64::MAX - 0xfff, 0x1000)]), 0x1000), Err(HcaError::Refused));
    }

    #[test]
    fn region_gets_the_largest_pages_that_fit() {
        // All in one piece, as deep in 4 MiB as its address, but not in 8.
        let all = [(0x1_0060_0000, 2 << 20), (0x1_0080_0000, 2 << 20)];
        assert_eq!(pages(0x4020_0000, 4 << 20, &all), (22, vec![0x1_0040_0000, 0x1_0080_0000]));
        // Another depth.
        assert_eq!(pages(0x1800, 0x1000, &[(0x8000, 0x2000)]), (12, vec![0x8000, 0x9000]));
        // A break in the middle of 8 KiB.
        assert_eq!(pages(0x2000, 0x2000, &[(0x4000, 0x1000), (0x9000, 0x1000)]), (12, vec![0x4000, 0x9000]));
        // A break between two pages of 8 KiB.
        assert_eq!(pages(0x2000, 0x4000, &[(0x4000, 0x2000), (0xa000, 0x2000)]), (13, vec![0x4000, 0xa000]));
    }

    #[test]
    fn first_and_last_page_may_reach_beyond_the_region() {
        assert_eq!(pages(0x3000, 0x2000, &[(0x1_3000, 0x2000)]), (13, vec![0x1_2000, 0x1_4000]));
    }

    #[test]
    fn region_that_its_pieces_do_not_hold_is_refused() {
        for (start, length, all) in [
            (0x1000, 0x1001, &[(0x8000, 0x1000)][..]),
            (0x1000, 0x1000, &[(0x8000, 0x2000)]),
            (0x1000, 0, &[]),
            (0x1000, 0x1000, &[(0x8001, 0x1000)]),
            (0x1000, 0x2000, &[(0x8000, 0x2000), (0x9000, 0)]),
            (u64::MAX - 0xfff, 0x2000, &[(0x8000, 0x2000)]),
            (0xfff, u64::MAX, &[(0x8000, 0x2000)]),
        ] {
            assert_eq!(region_pages(start, length, &pieces(all)), Err(HcaError::Refused), "{start:#x}");
        }
    }
}
