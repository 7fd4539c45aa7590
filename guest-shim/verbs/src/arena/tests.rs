use proptest::prelude::*;

use super::*;
use crate::transport::testing::{Fake, Reply};

fn arena() -> (Arc<Fake>, Arc<Arena>) {
    let transport = Arc::new(Fake::new(|_| Reply::Keep));
    (Arc::<Fake>::clone(&transport), Arena::new(transport))
}

#[test]
fn pieces_are_aligned_and_lie_in_regions_that_the_device_knows() {
    let (transport, arena) = arena();
    let pieces = [(1, 64), (4096, 4096), (8, 64), (10_000, 4096), (CHUNK_BYTES + 1, 4096), (64, 64)];
    let blocks: Vec<Block> =
        pieces.iter().map(|(bytes, align)| arena.allocate(*bytes, *align).unwrap()).collect();
    for (block, (bytes, align)) in blocks.iter().zip(pieces) {
        assert_eq!(block.span().len(), bytes);
        assert!(block.guest_address() != 0 && block.guest_address().is_multiple_of(align as u64));
        assert!(transport.knows(block.guest_address(), block.page_bytes()), "{block:?}");
    }
    assert_eq!(transport.regions(), [CHUNK_BYTES as u64, 2 * CHUNK_BYTES as u64]);
}

#[test]
fn freed_memory_is_used_again_and_zero() {
    let (transport, arena) = arena();
    let block = arena.allocate(CHUNK_BYTES, 4096).unwrap();
    block.span().fill(0, 5000, 0xff);
    let address = block.guest_address();
    drop(block);
    let again = arena.allocate(CHUNK_BYTES, 4096).unwrap();
    assert_eq!(again.guest_address(), address);
    let mut bytes = [1; 5000];
    again.span().copy_out(0, &mut bytes);
    assert_eq!(bytes, [0; 5000]);
    assert_eq!(transport.regions().len(), 1);
}

#[test]
fn kept_memory_is_never_used_again() {
    let (_, arena) = arena();
    let block = arena.allocate(64, 64).unwrap();
    let address = block.guest_address();
    block.keep();
    drop(block);
    assert_ne!(arena.allocate(64, 64).unwrap().guest_address(), address);
}

#[test]
fn more_than_the_device_can_see_is_no_memory() {
    let (_, arena) = arena();
    for bytes in [usize::MAX, usize::MAX - 4096, 1 << 40] {
        let error = arena.allocate(bytes, 4096).unwrap_err();
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Pieces never overlap, and when all are free the memory is whole again.
    #[test]
    fn pieces_never_overlap(steps in prop::collection::vec((0usize..200_000, any::<bool>(), 0usize..8), 1..60)) {
        let (_, arena) = arena();
        let mut blocks: Vec<Block> = Vec::new();
        for (bytes, paged, free) in steps {
            blocks.push(arena.allocate(bytes, if paged { 4096 } else { 64 }).unwrap());
            if free < blocks.len() {
                blocks.swap_remove(free);
            }
            let mut ranges: Vec<(usize, usize, usize)> =
                blocks.iter().map(|block| (block.index, block.at, block.size)).collect();
            ranges.sort_unstable();
            for pair in ranges.windows(2) {
                let ((index, at, size), (next_index, next, _)) = (pair[0], pair[1]);
                prop_assert!(index != next_index || at + size <= next);
            }
        }
        blocks.clear();
        let state = arena.state.lock().unwrap();
        for part in &state.parts {
            prop_assert_eq!(&part.free, &BTreeMap::from([(0, part.chunk.len())]));
        }
    }
}
