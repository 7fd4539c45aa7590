//! Tests of the doorbell area, with real threads on both sides.

use std::boxed::Box;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::vec::Vec;
use std::{thread, vec};

use zerocopy::IntoBytes;

use super::*;

/// An area as `ALLOC_UAR` leaves it.
fn area(slots: u32) -> Box<[AtomicU64]> {
    let mut bytes = header(slots).as_bytes().to_vec();
    bytes.resize(area_bytes(slots).expect("an area") as usize, 0);
    bytes
        .chunks_exact(8)
        .map(|word| AtomicU64::new(u64::from_ne_bytes(word.try_into().expect("eight bytes"))))
        .collect()
}

fn reader(area: &[AtomicU64], slots: u32) -> Reader<&[AtomicU64]> {
    Reader::new(area, slots).expect("a reader")
}

fn drained(reader: &Reader<&[AtomicU64]>) -> Vec<(u32, u64)> {
    let mut rung = Vec::new();
    let count = reader.drain(|slot, value| rung.push((slot, value)));
    assert_eq!(count as usize, rung.len());
    rung
}

#[test]
fn area_has_its_places() {
    assert_eq!((SLEEPING * 8, UPPER * 8, LOWER * 8), (0x40, 0x80, 0x200));
    assert_eq!(area_bytes(MAX_SLOTS), Some(0x9000));
    assert_eq!(area_bytes(512), Some(0x2000));
    assert_eq!((area_bytes(0), area_bytes(MAX_SLOTS + 1)), (None, None));
    assert_eq!(slot_offset(3), 0x1018);
    assert_eq!(header(0x40).as_bytes()[..8], [1, 0, 0, 0, 0x40, 0, 0, 0]);
    assert_eq!(header(0x40).as_bytes()[0x40], 1);
}

#[test]
fn slot_at_is_the_inverse_of_its_offset() {
    for slot in [0, 1, 63, 64, MAX_SLOTS - 1] {
        assert_eq!(slot_at(slot_offset(slot)), Some(slot));
    }
    for offset in [0, 0x200, 0x1004, slot_offset(MAX_SLOTS), u32::MAX] {
        assert_eq!(slot_at(offset), None, "{offset:#x}");
    }
}

#[test]
fn place_that_is_no_slot_of_the_area_has_none() {
    let place = DoorbellPlace::of_slot(9);
    assert_eq!(place.as_bytes(), [0x48, 0x10, 0, 0, 8, 0, 0, 0]);
    assert_eq!((place.slot(10), place.slot(9)), (Some(9), None));
    assert_eq!(DoorbellPlace { width: 4, ..place }.slot(10), None);
    assert_eq!(DoorbellPlace::NONE.slot(10), None);
}

#[test]
fn ring_is_seen_once_with_the_last_value() {
    let area = area(128);
    let reader = reader(&area, 128);
    let _ = ring(&*area, 100, 1);
    let _ = ring(&*area, 100, 0x1122_3344_5566_7788);
    let _ = ring(&*area, 0, 7);
    assert!(reader.is_rung());
    assert_eq!(drained(&reader), [(0, 7), (100, 0x1122_3344_5566_7788)]);
    assert_eq!(drained(&reader), []);
    assert_eq!(area[slot_word(100)].load(Ordering::Relaxed).as_bytes()[0], 0x88);
    assert_eq!(area[LOWER + 1].load(Ordering::Relaxed), 0);
}

#[test]
fn ring_of_a_sleeping_reader_asks_for_a_kick() {
    let area = area(64);
    let reader = reader(&area, 64);
    assert!(ring(&*area, 1, 1));
    assert!(!reader.prepare_sleep());
    assert!(!ring(&*area, 1, 2));
    assert_eq!(drained(&reader), [(1, 2)]);
    assert!(reader.prepare_sleep());
    assert!(ring(&*area, 1, 3));
    reader.wake();
    assert!(!ring(&*area, 1, 4));
}

#[test]
fn bits_of_slots_beyond_the_area_are_dropped() {
    let area = area(65);
    let reader = reader(&area, 65);
    for word in 0..FAN_OUT as usize {
        area[LOWER + word].store(u64::MAX, Ordering::Relaxed);
    }
    area[UPPER].store(u64::MAX, Ordering::Relaxed);
    let slots: Vec<u32> = drained(&reader).iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, Vec::from_iter(0..65));
    assert!(!reader.is_rung());
}

/// Four threads ring all slots in a scattered order, each value greater than the last; the reader sleeps
/// whenever it may, and only kicks wake it.
#[test]
fn threads_that_ring_back_to_back_lose_nothing() {
    const WRITERS: u32 = 4;
    const ROUNDS: u64 = 40;
    let area = area(MAX_SLOTS);
    let done = AtomicBool::new(false);
    let (kick, kicks) = mpsc::channel();
    let mut last = vec![0u64; MAX_SLOTS as usize];
    let mut sleeps = 0u32;

    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (area, kick) = (&area, kick.clone());
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        for step in 0..MAX_SLOTS / WRITERS {
                            let slot = (step.wrapping_mul(661) * WRITERS + writer) % MAX_SLOTS;
                            if ring(&**area, slot, round) {
                                kick.send(()).expect("the reader listens");
                            }
                        }
                    }
                })
            })
            .collect();
        let finish = scope.spawn({
            let done = &done;
            move || {
                for writer in writers {
                    writer.join().expect("a writer");
                }
                done.store(true, Ordering::SeqCst);
                kick.send(()).expect("the reader listens");
            }
        });
        let reader = reader(&area, MAX_SLOTS);
        loop {
            let finished = done.load(Ordering::SeqCst);
            reader.drain(|slot, value| {
                assert!(value >= last[slot as usize], "slot {slot} went back");
                last[slot as usize] = value;
            });
            if finished {
                break;
            }
            if reader.prepare_sleep() {
                sleeps += 1;
                kicks.recv().expect("a kick");
                reader.wake();
            }
        }
        finish.join().expect("the last thread");
    });

    assert!(last.iter().all(|value| *value == ROUNDS), "a last ring was lost");
    assert!(sleeps > 0);
}
