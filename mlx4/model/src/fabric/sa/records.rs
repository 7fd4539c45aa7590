//! Records in general: what a query's component mask picks, and how answers are packed.

use mlx4_wire::mad::header::Status;
use zerocopy::{Immutable, IntoBytes};

/// Records of one kind, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// Bytes from one record to the next: its size, rounded up to 8.
    pub(super) stride: usize,
    /// The records, each filled up to the stride.
    pub(super) bytes: Vec<u8>,
}

impl Records {
    /// Packs records.
    pub(super) fn pack<R: IntoBytes + Immutable>(records: &[R]) -> Self {
        let stride = size_of::<R>().next_multiple_of(8);
        let mut bytes = Vec::with_capacity(stride * records.len());
        for record in records {
            bytes.extend_from_slice(record.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        Self { stride, bytes }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len().checked_div(self.stride).unwrap_or(0)
    }
}

/// What a query or a change is answered with.
pub(super) type Outcome = Result<Records, Status>;

/// One record as an answer.
pub(super) fn one<R: IntoBytes + Immutable>(record: &R) -> Outcome {
    Ok(Records::pack(std::slice::from_ref(record)))
}

/// The components of a record: their widths in bits, in order, reserved ones too. Bit n of a component mask
/// is the nth of them.
pub(super) struct Components(pub(super) &'static [usize]);

impl Components {
    /// Whether the record equals the query in all components of the mask. Bits beyond the last component
    /// count as nothing.
    pub(super) fn match_masked<R: IntoBytes + Immutable>(&self, mask: u64, query: &R, record: &R) -> bool {
        let mut offset = 0;
        for (bit, width) in self.0.iter().enumerate() {
            let counts = mask >> bit & 1 == 1;
            if counts && !bits_equal(query.as_bytes(), record.as_bytes(), offset, *width) {
                return false;
            }
            offset += width;
        }
        true
    }
}

fn bits_equal(a: &[u8], b: &[u8], offset: usize, width: usize) -> bool {
    (offset..offset + width).all(|at| bit(a, at) == bit(b, at))
}

/// A bit by its number from the first byte's most significant one.
fn bit(bytes: &[u8], at: usize) -> Option<bool> {
    bytes.get(at / 8).map(|byte| byte >> (7 - at % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_padded_to_eight_bytes() {
        let records = Records::pack(&[[1u8; 6], [2; 6]]);
        assert_eq!((records.stride, records.len()), (8, 2));
        assert_eq!(records.bytes[4..10], [1, 1, 0, 0, 2, 2]);
        assert_eq!(Records::default().len(), 0);
    }

    #[test]
    fn only_masked_components_count() {
        let components = Components(&[16, 4, 4, 8]);
        let (query, record) = ([1u8, 2, 0x34, 5], [1u8, 2, 0x36, 9]);
        assert!(components.match_masked(0b0011, &query, &record));
        assert!(!components.match_masked(0b0100, &query, &record));
        assert!(!components.match_masked(0b1000, &query, &record));
        assert!(components.match_masked(!0xf, &query, &record));
    }
}
