//! Data that can be recognised: bytes that follow from a seed.

/// A byte that isn't what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} is {seen:#04x} instead of {expected:#04x}")]
pub(crate) struct Mismatch {
    at: usize,
    expected: u8,
    seen: u8,
}

/// The words that follow from a seed (SplitMix64).
fn words(seed: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    })
}

/// Fills `to` with the bytes of a seed.
pub(crate) fn fill(seed: u64, to: &mut [u8]) {
    for (chunk, word) in to.chunks_mut(8).zip(words(seed)) {
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Whether `seen` has exactly the bytes of a seed.
pub(crate) fn check(seed: u64, seen: &[u8]) -> Result<(), Mismatch> {
    for (index, (chunk, word)) in seen.chunks(8).zip(words(seed)).enumerate() {
        if let Some(place) = chunk.iter().zip(&word).position(|(seen, expected)| seen != expected) {
            return Err(Mismatch { at: 8 * index + place, expected: word[place], seen: chunk[place] });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_seed_are_recognised_and_a_changed_one_is_found() {
        let mut bytes = [0; 1003];
        fill(7, &mut bytes);
        check(7, &bytes).unwrap();
        assert_eq!(check(8, &bytes).unwrap_err().at, 0);
        bytes[1001] ^= 1;
        let found = check(7, &bytes).unwrap_err();
        assert_eq!((found.at, found.expected ^ found.seen), (1001, 1));
    }
}
