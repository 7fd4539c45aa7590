//! Faults that a test injects: what the HCA tells its driver is changed on the way.

use mlx4_wire::cmd::Opcode;

/// Bytes from the start of an output mailbox that a fault sees.
pub const FAULT_MAILBOX_BYTES: usize = 512;

/// Changes what the HCA tells. Each piece as it will lie in the driver's memory, big endian.
pub trait Fault: std::fmt::Debug + Send + Sync {
    /// A command that worked: the start of its output mailbox, empty if it has none, and its immediate
    /// result.
    fn answer(&self, _opcode: Opcode, _mailbox: &mut [u8], _result: &mut u64) {}

    /// An entry of an event queue.
    fn event(&self, _eqe: &mut [u8]) {}

    /// An entry of a completion queue.
    fn completion(&self, _cqe: &mut [u8]) {}
}
