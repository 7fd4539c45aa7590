//! Counts by other programs: valgrind's callgrind for instructions, strace for system calls. Where one is missing,
//! or may not trace, the reason is the answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::plan::{Operation, Quantity, Task, Way};
use super::player::WINDOW;
use super::players::{self, Player};
use super::protocol::Command;
use super::report::{Instructions, SystemCalls};

/// Windows of messages whose instructions are counted.
const WINDOWS: u32 = 32;
/// Messages whose system calls are counted, and cores that must be there to count.
const MESSAGES: u32 = 100_000;
const POLLERS: usize = 2;
/// What is counted: the functions of `player::count`.
const COUNTED: &str = "*bench_counted_p*";
/// How long strace may take to attach and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Instructions that a message takes in the process that posts and polls.
pub(crate) fn instructions(sockets: &[PathBuf; 2], folder: &Path) -> Result<Result<Instructions, String>> {
    if !installed("valgrind") {
        return Ok(Err("valgrind is not installed".into()));
    }
    let count = Command::Count { operation: Operation::Write, windows: WINDOWS, way: Way::Alone };
    let file = folder.join("alone.out");
    let mut alone = Player::start("the driver alone", &callgrind(&file))?;
    alone.ask(&Command::OpenAlone)?;
    alone.ask(&count)?;
    alone.leave()?;
    let of_alone = total(&file)?;
    let file = folder.join("guest.out");
    let mut guests = players::guests(sockets, &callgrind(&file))?;
    guests[0].ask(&count)?;
    guests.into_iter().try_for_each(Player::leave)?;
    let each = |total: u64| total as f64 / f64::from(WINDOWS * WINDOW);
    Ok(Ok(Instructions { alone: each(of_alone), guest: each(total(&file)?) }))
}

fn callgrind(file: &Path) -> Vec<String> {
    [
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--quiet".to_owned(),
        "--collect-atstart=no".to_owned(),
        format!("--toggle-collect={COUNTED}"),
        format!("--callgrind-out-file={}", file.display()),
    ]
    .to_vec()
}

/// The instructions that a file of callgrind's tells of.
fn total(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let total = total_in(&text).context("callgrind tells no total")?;
    ensure!(total != 0, "callgrind has counted nothing");
    Ok(total)
}

fn total_in(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// System calls of a guest and of this process, the daemon's, while the guest writes messages and polls.
pub(crate) fn system_calls(
    guest: &mut Player,
    folder: &Path,
    cores: usize,
) -> Result<Result<SystemCalls, String>> {
    if cores < POLLERS {
        return Ok(Err(format!("not run: needs {POLLERS} cores")));
    }
    let (operation, quantity) = (Operation::Write, Quantity::Rate);
    let task = Task { operation, quantity, bytes: 8, messages: MESSAGES };
    let measure = Command::Measure { task, way: Way::Guest };
    let trace = match Trace::of(&[guest.id(), std::process::id()], folder, &["-c"])? {
        Ok(trace) => trace,
        Err(why) => return Ok(Err(why)),
    };
    guest.nanoseconds(&measure)?;
    let text = trace.end()?;
    Ok(Ok(SystemCalls { messages: MESSAGES, calls: calls_in(&text) }))
}

/// Writes to eventfds by a guest, and by this process, while both sleep for each of some messages.
pub(crate) fn eventfd_writes(
    guest: &mut Player,
    folder: &Path,
    messages: u32,
) -> Result<Result<[u64; 2], String>> {
    let mut writes = [0; 2];
    for (count, id) in writes.iter_mut().zip([guest.id(), std::process::id()]) {
        let trace = match Trace::of(&[id], folder, &["-yy", "-e", "trace=write"])? {
            Ok(trace) => trace,
            Err(why) => return Ok(Err(why)),
        };
        guest.nanoseconds(&Command::Sleep { messages })?;
        *count =
            trace.end()?.lines().filter(|line| line.contains("write(") && is_eventfd(line)).count() as u64;
    }
    Ok(Ok(writes))
}

fn is_eventfd(line: &str) -> bool {
    line.contains("<anon_inode:[eventfd")
}

/// strace, attached to processes.
struct Trace {
    strace: Child,
    file: PathBuf,
}

impl Trace {
    /// Attaches; the reason if that is not possible here.
    fn of(processes: &[u32], folder: &Path, arguments: &[&str]) -> Result<Result<Self, String>> {
        if !installed("strace") {
            return Ok(Err("strace is not installed".into()));
        }
        let (file, errors) = (folder.join("strace.out"), folder.join("strace.err"));
        let mut strace = Process::new("strace");
        strace.arg("-f").args(arguments).arg("-o").arg(&file);
        for process in processes {
            strace.args(["-p", &process.to_string()]);
        }
        let stderr = fs::File::create(&errors).context("make a file for strace's messages")?;
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut trace = Self { strace: strace.spawn().context("start strace")?, file };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            if processes.iter().all(|process| said.contains(&format!("Process {process} attached"))) {
                return Ok(Ok(trace));
            }
            if trace.strace.try_wait().context("wait for strace")?.is_some() || Instant::now() > deadline {
                let why = said.lines().next().unwrap_or("it says nothing").to_owned();
                return Ok(Err(format!("strace can't attach: {why}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Detaches, and answers what strace has written.
    fn end(mut self) -> Result<String> {
        let id = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw).context("strace has no id")?;
        kill_process(id, Signal::INT).context("stop strace")?;
        self.strace.wait().context("wait for strace")?;
        fs::read_to_string(&self.file).context("read what strace has written")
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Both fail only if it has been waited for already.
        let _ended = self.strace.kill();
        let _waited = self.strace.wait();
    }
}

/// Name and number of each system call in strace's summary.
fn calls_in(summary: &str) -> Vec<(String, u64)> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, calls, .., name] = words[..] else { return None };
        Some((name.to_owned(), calls.parse().ok()?)).filter(|(name, _)| name != "total")
    };
    summary.lines().filter_map(row).collect()
}

fn installed(program: &str) -> bool {
    let mut process = Process::new(program);
    process.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_of_callgrind_is_read() {
        assert_eq!(total_in("version: 1\nfn=(1) x\n1 2\n\ntotals: 12345\n"), Some(12345));
        assert_eq!(total_in("events: Ir\n"), None);
    }

    #[test]
    fn summary_of_strace_is_read() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
                       ------ ----------- ----------- --------- --------- ----------------\n \
                       99.50    1.000000        1000         7         2 futex\n  \
                       0.50    0.005000           5        12           read\n\
                       ------ ----------- ----------- --------- --------- ----------------\n\
                       100.00    1.005000                    19         2 total\n";
        assert_eq!(calls_in(summary), [("futex".to_owned(), 7), ("read".to_owned(), 12)]);
    }
}
