use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::memory::Chunk;

const LAYOUT: Layout = Layout { size: 8 };

fn queue() -> (Span, Virtqueue) {
    let memory = Span::new(&Arc::new(Chunk::new(4096).unwrap()), 0, LAYOUT.bytes()).unwrap();
    (memory.clone(), Virtqueue::new(memory, LAYOUT))
}

/// The device says that chains were used: up to `index`, the entries being these.
fn used(memory: &Span, index: u16, entries: &[(u32, u32)]) {
    for (slot, (head, length)) in entries.iter().enumerate() {
        memory.u32_at(LAYOUT.used() + 4 + 8 * slot).store(head.to_le(), Ordering::Relaxed);
        memory.u32_at(LAYOUT.used() + 8 + 8 * slot).store(length.to_le(), Ordering::Relaxed);
    }
    memory.u16_at(LAYOUT.used() + 2).store(index.to_le(), Ordering::Release);
}

#[test]
fn rings_have_the_layout_of_the_specification() {
    assert_eq!((LAYOUT.available(), LAYOUT.used(), LAYOUT.bytes()), (128, 152, 222));
    let (memory, mut queue) = queue();
    queue.describe(3, Buffer { address: 0x1122_3344_5566_7788, length: 9, writable: true, next: Some(5) });
    queue.offer(3);
    let mut descriptor = [0; 16];
    memory.copy_out(48, &mut descriptor);
    assert_eq!(descriptor, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 9, 0, 0, 0, 3, 0, 5, 0]);
    let mut available = [0; 8];
    memory.copy_out(LAYOUT.available(), &mut available);
    assert_eq!(available, [0, 0, 1, 0, 3, 0, 0, 0]);
}

#[test]
fn chains_go_round_many_times() {
    let (memory, mut queue) = queue();
    let mut index = 0u16;
    for length in 0..70_000 {
        let slot = index % 8;
        queue.offer(slot);
        let mut entries = [(u32::MAX, 0); 8];
        entries[usize::from(slot)] = (slot.into(), length);
        index = index.wrapping_add(1);
        used(&memory, index, &entries);
        assert_eq!(queue.take(), Ok(Some(Used { head: slot, length })));
        assert_eq!(queue.take(), Ok(None));
    }
}

#[test]
fn device_that_wants_no_notification_gets_none() {
    let (memory, queue) = queue();
    assert!(queue.wants_kick());
    memory.u16_at(LAYOUT.used()).store(NO_NOTIFY.to_le(), Ordering::Relaxed);
    assert!(!queue.wants_kick());
}

#[test]
fn chains_that_the_device_does_not_have_break_the_queue() {
    for (index, entry) in
        [(1, (2, 0)), (1, (8, 0)), (1, (0x1_0000, 0)), (1, (u32::MAX, 0)), (3, (0, 0)), (0xffff, (0, 0))]
    {
        let (memory, mut queue) = queue();
        queue.offer(0);
        queue.offer(1);
        used(&memory, index, &[entry]);
        assert_eq!(queue.take(), Err(Broken), "{index} {entry:?}");
    }
    let (memory, mut queue) = queue();
    queue.offer(0);
    queue.offer(1);
    used(&memory, 2, &[(0, 0), (0, 0)]);
    assert_eq!(queue.take(), Ok(Some(Used { head: 0, length: 0 })));
    assert_eq!(queue.take(), Err(Broken), "the same chain twice");
}

proptest! {
    /// Whatever the device writes, only chains come back that it had, each once.
    #[test]
    fn any_used_ring_is_survived(bytes in prop::collection::vec(any::<u8>(), 70), offered in 0u16..9) {
        let (memory, mut queue) = queue();
        (0..offered).for_each(|head| queue.offer(head));
        memory.copy_in(LAYOUT.used(), &bytes);
        let mut came_back = Vec::new();
        while let Ok(Some(used)) = queue.take() {
            prop_assert!(used.head < offered && !came_back.contains(&used.head));
            came_back.push(used.head);
        }
    }
}
