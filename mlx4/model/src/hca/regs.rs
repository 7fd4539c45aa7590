//! BAR0: the host command register, ownership, reset, interrupt clear, error buffer and clock.
//!
//! Registers answer aligned 32-bit accesses (a 64-bit access is two of them, the lower address first). Any
//! other access reads as all ones and is dropped when it writes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mlx4_wire::cmd::Status;
use mlx4_wire::regs::{HCR_BYTES, HCR_OFFSET, Hcr, OWNER_OFFSET, RESET_BIT, RESET_OFFSET, SEMAPHORE_OFFSET};
use zerocopy::{FromZeros, IntoBytes};

/// Where this firmware has its interrupt-clear register: two words.
pub(crate) const CLR_INT_OFFSET: u64 = 0xf_00d8;
/// Where this firmware has its catastrophic-error buffer.
pub(crate) const ERROR_BUFFER_OFFSET: u64 = 0x3_0000;
/// Size of the catastrophic-error buffer in 32-bit words.
pub(crate) const ERROR_BUFFER_WORDS: usize = 16;
/// Where the channel of virtual functions would be; nothing answers there.
pub(crate) const COMM_OFFSET: u64 = 0x3_0800;
/// Where the free-running clock is: 64 bits, high word first.
pub(crate) const CLOCK_OFFSET: u64 = 0xf_1000;
/// Frequency of the clock in MHz.
pub(crate) const CLOCK_MHZ: u16 = 427;

const CONTROL_OFFSET: u64 = HCR_OFFSET + HCR_BYTES - 4;

/// What a store to BAR0 asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing beyond the register itself.
    None,
    /// A command was posted.
    Command(Hcr),
    /// The software reset.
    Reset,
}

/// The registers of BAR0.
pub(crate) struct Registers {
    state: Mutex<State>,
    start: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    hcr: [[u8; 4]; size_of::<Hcr>() / 4],
    owned: bool,
    semaphore: bool,
    error: [u32; ERROR_BUFFER_WORDS],
}

impl Registers {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), start: Instant::now() }
    }

    /// Back to the state after power-on: HCR idle, owner and semaphore free, no error.
    pub(crate) fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Reads a word.
    pub(crate) fn read(&self, offset: u64) -> [u8; 4] {
        let mut state = self.lock();
        match offset {
            OWNER_OFFSET => u32::from(std::mem::replace(&mut state.owned, true)).to_be_bytes(),
            SEMAPHORE_OFFSET => u32::from(std::mem::replace(&mut state.semaphore, true)).to_be_bytes(),
            _ => {
                if let Some(i) = word_of(offset, HCR_OFFSET, state.hcr.len()) {
                    state.hcr[i]
                } else if let Some(i) = word_of(offset, ERROR_BUFFER_OFFSET, ERROR_BUFFER_WORDS) {
                    state.error[i].to_be_bytes()
                } else if let Some(i) = word_of(offset, CLOCK_OFFSET, 2) {
                    self.clock_word(i)
                } else {
                    [0; 4]
                }
            }
        }
    }

    fn clock_word(&self, word: usize) -> [u8; 4] {
        let ticks = self.start.elapsed().as_nanos() * u128::from(CLOCK_MHZ) / 1000;
        let bytes = u64::try_from(ticks & u128::from(u64::MAX)).unwrap_or(0).to_be_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        if word == 0 { [a, b, c, d] } else { [e, f, g, h] }
    }

    /// Writes a word.
    pub(crate) fn write(&self, offset: u64, word: [u8; 4]) -> Effect {
        let mut state = self.lock();
        match offset {
            OWNER_OFFSET => state.owned = u32::from_be_bytes(word) != 0,
            SEMAPHORE_OFFSET => state.semaphore = u32::from_be_bytes(word) != 0,
            RESET_OFFSET if u32::from_be_bytes(word) & RESET_BIT != 0 => return Effect::Reset,
            _ => {
                if let Some(i) = word_of(offset, HCR_OFFSET, state.hcr.len()) {
                    return post(&mut state, i, word);
                }
            }
        }
        Effect::None
    }

    /// Whether a command is pending: one was posted, and neither completed nor wiped out by a reset since.
    pub(crate) fn is_pending(&self) -> bool {
        read_hcr(&self.lock()).control.go()
    }

    /// Clears GO and sets the status and the immediate result; the toggle stays as it was posted.
    pub(crate) fn complete(&self, status: Status, out_param: u64) {
        let mut state = self.lock();
        let mut hcr = read_hcr(&state);
        hcr.out_param.set(out_param);
        hcr.control.set_go(false);
        hcr.control.set_status(status);
        store_hcr(&mut state, &hcr);
    }

    /// Reports a catastrophic error: the first word of the buffer becomes non-zero. Commands are dead until
    /// the next reset.
    pub(crate) fn catastrophe(&self, code: u32) {
        self.lock().error[0] = code.max(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores a word of the HCR; the last one posts the command, unless a command or an error is pending.
fn post(state: &mut State, word: usize, value: [u8; 4]) -> Effect {
    let busy = read_hcr(state).control.go();
    if busy {
        log::debug!("store to HCR word {word} while a command is pending");
        return Effect::None;
    }
    state.hcr[word] = value;
    let hcr = read_hcr(state);
    if HCR_OFFSET + 4 * word as u64 == CONTROL_OFFSET && hcr.control.go() && state.error[0] == 0 {
        return Effect::Command(hcr);
    }
    Effect::None
}

fn read_hcr(state: &State) -> Hcr {
    let mut hcr = Hcr::new_zeroed();
    hcr.as_mut_bytes().copy_from_slice(state.hcr.as_flattened());
    hcr
}

fn store_hcr(state: &mut State, hcr: &Hcr) {
    state.hcr.as_flattened_mut().copy_from_slice(hcr.as_bytes());
}

fn word_of(offset: u64, base: u64, words: usize) -> Option<usize> {
    let index = usize::try_from(offset.checked_sub(base)? / 4).ok()?;
    (index < words).then_some(index)
}

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registers({:?})", *self.lock())
    }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::cmd::Opcode;
    use mlx4_wire::regs::HcrControl;

    use super::*;

    fn posted(regs: &Registers, control: HcrControl) -> Effect {
        regs.write(HCR_OFFSET + 8, 5u32.to_be_bytes());
        let mut word = [0; 4];
        word.copy_from_slice(control.as_bytes());
        regs.write(CONTROL_OFFSET, word)
    }

    #[test]
    fn last_word_posts_and_completion_keeps_the_toggle() {
        let regs = Registers::new();
        let control = HcrControl::new().with_opcode(Opcode::NOP).with_go(true).with_toggle(true);
        let Effect::Command(hcr) = posted(&regs, control) else { panic!("not posted") };
        assert_eq!((hcr.in_modifier.get(), hcr.control.opcode()), (5, Opcode::NOP));
        assert!(regs.is_pending());
        regs.complete(Status::BAD_PARAM, 0x1_0000_0002);
        assert_eq!(regs.read(HCR_OFFSET + 0x10), [0, 0, 0, 2]);
        let word = u32::from_be_bytes(regs.read(CONTROL_OFFSET));
        assert_eq!(word >> 24, 3);
        assert_eq!(word >> 21 & 7, 1, "go and event clear, toggle kept");
    }

    #[test]
    fn pending_command_cannot_be_overwritten() {
        let regs = Registers::new();
        let control = HcrControl::new().with_opcode(Opcode::NOP).with_go(true);
        assert!(matches!(posted(&regs, control), Effect::Command(_)));
        assert_eq!(posted(&regs, control), Effect::None);
        regs.reset();
        assert!(!regs.is_pending());
    }

    #[test]
    fn first_read_of_owner_and_semaphore_takes_them() {
        let regs = Registers::new();
        for offset in [OWNER_OFFSET, SEMAPHORE_OFFSET] {
            assert_eq!(regs.read(offset), [0; 4]);
            assert_eq!(regs.read(offset), [0, 0, 0, 1]);
            regs.write(offset, [0; 4]);
            assert_eq!(regs.read(offset), [0; 4]);
        }
    }

    #[test]
    fn commands_are_dead_after_a_catastrophe_until_reset() {
        let regs = Registers::new();
        regs.catastrophe(7);
        let control = HcrControl::new().with_opcode(Opcode::NOP).with_go(true);
        assert_eq!(posted(&regs, control), Effect::None);
        assert_eq!(regs.read(ERROR_BUFFER_OFFSET), [0, 0, 0, 7]);
        regs.reset();
        assert!(matches!(posted(&regs, control), Effect::Command(_)));
    }

    #[test]
    fn reset_takes_bit_0_of_either_drivers_word() {
        let regs = Registers::new();
        assert_eq!(regs.write(RESET_OFFSET, [0, 0, 0, 1]), Effect::Reset);
        assert_eq!(regs.write(RESET_OFFSET, [1, 0, 0, 1]), Effect::Reset);
        assert_eq!(regs.write(RESET_OFFSET, [1, 0, 0, 0]), Effect::None);
    }
}
