//! Faults that a test injects: what the HCA tells its driver, or is told by it, is changed on the way.

use mlx4_wire::cmd::Opcode;

/// Bytes from the start of a mailbox that a fault sees.
pub const FAULT_MAILBOX_BYTES: usize = 512;

/// Changes what the HCA tells and is told. Each piece as it lies in the driver's memory, big endian.
pub trait Fault: std::fmt::Debug + Send + Sync {
    /// A command before it runs: its input modifier, and the start of its input mailbox, empty if it has none.
    /// So a test sees the context that a driver hands over, and puts another in its place.
    fn request(&self, _opcode: Opcode, _modifier: u32, _mailbox: &mut [u8]) {}

    /// A command that worked: the start of its output mailbox, empty if it has none, and its immediate
    /// result.
    fn answer(&self, _opcode: Opcode, _mailbox: &mut [u8], _result: &mut u64) {}

    /// An entry of an event queue.
    fn event(&self, _eqe: &mut [u8]) {}

    /// An entry of a completion queue.
    fn completion(&self, _cqe: &mut [u8]) {}
}
