//! A player of the bench: a process of its own, which does what it is told on its standard input, as `protocol`
//! has it. It is a guest of the daemon's, or has a card and its driver for itself.
//!
//! - `end`: how messages are measured, whatever they go through
//! - `guest`, `alone`: what they go through; `slots`: the doorbells of the latter
//! - `memory`: what memory itself can do; `count`: messages for a tool that counts

mod alone;
mod count;
mod end;
mod guest;
mod memory;
mod slots;

use std::io::{self, BufRead, Write};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::plan::{BATCHES, Operation, Task, Way};
use super::protocol::{Answer, Command};
use alone::Alone;
pub(crate) use count::WINDOW;
use end::{Player, Sends};
use guest::Guest;
use memory::Copier;

/// Arguments of a player.
#[derive(Debug, Args)]
pub(crate) struct PlayerArgs {
    /// The process that started it, without which it ends
    #[arg(long)]
    parent: u32,
}

/// Serves commands until it is told to leave, or the bench is gone.
pub(crate) fn run(args: &PlayerArgs) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the bench")?;
    let parent = getppid().map_or(0, Pid::as_raw_pid);
    ensure!(u32::try_from(parent) == Ok(args.parent), "the bench is gone");
    let mut role = Role::None;
    let mut copier = None;
    for line in io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line.context("read a command")?).context("a command")?;
        let leaving = matches!(command, Command::Leave);
        let answer = obey(&mut role, &mut copier, command);
        let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        let mut text = serde_json::to_vec(&answer).context("write an answer")?;
        text.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush()).context("answer")?;
        if leaving {
            break;
        }
    }
    Ok(())
}

/// What a player is.
enum Role {
    None,
    Alone(Box<Alone>),
    Guest(Box<Guest>),
}

impl Role {
    fn guest(&mut self) -> Result<&mut Guest> {
        match self {
            Self::Guest(guest) => Ok(guest),
            _ => bail!("this player is no guest"),
        }
    }
}

fn obey(role: &mut Role, copier: &mut Option<Copier>, command: Command) -> Result<Answer> {
    match command {
        Command::OpenAlone => *role = Role::Alone(Box::new(Alone::open()?)),
        Command::OpenGuest { socket } => {
            let guest = Guest::open(&socket)?;
            let endpoint = guest.endpoint();
            *role = Role::Guest(Box::new(guest));
            return Ok(Answer::Ready(endpoint));
        }
        Command::Connect { far } => role.guest()?.connect(far)?,
        Command::Measure { task, way } => return measure(role, &task, way).map(Answer::Nanoseconds),
        Command::Serve { task } => {
            Sends::new(role.guest()?, &task, false).run()?;
        }
        Command::Copy { bytes, times } => {
            let copier = match copier {
                Some(copier) => copier,
                None => copier.insert(Copier::new()?),
            };
            return Ok(Answer::Nanoseconds(vec![copier.copy(bytes, times)?]));
        }
        Command::CacheLine { rounds } => {
            let batch = || memory::cache_line(rounds / BATCHES);
            return Ok(Answer::Nanoseconds((0..BATCHES).map(|_| batch()).collect::<Result<_>>()?));
        }
        Command::Count { operation, windows, way } => match role {
            Role::Alone(alone) => alone.count(operation, windows, way)?,
            _ => count::windows(role.guest()?, operation, windows, count::pause)?,
        },
        Command::Sleep { messages } => return Ok(Answer::Nanoseconds(role.guest()?.sleep(messages)?)),
        Command::Leave => match std::mem::replace(role, Role::None) {
            Role::None => {}
            Role::Alone(alone) => alone.close()?,
            Role::Guest(guest) => guest.close()?,
        },
    }
    Ok(Answer::Done)
}

fn measure(role: &mut Role, task: &Task, way: Way) -> Result<Vec<f64>> {
    match role {
        Role::None => bail!("nothing is open"),
        Role::Alone(alone) => alone.measure(task, way),
        Role::Guest(guest) if task.operation == Operation::Send => Sends::new(&mut **guest, task, true).run(),
        Role::Guest(guest) => Player::new(&mut **guest).measure(task),
    }
}
