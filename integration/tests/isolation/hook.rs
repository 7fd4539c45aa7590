//! Between daemon and HCA: every command's mailbox is seen, and can be changed before the HCA reads it; and a command
//! that was carried out can look as if it had failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx4_model::hca::Fault;
use mlx4_wire::cmd::{Opcode, Status};
use mlx4_wire::ctx::cq::CqContext;
use mlx4_wire::ctx::mpt::MptEntry;
use mlx4_wire::ctx::qp::QpMailbox;
use mlx4_wire::ctx::srq::SrqContext;
use mlx4_wire::eqe::EventType;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The commands that take a queue pair from RESET to RTS, in order.
pub(crate) const TO_RTS: [Opcode; 3] = [Opcode::RST2INIT_QP, Opcode::INIT2RTR_QP, Opcode::RTR2RTS_QP];
/// Number of an object, without the flags that some commands carry beside it.
const NUMBER: u32 = 0xff_ffff;

/// A command that has been seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) opcode: Opcode,
    pub(crate) number: u32,
    mailbox: Vec<u8>,
}

impl Seen {
    /// What the daemon handed over.
    pub(crate) fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        T::read_from_prefix(&self.mailbox).ok().map(|(context, _)| context)
    }
}

type Change = Box<dyn Fn(Opcode, u32, &mut [u8]) + Send>;

/// Where an entry of an event queue has its type, and the status of the command that it ends.
const EVENT_TYPE: usize = 0x01;
const EVENT_STATUS: usize = 0x0f;

/// A failure that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The next command of this kind.
    Of(Opcode, Status),
    /// The command that ends next.
    Now(Status),
}

#[derive(Default)]
struct State {
    changes: Vec<Change>,
    seen: Vec<Seen>,
    commands: Vec<Opcode>,
    failure: Option<Failure>,
}

/// The hook. Tests only: the daemon has nothing like it.
#[derive(Default)]
pub(crate) struct Hook(Mutex<State>);

impl Hook {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the structure in the mailbox of these commands, where `wanted` likes the object's number.
    fn change<T>(
        &self,
        opcodes: &'static [Opcode],
        wanted: impl Fn(u32) -> bool + Send + 'static,
        change: impl Fn(&mut T) + Send + 'static,
    ) where
        T: FromBytes + IntoBytes + KnownLayout + Immutable,
    {
        self.state().changes.push(Box::new(move |opcode, number, mailbox| {
            if opcodes.contains(&opcode)
                && wanted(number)
                && let Ok((structure, _)) = T::mut_from_prefix(mailbox)
            {
                change(structure);
            }
        }));
    }

    /// Changes what is told of a queue pair on its way to RTS.
    pub(crate) fn queue_pair(&self, qpn: u32, change: impl Fn(&mut QpMailbox) + Send + 'static) {
        self.change(&TO_RTS, move |number| number == qpn, change);
    }

    /// Changes what is told of every new CQ.
    pub(crate) fn cqs(&self, change: impl Fn(&mut CqContext) + Send + 'static) {
        self.change(&[Opcode::SW2HW_CQ], |_| true, change);
    }

    /// Changes what is told of every new SRQ.
    pub(crate) fn srqs(&self, change: impl Fn(&mut SrqContext) + Send + 'static) {
        self.change(&[Opcode::SW2HW_SRQ], |_| true, change);
    }

    /// Changes every new entry of the memory protection table.
    pub(crate) fn regions(&self, change: impl Fn(&mut MptEntry) + Send + 'static) {
        self.change(&[Opcode::SW2HW_MPT], |_| true, change);
    }

    /// From now on the daemon is heard as it speaks.
    pub(crate) fn clear(&self) {
        self.state().changes.clear();
    }

    /// The next command of this kind is carried out, and the daemon told that it failed.
    pub(crate) fn fail(&self, opcode: Opcode, status: Status) {
        self.state().failure = Some(Failure::Of(opcode, status));
    }

    /// Whether what was to fail has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.state().failure.is_none()
    }

    /// All commands so far, in order.
    pub(crate) fn commands(&self) -> Vec<Opcode> {
        self.state().commands.clone()
    }

    /// All commands so far that have a mailbox, as the daemon gave them.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// What was last told of an object by a command.
    pub(crate) fn last<T>(&self, opcode: Opcode, number: u32) -> Option<T>
    where
        T: FromBytes + KnownLayout + Immutable,
    {
        let seen = self.seen();
        seen.iter().rev().find(|seen| (seen.opcode, seen.number) == (opcode, number)).and_then(Seen::read)
    }
}

impl Fault for Hook {
    fn request(&self, opcode: Opcode, modifier: u32, mailbox: &mut [u8]) {
        let (mut state, number) = (self.state(), modifier & NUMBER);
        state.commands.push(opcode);
        if mailbox.is_empty() {
            return;
        }
        state.seen.push(Seen { opcode, number, mailbox: mailbox.to_vec() });
        for change in &state.changes {
            change(opcode, number, mailbox);
        }
    }

    fn answer(&self, opcode: Opcode, _: &mut [u8], _: &mut u64) {
        let mut state = self.state();
        match state.failure {
            Some(Failure::Of(wanted, status)) if wanted == opcode => {
                state.failure = Some(Failure::Now(status));
            }
            _ => {}
        }
    }

    fn event(&self, eqe: &mut [u8]) {
        if eqe[EVENT_TYPE] != EventType::COMMAND.0 {
            return;
        }
        let mut state = self.state();
        if let Some(Failure::Now(status)) = state.failure {
            eqe[EVENT_STATUS] = status.0;
            state.failure = None;
        }
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}

/// A hook that the model asks from now on.
pub(crate) fn install(model: &mlx4_model::hca::Hca) -> Arc<Hook> {
    let hook = Arc::<Hook>::default();
    model.inject(Arc::<Hook>::clone(&hook));
    hook
}
