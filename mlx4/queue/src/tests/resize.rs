//! A completion queue that moves to another ring, entries of 64 bytes, and completions of XRC targets, against
//! a device that writes CQEs as the hardware does.

use std::collections::VecDeque;

use mlx4_wire::cqe::{CQE_FILL, Cqe, CqeOpcode, CqeOwner, CqeSource, ReceiveOpcode};
use mlx4_wire::wqe::Opcode;
use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

use crate::geometry::CqGeometry;
use crate::testing::{LIMITS, TestDoorbell, TestMemory, sent};
use crate::{
    CompletionQueue, CqError, Place, PostedReceive, PostedSend, ResizeError, WorkQueues, XRC_TARGET,
};

const RECORD: usize = 0;
const RING: usize = 64;

/// A ring as the device has it.
#[derive(Clone)]
struct Ring {
    memory: TestMemory,
    geometry: CqGeometry,
}

impl Ring {
    fn new(completions: u32, wide: bool) -> Self {
        let geometry = CqGeometry::new(completions, &LIMITS).unwrap().with_wide_entries(wide);
        Self { memory: TestMemory::new(RING + geometry.bytes() as usize), geometry }
    }

    fn place(&self) -> Place<TestMemory> {
        Place { memory: self.memory.clone(), offset: RING }
    }

    /// Marks all entries as not valid, the first being that of an index.
    fn fill(&self, first: u32) {
        for index in first..first + self.geometry.entries() {
            let mut cqe = Cqe::new_zeroed();
            cqe.set_owner(index & self.geometry.entries() == 0);
            self.put(index, cqe);
        }
    }

    fn write(&self, index: u32, mut cqe: Cqe) {
        cqe.set_owner(index & self.geometry.entries() != 0);
        self.put(index, cqe);
    }

    fn put(&self, index: u32, cqe: Cqe) {
        let bytes = self.geometry.entry_bytes() as usize;
        let at = RING + (index & (self.geometry.entries() - 1)) as usize * bytes;
        if bytes == 64 {
            self.memory.set(at, &[0x3c; 32]);
        }
        self.memory.set(at + bytes - 32, cqe.as_bytes());
    }
}

struct Bench {
    queue: CompletionQueue<TestMemory, TestDoorbell>,
    record: TestMemory,
    ring: Ring,
    producer: u32,
}

impl Bench {
    fn new(completions: u32, wide: bool) -> Self {
        let (ring, record) = (Ring::new(completions, wide), TestMemory::new(64));
        let place = Place { memory: record.clone(), offset: RECORD };
        let doorbell = TestDoorbell::default();
        let mut queue = CompletionQueue::new(ring.place(), place, ring.geometry, 0x81, doorbell).unwrap();
        queue.reset();
        Self { queue, record, ring, producer: 0 }
    }

    fn room(&self, ring: &Ring) -> u32 {
        let unread = self.producer.wrapping_sub(self.record.word(RECORD)) & 0xff_ffff;
        ring.geometry.completions().saturating_sub(unread)
    }

    fn write(&mut self, cqe: Cqe) {
        self.ring.write(self.producer, cqe);
        self.producer += 1;
    }

    /// The device turns to another ring.
    fn turn(&mut self, ring: &Ring) {
        ring.fill(self.producer + 1);
        let mut mark = Cqe::new_zeroed();
        mark.set_opcode(CqeOpcode::RESIZE);
        self.write(mark);
        self.ring = ring.clone();
    }

    fn resize(&mut self, ring: &Ring) -> Result<(), ResizeError> {
        self.queue.prepare_resize(ring.place(), ring.geometry)?;
        self.turn(ring);
        self.queue.finish_resize().map(|_| ())
    }

    fn poll(&mut self) -> Option<Result<u64, CqError>> {
        self.queue.poll(&mut Any).map(|result| result.map(|completion| completion.wr_id))
    }
}

/// Every send request is outstanding, and every receive request of an XRC SRQ; the `wr_id` is made of its
/// number and index.
struct Any;

impl WorkQueues for Any {
    fn send_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedSend> {
        Some(PostedSend { wr_id: wr_id(qpn, wqe_index), opcode: Opcode::SEND, room: 0 })
    }

    fn receive_completed(&mut self, _qpn: u32, _wqe_index: u16) -> Option<PostedReceive> {
        None
    }

    fn xrc_completed(&mut self, srqn: u32, wqe_index: u16) -> Option<PostedReceive> {
        Some(PostedReceive { wr_id: wr_id(srqn, wqe_index), room: 4096 })
    }
}

fn wr_id(number: u32, wqe_index: u16) -> u64 {
    u64::from(number) << 16 | u64::from(wqe_index)
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32),
    Poll(usize),
    Commit,
    Clean(u32),
    /// A resize is prepared.
    Prepare(u32),
    /// The device turns to the ring that was prepared.
    Turn,
    Finish,
    Cancel,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1u32..4).prop_map(Step::Write),
        4 => (0usize..6).prop_map(Step::Poll),
        2 => Just(Step::Commit),
        1 => (1u32..4).prop_map(Step::Clean),
        2 => (1u32..20).prop_map(Step::Prepare),
        2 => Just(Step::Turn),
        2 => Just(Step::Finish),
        1 => Just(Step::Cancel),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whenever the device turns to another ring, every completion comes once and in order.
    #[test]
    fn completions_survive_resizes(steps in steps(), completions in 1u32..12, wide: bool) {
        let mut bench = Bench::new(completions, wide);
        let mut oracle = VecDeque::new();
        let (mut prepared, mut turned) = (None::<Ring>, false);
        let mut index = 0u16;
        for step in steps {
            match step {
                Step::Write(qpn) => {
                    let room = bench.room(&bench.ring).min(prepared.as_ref().map_or(1, |ring| bench.room(ring)));
                    if room != 0 {
                        bench.write(sent(qpn, index));
                        oracle.push_back(wr_id(qpn, index));
                        index += 1;
                    }
                }
                Step::Poll(count) => {
                    for _ in 0..count {
                        let polled = bench.poll().map(|result| result.unwrap());
                        prop_assert_eq!(polled, oracle.pop_front());
                    }
                }
                Step::Commit => bench.queue.commit(),
                Step::Clean(qpn) => {
                    bench.queue.clean(qpn, |_| {});
                    oracle.retain(|id| *id >> 16 != u64::from(qpn));
                }
                Step::Prepare(completions) => {
                    let ring = Ring::new(completions, wide);
                    bench.queue.commit();
                    match bench.queue.prepare_resize(ring.place(), ring.geometry) {
                        Ok(()) => prepared = Some(ring),
                        Err(ResizeError::UnderWay) => prop_assert!(prepared.is_some()),
                        Err(ResizeError::TooSmall { unread, .. }) => {
                            prop_assert!(unread as usize >= oracle.len().min(1));
                            prop_assert!(unread > ring.geometry.completions());
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::Turn => {
                    if let Some(ring) = prepared.clone().filter(|_| !turned) {
                        bench.turn(&ring);
                        turned = true;
                    }
                }
                Step::Finish => {
                    let finished = bench.queue.finish_resize().map(|_| ());
                    match (&prepared, turned) {
                        (None, _) => prop_assert_eq!(finished, Err(ResizeError::None)),
                        (Some(_), false) => prop_assert_eq!(finished, Err(ResizeError::NoMark)),
                        (Some(ring), true) => {
                            prop_assert_eq!(finished, Ok(()));
                            prop_assert_eq!(*bench.queue.geometry(), ring.geometry);
                            (prepared, turned) = (None, false);
                        }
                    }
                }
                Step::Cancel if !turned => {
                    prop_assert_eq!(bench.queue.cancel_resize().is_some(), prepared.is_some());
                    prepared = None;
                }
                Step::Cancel => {}
            }
        }
        while let Some(result) = bench.poll() {
            prop_assert_eq!(Some(result.unwrap()), oracle.pop_front());
        }
        prop_assert!(oracle.is_empty());
    }

    /// Whatever stands in the rings, a resize ends and nothing panics.
    #[test]
    fn any_bytes_are_resized_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 256), new in 1u32..20) {
        let (mut bench, ring) = (Bench::new(7, false), Ring::new(new, false));
        let prepared = bench.queue.prepare_resize(ring.place(), ring.geometry);
        bench.ring.memory.set(RING, &bytes);
        let finished = bench.queue.finish_resize().map(|_| ());
        prop_assert_eq!(prepared, Ok(()));
        prop_assert!(matches!(finished, Ok(()) | Err(ResizeError::NoMark)));
        for _ in 0..100 {
            let _any_outcome = bench.poll();
        }
        bench.queue.clean(1, |_| {});
        bench.queue.clean_xrc(1);
        prop_assert_eq!(bench.queue.cancel_resize().is_some(), finished.is_err());
    }
}

#[test]
fn unread_completions_move_one_index_on() {
    let (mut bench, ring) = (Bench::new(3, false), Ring::new(7, false));
    for index in 0..3 {
        bench.write(sent(1, index));
    }
    bench.poll().unwrap().unwrap();
    bench.queue.commit();
    bench.resize(&ring).unwrap();
    assert_eq!(bench.record.word(RECORD), 2, "one was polled, and one index was the mark's");
    assert_eq!(ring.memory.get(RING + 2 * 32 + 0x18, 2), [0, 1]);
    assert_eq!(ring.memory.get(RING + 3 * 32 + 0x18, 2), [0, 2]);
    assert_eq!((bench.poll(), bench.poll(), bench.poll()), (Some(Ok(0x1_0001)), Some(Ok(0x1_0002)), None));
    assert_eq!(bench.resize(&ring), Ok(()), "again");
}

#[test]
fn mark_is_met_while_the_command_runs() {
    let (mut bench, ring) = (Bench::new(3, false), Ring::new(7, false));
    bench.queue.prepare_resize(ring.place(), ring.geometry).unwrap();
    bench.write(sent(1, 0));
    bench.turn(&ring);
    bench.write(sent(1, 1));
    assert_eq!((bench.poll(), bench.poll(), bench.poll()), (Some(Ok(0x1_0000)), Some(Ok(0x1_0001)), None));
    assert_eq!(bench.queue.geometry().entries(), 8);
    assert!(bench.queue.finish_resize().is_ok());
}

#[test]
fn ring_that_can_not_be_moved_to_is_refused() {
    let mut bench = Bench::new(7, false);
    for index in 0..4 {
        bench.write(sent(1, index));
    }
    let prepare = |bench: &mut Bench, ring: &Ring| bench.queue.prepare_resize(ring.place(), ring.geometry);
    let small = prepare(&mut bench, &Ring::new(3, false));
    assert_eq!(small, Err(ResizeError::TooSmall { unread: 4, room: 3 }));
    assert_eq!(prepare(&mut bench, &Ring::new(7, true)), Err(ResizeError::EntrySize(32, 64)));
    let outside = Ring { memory: TestMemory::new(64), ..Ring::new(7, false) };
    assert!(matches!(prepare(&mut bench, &outside), Err(ResizeError::Place(_))));
    assert!(bench.queue.cancel_resize().is_none());
}

#[test]
fn mark_without_a_resize_is_a_completion_that_can_not_be() {
    let mut bench = Bench::new(3, false);
    bench.turn(&Ring::new(3, false));
    assert_eq!(bench.poll(), Some(Err(CqError::Opcode { qpn: 0, opcode: 0x16 })));
}

#[test]
fn entry_of_64_bytes_has_its_completion_in_the_second_half() {
    let mut bench = Bench::new(3, true);
    assert_eq!(bench.queue.geometry().bytes(), 256);
    assert_eq!(bench.ring.memory.get(RING, 256), [CQE_FILL; 256]);
    assert_eq!(bench.poll(), None);
    bench.write(sent(0x40, 5));
    assert_eq!(bench.ring.memory.get(RING, 32), [0x3c; 32]);
    assert_eq!((bench.poll(), bench.poll()), (Some(Ok(0x40_0005)), None));
}

fn received(qpn: u32, srqn: u32, index: u16) -> Cqe {
    let mut cqe = sent(qpn, index);
    cqe.owner = CqeOwner::receive(ReceiveOpcode::SEND);
    cqe.source = CqeSource::new().with_remote_qpn(srqn);
    cqe
}

#[test]
fn completion_of_an_xrc_target_is_of_its_srq() {
    let mut bench = Bench::new(7, false);
    bench.write(received(XRC_TARGET | 0x40, 0x99, 3));
    bench.write(received(0x40, 0x99, 3));
    assert_eq!(bench.poll(), Some(Ok(wr_id(0x99, 3))));
    let missing = CqError::NotOutstanding { qpn: 0x40, wqe_index: 3, send: false };
    assert_eq!(bench.poll(), Some(Err(missing)), "without bit 23 the word is the source QP");
}

#[test]
fn completions_of_an_xrc_srq_are_taken_out() {
    let mut bench = Bench::new(7, false);
    bench.write(received(XRC_TARGET | 0x40, 0x99, 0));
    bench.write(received(XRC_TARGET | 0x40, 0x98, 1));
    bench.write(received(XRC_TARGET | 0x41, 0x99, 2));
    bench.write(sent(0x99, 3));
    bench.queue.clean_xrc(0x99);
    assert_eq!(
        (bench.poll(), bench.poll(), bench.poll()),
        (Some(Ok(wr_id(0x98, 1))), Some(Ok(wr_id(0x99, 3))), None)
    );
}
