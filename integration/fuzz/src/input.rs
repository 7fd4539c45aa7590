//! How bytes become operations.

use arbitrary::{Arbitrary, Unstructured};

/// What the bytes say is to be done, `most` operations of it.
pub(crate) fn operations<'a, T: Arbitrary<'a> + 'a>(
    bytes: &'a [u8],
    most: usize,
) -> impl Iterator<Item = T> + 'a {
    let mut rest = Unstructured::new(bytes);
    std::iter::from_fn(move || if rest.is_empty() { None } else { T::arbitrary(&mut rest).ok() }).take(most)
}

/// One of a list.
pub(crate) fn one<T: Copy>(of: &[T], index: u8) -> T {
    of[usize::from(index) % of.len()]
}
