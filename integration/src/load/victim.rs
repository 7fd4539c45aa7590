//! A guest in a process of its own that has requests outstanding both ways, to be killed.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use paraverbs_verbs::Context;

use super::{End, Patience, SPAR_BYTES, SPAR_DEPTH, spar};
use crate::peer::Endpoint;

/// What a victim says when requests are outstanding at all its ends.
const BUSY: &str = "busy";

/// The process. Dropping it kills it.
#[derive(Debug)]
pub struct Victim {
    child: std::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Victim {
    /// Starts `program`, which calls [`serve_as_victim`], with a guest's socket and a number of ends. Answers
    /// how they are reached.
    ///
    /// # Errors
    /// The process can't be started, or says nothing sensible.
    pub fn start(program: &Path, socket: &Path, ends: usize) -> Result<(Self, Vec<Endpoint>)> {
        let mut child = Command::new(program)
            .arg(socket)
            .arg(ends.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the victim has no pipes");
        };
        let mut victim = Self { child, input, output: BufReader::new(output) };
        let line = victim.line()?;
        let ends = serde_json::from_str(&line).with_context(|| format!("the victim says {line:?}"))?;
        Ok((victim, ends))
    }

    /// Tells it the other ends, and waits until it is busy.
    ///
    /// # Errors
    /// It says something else, or ends.
    pub fn connect(&mut self, to: &[Endpoint]) -> Result<()> {
        serde_json::to_writer(&mut self.input, to)?;
        self.input.write_all(b"\n")?;
        let line = self.line()?;
        if line != BUSY {
            bail!("the victim says {line:?} instead of {BUSY:?}");
        }
        Ok(())
    }

    /// Kills it (SIGKILL), and waits until it is dead.
    ///
    /// # Errors
    /// It had ended by itself.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the victim ended by itself: {status}");
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim_end() {
            "" => bail!("the victim has ended: {}", self.child.wait()?),
            line => Ok(line.to_owned()),
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // A failure to kill it means that it is dead.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the victim's process does: makes `ends` ends at the guest's socket, says how they are reached, reads
/// how their other ends are, and spars with these. It ends when its standard input does.
///
/// # Errors
/// A verb fails, or a connection ends.
pub fn serve_as_victim(socket: &Path, ends: usize) -> Result<()> {
    let context = Context::connect(socket)?;
    let ends = (0..ends).map(|_| End::new(&context, SPAR_BYTES, SPAR_DEPTH)).collect::<Result<Vec<_>>>()?;
    say(&serde_json::to_string(&ends.iter().map(End::endpoint).collect::<Vec<_>>())?)?;
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    let to: Vec<Endpoint> = serde_json::from_str(&line).with_context(|| format!("told {line:?}"))?;
    for (end, to) in ends.iter().zip(&to) {
        end.connect(to, Patience::Long)?;
    }
    thread::spawn(|| {
        let _ = stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let (busy, all_busy) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let sparring: Vec<_> = ends
            .iter()
            .zip(to)
            .map(|(end, to)| {
                let busy = busy.clone();
                scope.spawn(move || spar(end, to, || busy.send(()).unwrap_or_default()))
            })
            .collect();
        for _ in &sparring {
            all_busy.recv()?;
        }
        say(BUSY)?;
        let endings = sparring
            .into_iter()
            .map(|end| end.join().map_err(|_| anyhow!("a thread has panicked"))?)
            .collect::<Result<Vec<_>>>()?;
        bail!("all connections ended: {endings:?}")
    })
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
