//! The players as the bench has them: processes that do what they are told, one line at a time. Each is killed when
//! its handle is dropped, and by the kernel when the thread that started it is gone.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};

use anyhow::{Context as _, Result, bail};

use super::protocol::{Answer, Command, Endpoint};

/// A process.
pub(crate) struct Player {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Player {
    /// Starts it from this program; `wrapper` are the words of a command that runs it, if there are any.
    pub(crate) fn start(name: &'static str, wrapper: &[String]) -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let mut process = match wrapper.split_first() {
            Some((program, arguments)) => {
                let mut process = Process::new(program);
                process.args(arguments).arg(own);
                process
            }
            None => Process::new(own),
        };
        process.args(["bench-player", "--parent", &std::process::id().to_string()]);
        // Ctrl-C is for the bench alone, which then ends its players.
        process.process_group(0);
        process.stdin(Stdio::piped()).stdout(Stdio::piped());
        if !wrapper.is_empty() {
            process.stderr(Stdio::null());
        }
        let mut child = process.spawn().with_context(|| format!("start {name}"))?;
        let input = child.stdin.take().context("a player without an input")?;
        let output = BufReader::new(child.stdout.take().context("a player without an output")?);
        Ok(Self { name, child, input, output })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something.
    pub(crate) fn tell(&mut self, command: &Command) -> Result<()> {
        let mut line = serde_json::to_vec(command).context("write a command")?;
        line.push(b'\n');
        let told = self.input.write_all(&line).and_then(|()| self.input.flush());
        told.with_context(|| format!("{} has ended", self.name))
    }

    /// Waits for its answer.
    pub(crate) fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        if !read.is_ok_and(|bytes| bytes != 0) {
            bail!("{} has ended", self.name);
        }
        match serde_json::from_str(&line).with_context(|| format!("{} says {line:?}", self.name))? {
            Answer::Failed(why) => bail!("{}: {why}", self.name),
            answer => Ok(answer),
        }
    }

    /// Tells it something, and waits until it has done it.
    pub(crate) fn ask(&mut self, command: &Command) -> Result<Answer> {
        self.tell(command)?;
        self.answer()
    }

    /// Has it measure something.
    pub(crate) fn nanoseconds(&mut self, command: &Command) -> Result<Vec<f64>> {
        match self.ask(command)? {
            Answer::Nanoseconds(taken) => Ok(taken),
            other => bail!("{} answers {other:?} to {command:?}", self.name),
        }
    }

    fn endpoint(&mut self, socket: &std::path::Path) -> Result<Endpoint> {
        match self.ask(&Command::OpenGuest { socket: socket.to_owned() })? {
            Answer::Ready(endpoint) => Ok(endpoint),
            other => bail!("{} answers {other:?} instead of an endpoint", self.name),
        }
    }

    /// Ends it in order.
    pub(crate) fn leave(mut self) -> Result<()> {
        self.ask(&Command::Leave)?;
        let status = self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // Both fail only if it has been waited for already.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Two guests of a daemon, connected to each other; the first is run by `wrapper`.
pub(crate) fn guests(sockets: &[std::path::PathBuf; 2], wrapper: &[String]) -> Result<[Player; 2]> {
    let mut guests = [Player::start("guest a", wrapper)?, Player::start("guest b", &[])?];
    let first = guests[0].endpoint(&sockets[0])?;
    let second = guests[1].endpoint(&sockets[1])?;
    guests[0].ask(&Command::Connect { far: second })?;
    guests[1].ask(&Command::Connect { far: first })?;
    Ok(guests)
}
