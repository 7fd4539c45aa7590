//! Receive queue and SRQ against a device that takes requests as the hardware does.

use std::collections::VecDeque;

use mlx4_wire::wqe::{DataSeg, INVALID_LKEY};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::geometry::{ReceiveGeometry, SrqGeometry};
use crate::request::{PostError, Sge};
use crate::testing::{LIMITS, TestMemory};
use crate::{Place, PostedReceive, ReceiveQueue, SharedReceiveQueue};

/// The scatter list at an offset, as the device reads it.
fn list(memory: &TestMemory, offset: usize, room: u32) -> Vec<Sge> {
    let mut pieces = Vec::new();
    for at in (offset..).step_by(16).take(room as usize) {
        let data = DataSeg::read_from_bytes(&memory.get(at, 16)).unwrap();
        if data.lkey.get() == INVALID_LKEY {
            break;
        }
        let length = data.byte_count.count();
        pieces.push(Sge { address: data.address.get(), length, lkey: data.lkey.get() });
    }
    pieces
}

fn piece(id: u64) -> Sge {
    Sge { address: id << 12, length: 4096, lkey: 0x1234_5600 }
}

#[derive(Clone, Debug)]
enum Step {
    Post(usize),
    Commit,
    /// The device takes this many requests.
    Take(usize),
    /// The device completes the n-th of those that it has taken (modulo their number).
    Complete(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0usize..4).prop_map(Step::Post),
        2 => Just(Step::Commit),
        2 => (0usize..5).prop_map(Step::Take),
        3 => any::<usize>().prop_map(Step::Complete),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn receive_queue_hands_over_what_was_posted(steps in steps(), requests in 1u32..9) {
        let geometry = ReceiveGeometry::new(requests, 3, &LIMITS).unwrap();
        let memory = TestMemory::new(geometry.bytes() as usize + 64);
        let place = |offset| Place { memory: memory.clone(), offset };
        let mut queue = ReceiveQueue::new(place(64), place(4), geometry).unwrap();
        queue.reset();
        let (mut posted, mut committed) = (VecDeque::new(), 0u16);
        let (mut next, mut taken, mut completed) = (0u64, 0u16, 0u64);
        for step in steps {
            match step {
                Step::Post(pieces) => {
                    let full = queue.free() == 0;
                    let result = queue.post(next, &vec![piece(next); pieces]);
                    prop_assert_eq!(result.is_err(), full, "{:?}", result);
                    if result.is_ok() {
                        posted.push_back((next, pieces));
                        next += 1;
                    }
                }
                Step::Commit => {
                    queue.commit();
                    committed = next as u16;
                    prop_assert_eq!(memory.word(4), u32::from(committed));
                }
                Step::Take(count) => {
                    for _ in 0..count.min(usize::from(committed.wrapping_sub(taken))) {
                        let slot = u32::from(taken) % geometry.entries() * geometry.stride();
                        let read = list(&memory, 64 + slot as usize, geometry.max_sges());
                        let (id, pieces) = posted[usize::from(taken) - completed as usize];
                        prop_assert_eq!(read, vec![piece(id); pieces]);
                        taken += 1;
                    }
                }
                Step::Complete(_) if completed < u64::from(taken) => {
                    let (id, pieces) = posted[0];
                    let request = PostedReceive { wr_id: id, room: 4096 * pieces as u32 };
                    prop_assert_eq!(id, completed);
                    if geometry.entries() > 1 {
                        prop_assert_eq!(queue.complete(id as u16 ^ 1), None);
                    }
                    prop_assert_eq!(queue.complete(id as u16), Some(request));
                    posted.pop_front();
                    completed += 1;
                }
                Step::Complete(_) => prop_assert_eq!(posted.is_empty(), queue.free() == geometry.entries()),
            }
        }
    }

    #[test]
    fn shared_queue_hands_over_what_was_posted(steps in steps(), requests in 1u32..9) {
        let geometry = SrqGeometry::new(requests, 3, &LIMITS).unwrap();
        let memory = TestMemory::new(geometry.bytes() as usize + 64);
        let place = |offset| Place { memory: memory.clone(), offset };
        let mut queue = SharedReceiveQueue::new(place(64), place(0), geometry).unwrap();
        queue.reset();
        let mut posted = VecDeque::new();
        let mut held: Vec<(u16, u64)> = Vec::new();
        let (mut next, mut committed, mut taken, mut slot) = (0u64, 0u16, 0u16, 0u16);
        for step in steps {
            match step {
                Step::Post(pieces) => match queue.post(next, &vec![piece(next); pieces]) {
                    Ok(()) => {
                        posted.push_back((next, pieces));
                        next += 1;
                    }
                    Err(error) => {
                        prop_assert_eq!(error, PostError::Full);
                        prop_assert_eq!(posted.len() + held.len(), geometry.requests() as usize);
                    }
                },
                Step::Commit => {
                    queue.commit();
                    committed = next as u16;
                }
                Step::Take(count) => {
                    for _ in 0..count.min(usize::from(committed.wrapping_sub(taken))) {
                        let at = 64 + usize::from(slot) * geometry.stride() as usize;
                        let (id, pieces) = posted.pop_front().unwrap();
                        let read = list(&memory, at + 16, geometry.max_sges());
                        prop_assert_eq!(read, vec![piece(id); pieces]);
                        held.push((slot, id));
                        slot = (memory.word(at) & 0xffff) as u16;
                        taken += 1;
                    }
                }
                Step::Complete(which) if !held.is_empty() => {
                    let (slot, id) = held.swap_remove(which % held.len());
                    prop_assert_eq!(queue.complete(slot).map(|request| request.wr_id), Some(id));
                    prop_assert_eq!(queue.complete(slot), None);
                }
                Step::Complete(which) => prop_assert_eq!(queue.complete(geometry.entries() as u16 + (which % 99) as u16), None),
            }
            prop_assert_eq!(queue.free() as usize, geometry.requests() as usize - posted.len() - held.len());
        }
    }
}

#[test]
fn short_list_ends_with_the_invalid_lkey() {
    let geometry = ReceiveGeometry::new(1, 2, &LIMITS).unwrap();
    let memory = TestMemory::new(64);
    let place = |offset| Place { memory: memory.clone(), offset };
    let mut queue = ReceiveQueue::new(place(0), place(32), geometry).unwrap();
    queue.reset();
    queue.post(1, &[piece(1)]).unwrap();
    assert_eq!(memory.get(16, 8), [0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(queue.post(2, &[]), Err(PostError::Full));
    assert_eq!(memory.word(32), 0, "nothing is handed over before the commit");
    queue.commit();
    assert_eq!(memory.word(32), 1);
}

#[test]
fn piece_without_bytes_is_left_out() {
    let geometry = ReceiveGeometry::new(1, 2, &LIMITS).unwrap();
    let memory = TestMemory::new(64);
    let place = |offset| Place { memory: memory.clone(), offset };
    let mut queue = ReceiveQueue::new(place(0), place(32), geometry).unwrap();
    queue.reset();
    queue.post(1, &[Sge { length: 0, ..piece(9) }, piece(1)]).unwrap();
    assert_eq!(list(&memory, 0, 2), [piece(1)]);
    assert_eq!(memory.get(16, 8), [0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn list_beyond_the_geometry_is_refused() {
    let geometry = ReceiveGeometry::new(1, 2, &LIMITS).unwrap();
    let memory = TestMemory::new(64);
    let place = |offset| Place { memory: memory.clone(), offset };
    let mut queue = ReceiveQueue::new(place(0), place(32), geometry).unwrap();
    assert_eq!(queue.post(1, &[piece(1); 3]), Err(PostError::TooManyPieces(3, 2)));
    let long = Sge { length: u32::MAX, ..piece(1) };
    assert_eq!(queue.post(1, &[long]), Err(PostError::PieceTooLong(u32::MAX)));
    assert!(ReceiveQueue::new(place(48), place(0), geometry).is_err());
    assert!(ReceiveQueue::new(place(0), place(62), geometry).is_err());
}
