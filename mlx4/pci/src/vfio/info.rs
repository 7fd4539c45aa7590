//! What VFIO says of the IOMMU: a header and a chain of capabilities, `vfio_iommu_type1_info`.

use std::ops::RangeInclusive;

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};

use crate::Geometry;

/// Smallest granule that memory is allocated in, in bytes.
const PAGE: u64 = 4096;

/// What kernels without the capability (before 5.4) have on x86: 39 bits, without the interrupt controllers.
const OLD_RANGES: [RangeInclusive<u64>; 2] = [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff];

/// The parts of the answer that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IommuInfo {
    pub(super) geometry: Geometry,
    /// Mappings that can still be added, if the kernel tells.
    pub(super) left: Option<u64>,
}

impl IommuInfo {
    /// Reads the kernel's answer; what doesn't make sense in it is passed over.
    pub(super) fn parse(answer: &[u8]) -> Self {
        let flags = u32_at(answer, 4).unwrap_or(0);
        let page_sizes = u64_at(answer, 8).filter(|_| flags & VFIO_IOMMU_INFO_PGSIZES != 0).unwrap_or(PAGE);
        let lowest = page_sizes & page_sizes.wrapping_neg();
        let (mut ranges, mut left) = (Vec::new(), None);
        let mut at = u32_at(answer, 16).filter(|_| flags & VFIO_IOMMU_INFO_CAPS != 0).unwrap_or(0);
        // A chain whose links don't go forward has no end.
        while let Some(cap) = usize::try_from(at).ok().filter(|at| *at != 0).and_then(|at| answer.get(at..)) {
            match u16_at(cap, 0).map(u32::from) {
                Some(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) => ranges = iova_ranges(cap),
                Some(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL) => left = u32_at(cap, 8).map(u64::from),
                _ => {}
            }
            at = u32_at(cap, 4).filter(|next| *next > at).unwrap_or(0);
        }
        if ranges.is_empty() {
            ranges = OLD_RANGES.to_vec();
        }
        Self { geometry: Geometry { ranges, granule: lowest.max(PAGE) }, left }
    }
}

fn iova_ranges(cap: &[u8]) -> Vec<RangeInclusive<u64>> {
    let count = u32_at(cap, 8).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let pairs = cap.get(16..).unwrap_or_default().chunks_exact(16).take(count);
    let ranges = pairs.filter_map(|pair| Some(u64_at(pair, 0)?..=u64_at(pair, 8)?));
    ranges.filter(|range| !range.is_empty()).collect()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with these capabilities after the header of 24 bytes: identity and body of each.
    fn answer(page_sizes: u64, caps: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes[4] = 3;
        bytes[8..16].copy_from_slice(&page_sizes.to_ne_bytes());
        bytes[16] = if caps.is_empty() { 0 } else { 24 };
        for (i, (id, body)) in caps.iter().enumerate() {
            let end = u32::try_from(bytes.len() + 8 + body.len()).unwrap();
            let next = if i + 1 < caps.len() { end } else { 0 };
            bytes.extend(id.to_ne_bytes());
            bytes.extend(1u16.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend(body);
        }
        bytes
    }

    fn ranges(pairs: &[(u64, u64)]) -> Vec<u8> {
        let mut body = u32::try_from(pairs.len()).unwrap().to_ne_bytes().to_vec();
        body.extend([0; 4]);
        for (first, last) in pairs {
            body.extend(first.to_ne_bytes());
            body.extend(last.to_ne_bytes());
        }
        body
    }

    #[test]
    fn ranges_and_mappings_left_are_read_from_the_chain() {
        let pairs = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];
        let migration = (2, vec![0; 24]);
        let bytes =
            answer(0x4020_1000, &[migration, (1, ranges(&pairs)), (3, 65_535u32.to_ne_bytes().to_vec())]);
        let info = IommuInfo::parse(&bytes);
        assert_eq!(info.geometry.ranges, pairs.map(|(first, last)| first..=last));
        assert_eq!((info.geometry.granule, info.left), (4096, Some(65_535)));
    }

    #[test]
    fn old_kernel_gets_what_every_x86_has() {
        let info = IommuInfo::parse(&answer(0x1000, &[]));
        assert_eq!(info.geometry.ranges, OLD_RANGES);
        assert_eq!(info.left, None);
    }

    #[test]
    fn granule_is_never_below_a_page() {
        assert_eq!(IommuInfo::parse(&answer(u64::MAX, &[])).geometry.granule, 4096);
        assert_eq!(IommuInfo::parse(&answer(0x1_0000, &[])).geometry.granule, 0x1_0000);
        assert_eq!(IommuInfo::parse(&[]).geometry.granule, 4096);
    }

    #[test]
    fn malformed_answer_is_passed_over() {
        let mut bytes = answer(0x1000, &[(1, ranges(&[(5, 4)])), (3, vec![])]);
        assert_eq!(IommuInfo::parse(&bytes).left, None);
        assert_eq!(IommuInfo::parse(&bytes).geometry.ranges, OLD_RANGES);
        // The first capability names itself as the next.
        bytes[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(IommuInfo::parse(&bytes).left, None);
        bytes[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(IommuInfo::parse(&bytes).geometry.ranges, OLD_RANGES);
    }
}
