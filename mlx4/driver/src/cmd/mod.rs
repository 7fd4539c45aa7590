//! The command interface.
//!
//! Until the event queues are there, commands are polled, one at a time. Then each one is reported by an
//! event, and several are in flight: the register is only held until the device has accepted a command.
//!
//! A command that doesn't end in time leaves its mailboxes to the device for good ([`slots`]), and if the
//! device hasn't even accepted it, no other command is tried. What the command named stays mapped: whoever
//! owns that memory must not release it before the next reset.

mod hcr;
mod slots;
mod timeout;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_pci::{DmaBuffer, PciDevice};
use mlx4_wire::cmd::{MAILBOX_BYTES, Opcode, Status};
use mlx4_wire::eqe::CommandEvent;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) use hcr::ALL_ONES;
pub use timeout::Timeouts;

use crate::error::{CommandError, CommandFailure, Error, FieldError, Fields, Result};
use hcr::CommandRegister;
use slots::{LOG2_MAX_SLOTS, MAX_SLOTS, Slots, Taken};

/// Token of commands that are polled.
const POLL_TOKEN: u16 = 0xffff;

/// What a command carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command<'a> {
    pub(crate) opcode: Opcode,
    pub(crate) opmod: u8,
    pub(crate) modifier: u32,
    pub(crate) input: Input<'a>,
}

/// Input of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    None,
    Immediate(u64),
    /// At most a mailbox's 4096 bytes; the rest is zero.
    Mailbox(&'a [u8]),
}

impl Command<'_> {
    pub(crate) fn new(opcode: Opcode, modifier: u32) -> Self {
        Self { opcode, opmod: 0, modifier, input: Input::None }
    }
}

/// A command in the form that the register takes.
#[derive(Clone, Copy, Debug)]
struct Posting {
    opcode: Opcode,
    opmod: u8,
    modifier: u32,
    input: u64,
    output: u64,
    token: u16,
    event: bool,
}

/// The command interface of a device.
pub(crate) struct Commands {
    register: Mutex<CommandRegister>,
    slots: Slots,
    /// For each place an input and an output mailbox.
    mailboxes: DmaBuffer,
    /// Bytes of each input mailbox that may not be zero.
    filled: [AtomicUsize; MAX_SLOTS],
    events: AtomicBool,
    timeouts: Timeouts,
}

impl Commands {
    /// The interface of a device that was just reset.
    ///
    /// # Errors
    /// No memory for mailboxes.
    pub(crate) fn new(device: &Arc<dyn PciDevice>, timeouts: Timeouts) -> Result<Self> {
        let mailboxes = device.dma().allocate(2 * MAX_SLOTS * MAILBOX_BYTES, MAILBOX_BYTES as u64)?;
        Ok(Self {
            register: Mutex::new(CommandRegister::new(Arc::clone(device))),
            slots: Slots::new(),
            mailboxes,
            filled: [const { AtomicUsize::new(0) }; MAX_SLOTS],
            events: AtomicBool::new(false),
            timeouts,
        })
    }

    /// The device takes `1 << log2` commands at once.
    pub(crate) fn set_outstanding(&self, log2: u8) {
        self.slots.set_count(1 << log2.min(LOG2_MAX_SLOTS));
    }

    /// Commands posted from now on are reported by events, or polled.
    pub(crate) fn use_events(&self, events: bool) {
        self.events.store(events, Ordering::Release);
    }

    /// Takes the event of a command that is done.
    ///
    /// # Errors
    /// No command waits for it.
    pub(crate) fn completed(&self, event: &CommandEvent) -> Result<(), FieldError> {
        let token = event.token.get();
        let found = self.slots.complete(token, Status(event.status), event.out_param.get());
        Fields("EQE of a command").holds("token", token, found, "that of a command under way").map(|_| ())
    }

    /// Fails all commands, now and later: the device doesn't answer any more.
    pub(crate) fn kill(&self) {
        self.slots.kill();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.slots.is_dead()
    }

    /// Ends the interface: the device was told to forget everything, or was reset.
    pub(crate) fn close(self) -> Result<()> {
        if self.slots.any_retired() {
            // Dropped, not released: a reset will free it.
            return Ok(());
        }
        Ok(self.mailboxes.release()?)
    }

    /// Runs a command without mailbox output; returns the immediate result.
    pub(crate) fn run(&self, command: &Command<'_>) -> Result<u64, CommandError> {
        self.execute(command, &mut [])
    }

    /// Runs a command with neither input nor output besides the modifier.
    pub(crate) fn simple(&self, opcode: Opcode, modifier: u32) -> Result<(), CommandError> {
        self.run(&Command::new(opcode, modifier)).map(|_| ())
    }

    /// Runs a command that takes a structure.
    pub(crate) fn give<T: IntoBytes + Immutable>(
        &self,
        opcode: Opcode,
        modifier: u32,
        structure: &T,
    ) -> Result<(), CommandError> {
        let input = Input::Mailbox(structure.as_bytes());
        self.run(&Command { input, ..Command::new(opcode, modifier) }).map(|_| ())
    }

    /// Runs a command that returns a structure.
    pub(crate) fn query<T: FromBytes + IntoBytes>(
        &self,
        opcode: Opcode,
        modifier: u32,
    ) -> Result<T, CommandError> {
        let mut structure = T::new_zeroed();
        self.execute(&Command::new(opcode, modifier), structure.as_mut_bytes())?;
        Ok(structure)
    }

    /// Runs a command. Output goes to `output` if that isn't empty; returns the immediate result.
    ///
    /// # Errors
    /// The device refused it, or didn't answer.
    pub(crate) fn execute(&self, command: &Command<'_>, output: &mut [u8]) -> Result<u64, CommandError> {
        let opcode = command.opcode;
        let result = self.attempt(command, output).map_err(|failure| CommandError { opcode, failure });
        match &result {
            Ok(result) => log::trace!("{opcode} {:#x} -> {result:#x}", command.modifier),
            Err(error) => log::debug!("{:#x}: {error}", command.modifier),
        }
        result
    }

    fn attempt(&self, command: &Command<'_>, output: &mut [u8]) -> Result<u64, CommandFailure> {
        let slot = self.slots.take(self.timeouts.post)?;
        let (inbox, outbox) = (2 * slot.index * MAILBOX_BYTES, (2 * slot.index + 1) * MAILBOX_BYTES);
        let input = self.fill((inbox, &self.filled[slot.index]), command.input)?;
        let has_output = !output.is_empty();
        if has_output {
            self.mailboxes.fill(outbox, MAILBOX_BYTES, 0).map_err(CommandFailure::Mailbox)?;
        }
        let mut posting = Posting {
            opcode: command.opcode,
            opmod: command.opmod,
            modifier: command.modifier,
            input,
            output: if has_output { self.mailboxes.iova() + outbox as u64 } else { 0 },
            token: slot.token,
            event: self.events.load(Ordering::Acquire),
        };
        let done = if posting.event {
            self.run_with_event(&posting, &slot)
        } else {
            posting.token = POLL_TOKEN;
            self.run_polled(&posting)
        };
        match done {
            Ok((Status::OK, result)) => {
                self.mailboxes.read(outbox, output).map_err(CommandFailure::Mailbox)?;
                Ok(result)
            }
            Ok((status, _)) => Err(CommandFailure::Status(status)),
            Err(failure) => {
                self.give_up(slot, &failure);
                Err(failure)
            }
        }
    }

    /// Puts the input into its mailbox; returns what the register is told.
    fn fill(&self, (inbox, filled): (usize, &AtomicUsize), input: Input<'_>) -> Result<u64, CommandFailure> {
        match input {
            Input::None => Ok(0),
            Input::Immediate(value) => Ok(value),
            Input::Mailbox(bytes) => {
                let mailbox = self.mailboxes.slice(inbox, MAILBOX_BYTES).map_err(CommandFailure::Mailbox)?;
                mailbox.write(0, bytes).map_err(CommandFailure::Mailbox)?;
                // The place is this command's alone.
                let rest = filled.swap(bytes.len(), Ordering::Relaxed).saturating_sub(bytes.len());
                mailbox.fill(bytes.len(), rest, 0).map_err(CommandFailure::Mailbox)?;
                Ok(mailbox.iova())
            }
        }
    }

    fn run_polled(&self, posting: &Posting) -> Result<(Status, u64), CommandFailure> {
        let register = self.post(posting)?;
        register.complete(self.timeouts.of(posting.opcode))
    }

    fn run_with_event(&self, posting: &Posting, slot: &Taken<'_>) -> Result<(Status, u64), CommandFailure> {
        drop(self.post(posting)?);
        slot.wait(self.timeouts.of(posting.opcode))
    }

    /// Posts a command. Those that wait for the register find out at once if the device is stuck, and don't each
    /// wait for themselves.
    fn post(&self, posting: &Posting) -> Result<MutexGuard<'_, CommandRegister>, CommandFailure> {
        let mut register = self.register();
        if self.slots.is_dead() {
            return Err(CommandFailure::Dead);
        }
        match register.post(posting, self.timeouts.post) {
            Ok(()) => Ok(register),
            Err(failure) => {
                if register.is_stuck() {
                    self.kill();
                }
                Err(failure)
            }
        }
    }

    /// After a command that the device didn't answer: its place is lost, and if the device has not even
    /// accepted it, all others too.
    fn give_up(&self, slot: Taken<'_>, failure: &CommandFailure) {
        match failure {
            CommandFailure::Timeout(_) | CommandFailure::Dead => slot.retire(),
            CommandFailure::Busy(_) | CommandFailure::Gone => {}
            _ => return,
        }
        if self.register().is_stuck() {
            self.kill();
        }
    }

    fn register(&self) -> MutexGuard<'_, CommandRegister> {
        // The register is written in one go, and its toggle changes last.
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// Goes through ends of use that each may fail: all are tried, the first failure is told.
#[derive(Debug, Default)]
pub(crate) struct Ends(Option<Error>);

impl Ends {
    pub(crate) fn note<T>(&mut self, result: Result<T, impl Into<Error>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.into();
                log::warn!("while closing: {error}");
                self.0.get_or_insert(error);
                None
            }
        }
    }

    pub(crate) fn result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
