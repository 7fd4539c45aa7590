//! Memory and doorbells for the tests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use mlx4_wire::U16;
use mlx4_wire::cqe::{Cqe, CqeOwner, CqeQp};
use mlx4_wire::wqe::Opcode;
use zerocopy::FromZeros;

use crate::geometry::QueueLimits;
use crate::{Doorbell, RingMemory};

/// Limits of a ConnectX-3.
pub(crate) const LIMITS: QueueLimits = QueueLimits {
    log2_max_wqes: 14,
    log2_max_srq_wqes: 14,
    log2_max_cqes: 22,
    max_send_wqe: 1008,
    max_receive_wqe: 512,
    max_send_sges: 32,
    max_receive_sges: 32,
};

/// The completion of a send request.
pub(crate) fn sent(qpn: u32, index: u16) -> Cqe {
    let mut cqe = Cqe::new_zeroed();
    cqe.qp = CqeQp::new().with_qpn(qpn);
    cqe.wqe_index = U16::new(index);
    cqe.owner = CqeOwner::send(Opcode::SEND);
    cqe
}

/// Memory that one thread plays both sides on. It records the order of published words.
#[derive(Clone, Debug)]
pub(crate) struct TestMemory {
    bytes: Rc<RefCell<Vec<u8>>>,
    published: Rc<RefCell<Vec<usize>>>,
}

impl TestMemory {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes: Rc::new(RefCell::new(vec![0; bytes])), published: Rc::default() }
    }

    pub(crate) fn get(&self, offset: usize, bytes: usize) -> Vec<u8> {
        self.bytes.borrow()[offset..offset + bytes].to_vec()
    }

    pub(crate) fn word(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.observe(offset))
    }

    pub(crate) fn set(&self, offset: usize, from: &[u8]) {
        self.bytes.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }

    /// Takes the offsets that were published since the last call.
    pub(crate) fn published(&self) -> Vec<usize> {
        self.published.take()
    }
}

impl RingMemory for TestMemory {
    fn bytes(&self) -> usize {
        self.bytes.borrow().len()
    }

    fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset.is_multiple_of(4) && from.len().is_multiple_of(4));
        self.set(offset, from);
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset.is_multiple_of(4) && to.len().is_multiple_of(4));
        to.copy_from_slice(&self.get(offset, to.len()));
    }

    fn publish(&self, offset: usize, word: [u8; 4]) {
        assert!(offset.is_multiple_of(4));
        self.set(offset, &word);
        self.published.borrow_mut().push(offset);
    }

    fn observe(&self, offset: usize) -> [u8; 4] {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        word
    }
}

/// Remembers the last value that was rung.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestDoorbell(Rc<Cell<Option<u64>>>);

impl TestDoorbell {
    pub(crate) fn take(&self) -> Option<u64> {
        self.0.take()
    }
}

impl Doorbell for TestDoorbell {
    fn ring(&self, value: u64) {
        self.0.set(Some(value));
    }
}
