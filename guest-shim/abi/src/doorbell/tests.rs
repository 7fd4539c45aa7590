//! Tests of the doorbell area, with real threads on both sides.

use std::boxed::Box;
use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::{Barrier, mpsc};
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
/// at first and whenever it may, and only kicks wake it.
#[test]
fn threads_that_ring_back_to_back_lose_nothing() {
    const WRITERS: u32 = 4;
    const ROUNDS: u64 = 40;
    let area = area(MAX_SLOTS);
    let done = AtomicBool::new(false);
    let (kick, kicks) = mpsc::channel();
    let start = Barrier::new(WRITERS as usize + 1);
    let mut last = vec![0u64; MAX_SLOTS as usize];

    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (area, start, kick) = (&area, &start, kick.clone());
                scope.spawn(move || {
                    start.wait();
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
        assert!(reader.prepare_sleep());
        start.wait();
        kicks.recv().expect("a kick");
        reader.wake();
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
                kicks.recv().expect("a kick");
                reader.wake();
            }
        }
        finish.join().expect("the last thread");
    });

    assert!(last.iter().all(|value| *value == ROUNDS), "a last ring was lost");
}

/// An area of which one side's access number `at` (counted from 0) finds that the other side has just acted.
struct Interrupted<'a> {
    area: &'a [AtomicU64],
    at: usize,
    accesses: Cell<usize>,
    act: &'a dyn Fn(),
}

impl Words for Interrupted<'_> {
    fn word(&self, index: usize) -> &AtomicU64 {
        if self.accesses.replace(self.accesses.get() + 1) == self.at {
            (self.act)();
        }
        &self.area[index]
    }
}

/// Runs `pass` with an area whose reader is awake and has slot 6 to look at, and `act` before each access in
/// turn, until `pass` has no more accesses. `pass` checks what must hold.
fn at_every_access(act: impl Fn(&[AtomicU64]), pass: impl Fn(&Interrupted<'_>)) {
    for at in 0.. {
        let area = area(64);
        reader(&area, 64).wake();
        assert!(!ring(&*area, 6, 1));
        let act = || act(&area);
        let interrupted = Interrupted { area: &area, at, accesses: Cell::new(0), act: &act };
        pass(&interrupted);
        if interrupted.accesses.get() <= at {
            assert!(at >= 4, "the pass has too few accesses");
            return;
        }
    }
}

#[test]
fn ring_at_any_point_of_a_readers_pass_is_seen_or_kicks() {
    let kick = Cell::new(false);
    at_every_access(
        |area| kick.set(ring(area, 5, 9)),
        |area| {
            let reader = Reader::new(area, 64).expect("a reader");
            let mut seen = false;
            reader.drain(|slot, _| seen |= slot == 5);
            let asleep = reader.prepare_sleep();
            if area.accesses.get() > area.at && !seen {
                assert!(!asleep || kick.get(), "lost by access {} of the reader", area.at);
                reader.drain(|slot, value| seen |= (slot, value) == (5, 9));
                assert!(seen, "no trace after access {} of the reader", area.at);
            }
        },
    );
}

#[test]
fn readers_pass_at_any_point_of_a_ring_loses_nothing() {
    let pass = Cell::new((0, false));
    at_every_access(
        |area| {
            let reader = reader(area, 64);
            let mut seen = 0;
            reader.drain(|slot, value| {
                if slot == 5 {
                    seen = value;
                }
            });
            pass.set((seen, reader.prepare_sleep()));
        },
        |area| {
            pass.set((0, false));
            let kick = ring(area, 5, 9);
            let (seen, asleep) = pass.get();
            if area.accesses.get() > area.at && seen != 9 {
                assert!(!asleep || kick, "lost by access {} of the writer", area.at);
                let left = drained(&reader(area.area, 64));
                assert!(left.contains(&(5, 9)), "no trace after access {} of the writer", area.at);
            }
        },
    );
}
