//! The completion queue against a device that writes CQEs as the hardware does.

use std::collections::VecDeque;

use mlx4_wire::cqe::{Cqe, CqeOwner, CqeQp, CqeSource, ErrorCqe, ReceiveOpcode, Syndrome, VendorError};
use mlx4_wire::wqe::Opcode;
use mlx4_wire::{U16, U32};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::geometry::CqGeometry;
use crate::testing::{LIMITS, TestDoorbell, TestMemory, sent};
use crate::{
    Completed, CompletionQueue, CqError, Notify, Payload, Place, PostedReceive, PostedSend, WorkQueues,
};

const RECORD: usize = 0;
const RING: usize = 32;

struct Bench {
    queue: CompletionQueue<TestMemory, TestDoorbell>,
    memory: TestMemory,
    doorbell: TestDoorbell,
    producer: u32,
}

impl Bench {
    fn new(completions: u32) -> Self {
        let geometry = CqGeometry::new(completions, &LIMITS).unwrap();
        let memory = TestMemory::new(RING + geometry.bytes() as usize);
        let place = |offset| Place { memory: memory.clone(), offset };
        let doorbell = TestDoorbell::default();
        let mut queue =
            CompletionQueue::new(place(RING), place(RECORD), geometry, 0x81, doorbell.clone()).unwrap();
        queue.reset();
        Self { queue, memory, doorbell, producer: 0 }
    }

    fn full(&self) -> bool {
        self.producer.wrapping_sub(self.memory.word(RECORD)) & 0xff_ffff >= self.queue.geometry().entries()
    }

    fn write(&mut self, mut cqe: Cqe) {
        let entries = self.queue.geometry().entries();
        cqe.set_owner(self.producer & entries != 0);
        self.memory.set(RING + (self.producer & (entries - 1)) as usize * 32, cqe.as_bytes());
        self.producer += 1;
    }
}

/// Every request is outstanding; its `wr_id` is made of QP number and index.
struct Any;

impl WorkQueues for Any {
    fn send_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedSend> {
        Some(PostedSend { wr_id: wr_id(qpn, wqe_index), opcode: Opcode::SEND, room: 0 })
    }

    fn receive_completed(&mut self, qpn: u32, wqe_index: u16) -> Option<PostedReceive> {
        Some(PostedReceive { wr_id: wr_id(qpn, wqe_index), room: 4096 })
    }
}

fn wr_id(qpn: u32, wqe_index: u16) -> u64 {
    u64::from(qpn) << 16 | u64::from(wqe_index)
}

/// A read of so many bytes is outstanding.
struct Read(u32);

impl WorkQueues for Read {
    fn send_completed(&mut self, _qpn: u32, _wqe_index: u16) -> Option<PostedSend> {
        Some(PostedSend { wr_id: 0, opcode: Opcode::RDMA_READ, room: self.0 })
    }

    fn receive_completed(&mut self, _qpn: u32, _wqe_index: u16) -> Option<PostedReceive> {
        None
    }
}

struct None_;

impl WorkQueues for None_ {
    fn send_completed(&mut self, _qpn: u32, _wqe_index: u16) -> Option<PostedSend> {
        None
    }

    fn receive_completed(&mut self, _qpn: u32, _wqe_index: u16) -> Option<PostedReceive> {
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32),
    Poll(usize),
    Commit,
    Clean(u32),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn completions_come_in_order_and_once(
        steps in prop::collection::vec(
            prop_oneof![
                6 => (1u32..4).prop_map(Step::Write),
                3 => (0usize..6).prop_map(Step::Poll),
                2 => Just(Step::Commit),
                1 => (1u32..4).prop_map(Step::Clean),
            ],
            1..300,
        ),
        completions in 1u32..12,
    ) {
        let mut bench = Bench::new(completions);
        let mut oracle = VecDeque::new();
        let mut index = 0u16;
        for step in steps {
            match step {
                Step::Write(qpn) if !bench.full() => {
                    bench.write(sent(qpn, index));
                    oracle.push_back(u64::from(qpn) << 16 | u64::from(index));
                    index += 1;
                }
                Step::Write(_) => {}
                Step::Poll(count) => {
                    for _ in 0..count {
                        let polled = bench.queue.poll(&mut Any).map(|result| result.unwrap().wr_id);
                        prop_assert_eq!(polled, oracle.pop_front());
                    }
                }
                Step::Commit => bench.queue.commit(),
                Step::Clean(qpn) => {
                    let mut dropped = Vec::new();
                    bench.queue.clean(qpn, |cqe| dropped.push(u64::from(cqe.wqe_index.get())));
                    dropped.reverse();
                    let gone: Vec<u64> =
                        oracle.iter().filter(|id| *id >> 16 == u64::from(qpn)).map(|id| id & 0xffff).collect();
                    oracle.retain(|id| *id >> 16 != u64::from(qpn));
                    prop_assert_eq!(dropped, gone);
                }
            }
        }
        while let Some(result) = bench.queue.poll(&mut Any) {
            prop_assert_eq!(Some(result.unwrap().wr_id), oracle.pop_front());
        }
        prop_assert!(oracle.is_empty());
    }

    /// Whatever the device writes, a poll ends and nothing panics.
    #[test]
    fn any_bytes_are_polled_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 256)) {
        let mut bench = Bench::new(7);
        bench.memory.set(RING, &bytes);
        for _ in 0..bench.queue.geometry().entries() {
            let _any_outcome = bench.queue.poll(&mut Any);
        }
        bench.queue.clean(0x40, |_| {});
        prop_assert!(bench.queue.poll(&mut None_).is_none_or(|result| result.is_err()));
    }
}

#[test]
fn new_queue_is_empty() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.memory.get(RING, 4), [0xcc; 4]);
    assert_eq!(bench.queue.poll(&mut Any), None);
}

#[test]
fn received_datagram_is_told_in_full() {
    let mut bench = Bench::new(3);
    let mut entry = sent(0x40, 5);
    entry.owner = CqeOwner::receive(ReceiveOpcode::SEND_IMM);
    entry.immediate = U32::from_bytes([1, 2, 3, 4]);
    entry.byte_count = U32::new(296);
    entry.source = CqeSource::new().with_grh(true).with_path_bits(3).with_remote_qpn(1);
    entry.slid = U16::new(7);
    entry.sl.set_sl(2);
    bench.write(entry);
    let completion = bench.queue.poll(&mut Any).unwrap().unwrap();
    let Completed::Received(received) = completion.outcome else { panic!("{completion:?}") };
    assert_eq!(received.payload, Payload::Immediate([1, 2, 3, 4]));
    assert_eq!((received.bytes, received.source_qpn, received.slid, received.sl), (296, 1, 7, 2));
    assert_eq!((received.path_bits, received.grh, received.write, received.pkey_index), (3, true, false, 4));
    assert_eq!((completion.wr_id, completion.qpn), (0x40_0005, 0x40));
}

#[test]
fn receive_opcodes_have_their_payloads() {
    let mut bench = Bench::new(7);
    for opcode in 0..5 {
        let mut entry = sent(1, 0);
        entry.owner = CqeOwner::receive(ReceiveOpcode(opcode));
        entry.immediate = U32::new(9);
        bench.write(entry);
    }
    let mut payloads = Vec::new();
    while let Some(Ok(completion)) = bench.queue.poll(&mut Any) {
        let Completed::Received(received) = completion.outcome else { panic!("{completion:?}") };
        payloads.push((received.write, received.payload));
    }
    let immediate = Payload::Immediate([0, 0, 0, 9]);
    assert_eq!(
        payloads,
        [(true, immediate), (false, Payload::Plain), (false, immediate), (false, Payload::Invalidated(9))]
    );
}

#[test]
fn failure_has_syndrome_and_vendor_code() {
    let mut bench = Bench::new(3);
    let qp = CqeQp::new().with_qpn(0x40);
    bench.write(ErrorCqe::new(qp, 2, true, Syndrome::RNR_RETRY_EXC_ERR, VendorError(0x87)).into());
    let completion = bench.queue.poll(&mut Any).unwrap().unwrap();
    let failed = Completed::Failed { send: true, syndrome: Syndrome::RNR_RETRY_EXC_ERR, vendor: 0x87 };
    assert_eq!(completion.outcome, failed);
}

#[test]
fn completion_that_can_not_be_is_passed_over() {
    let mut bench = Bench::new(3);
    bench.write(sent(0x40, 1));
    let mut unknown = sent(0x41, 1);
    unknown.owner = CqeOwner::send(Opcode(0x07));
    bench.write(unknown);
    let error = bench.queue.poll(&mut None_).unwrap().unwrap_err();
    assert_eq!(error, CqError::NotOutstanding { qpn: 0x40, wqe_index: 1, send: true });
    let error = bench.queue.poll(&mut Any).unwrap().unwrap_err();
    assert_eq!(error, CqError::Opcode { qpn: 0x41, opcode: 0x47 });
    assert_eq!(bench.queue.poll(&mut Any), None);
}

#[test]
fn completion_of_more_bytes_than_were_posted_is_refused() {
    let mut bench = Bench::new(7);
    let mut receive = |opcode, bytes| {
        let mut entry = sent(0x40, 0);
        entry.owner = CqeOwner::receive(opcode);
        entry.byte_count = U32::new(bytes);
        bench.write(entry);
        bench.queue.poll(&mut Any).unwrap()
    };
    let refused = |byte_count, room| CqError::ByteCount { qpn: 0x40, byte_count, room };
    assert!(receive(ReceiveOpcode::SEND, 4096).is_ok());
    assert_eq!(receive(ReceiveOpcode::SEND, 4097), Err(refused(4097, 4096)));
    assert!(receive(ReceiveOpcode::RDMA_WRITE_IMM, 1 << 31).is_ok(), "its bytes are elsewhere");
    let most = (1 << 31) + 1;
    assert_eq!(receive(ReceiveOpcode::RDMA_WRITE_IMM, most), Err(refused(most, 1 << 31)));
    let mut read = |opcode, bytes| {
        let mut entry = sent(0x40, 0);
        entry.owner = CqeOwner::send(opcode);
        entry.byte_count = U32::new(bytes);
        bench.write(entry);
        bench.queue.poll(&mut Read(64)).unwrap()
    };
    assert_eq!(read(Opcode::RDMA_READ, 65), Err(refused(65, 64)));
    let brought = read(Opcode::RDMA_READ, 64).unwrap().outcome;
    assert_eq!(brought, Completed::Sent { opcode: Opcode::RDMA_READ, bytes: 64 });
    let other = CqError::Operation { qpn: 0x40, opcode: Opcode::SEND, posted: Opcode::RDMA_READ };
    assert_eq!(read(Opcode::SEND, 0), Err(other));
}

#[test]
fn arm_writes_the_record_then_rings_with_the_same_words() {
    let mut bench = Bench::new(3);
    bench.write(sent(1, 0));
    bench.queue.poll(&mut Any);
    bench.queue.commit();
    bench.queue.arm(Notify::Solicited);
    assert_eq!(bench.memory.get(RECORD, 8), [0, 0, 0, 1, 0x11, 0, 0, 1]);
    assert_eq!(bench.doorbell.take(), Some(0x1100_0081_0000_0001));
    bench.queue.arm(Notify::Next);
    assert_eq!(bench.doorbell.take(), Some(0x1200_0081_0000_0001));
    for _ in 0..3 {
        bench.queue.sequence().event_taken();
    }
    bench.queue.arm(Notify::Next);
    assert_eq!(bench.doorbell.take(), Some(0x0200_0081_0000_0001), "the sequence wraps at 4");
}
