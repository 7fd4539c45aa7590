//! The guests as the demo has them: processes that do what they are told, one line at a time.
//!
//! However the demo ends, the processes end too: each is killed and waited for when its handle is dropped, and
//! the kernel kills it when the thread that started it is gone.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::protocol::{Answer, Command, Side};

/// The names of the guests.
pub(crate) const NAMES: [&str; 2] = ["a", "b"];
/// No command takes that long, not even of a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// A guest that was told to leave ends within this time.
const LEAVING: Duration = Duration::from_secs(5);
/// How much of a guest's standard error is shown.
const LAST_WORDS: usize = 300;

/// The demo was interrupted (SIGINT, SIGTERM).
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// What comes in while the demo waits.
#[derive(Debug)]
enum News {
    Line(usize, String),
    End(usize),
    Interrupted,
}

/// Both guests.
pub(crate) struct Guests {
    processes: Vec<Guest>,
    news: Receiver<News>,
    sender: Sender<News>,
}

/// One process.
struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    /// Collects standard error until its end.
    errors: Option<thread::JoinHandle<String>>,
}

/// Tells the demo of a signal.
pub(crate) struct Interrupter(Sender<News>);

impl Interrupter {
    pub(crate) fn interrupt(&self) {
        // Nobody listens when the demo has ended by itself.
        let _ended = self.0.send(News::Interrupted);
    }
}

impl Guests {
    /// No processes yet.
    pub(crate) fn new() -> Self {
        let (sender, news) = channel();
        Self { processes: Vec::new(), news, sender }
    }

    pub(crate) fn interrupter(&self) -> Interrupter {
        Interrupter(self.sender.clone())
    }

    /// Starts both processes, from this program. They end with the thread that calls this.
    pub(crate) fn start(&mut self) -> Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        for (index, name) in NAMES.iter().enumerate() {
            let mut process = Process::new(&program);
            process.args(["demo-guest", "--parent", &std::process::id().to_string()]);
            // Ctrl-C is for the demo alone, which then ends its guests.
            process.process_group(0);
            process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = process.spawn().with_context(|| format!("start guest {name}"))?;
            let (output, errors) = (child.stdout.take(), child.stderr.take());
            let guest = Guest { input: child.stdin.take(), child, errors: None };
            self.processes.push(guest);
            let sender = self.sender.clone();
            let output = output.context("a guest without an output")?;
            spawn(format!("guest-{name}"), move || forward(index, output, &sender))?;
            let errors = errors.context("a guest without an error output")?;
            self.processes[index].errors = Some(spawn(format!("errors-{name}"), move || collect(errors))?);
        }
        Ok(())
    }

    /// Tells both guests something, each its own, and waits for both answers.
    pub(crate) fn both(&mut self, command: impl Fn(Side) -> Command) -> Result<[Answer; 2]> {
        self.each([Some(command(Side::First)), Some(command(Side::Second))]).and_then(|answers| match answers
        {
            [Some(first), Some(second)] => Ok([first, second]),
            _ => bail!("an answer is missing"),
        })
    }

    fn each(&mut self, commands: [Option<Command>; 2]) -> Result<[Option<Answer>; 2]> {
        let mut waiting = [false; 2];
        for (index, command) in commands.iter().enumerate() {
            if let Some(command) = command {
                self.tell(index, command)?;
                waiting[index] = true;
            }
        }
        let mut answers = [None, None];
        let deadline = Instant::now() + PATIENCE;
        while waiting.contains(&true) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(News::Line(index, line)) => {
                    let answer = serde_json::from_str(&line)
                        .with_context(|| format!("guest {} says {line:?}", NAMES[index]))?;
                    if let Answer::Failed(why) = answer {
                        bail!("guest {}: {why}", NAMES[index]);
                    }
                    answers[index] = Some(answer);
                    waiting[index] = false;
                }
                // A guest that has answered may end.
                Ok(News::End(index)) if !waiting[index] => {}
                Ok(News::End(index)) => bail!("guest {} {}", NAMES[index], self.fate(index)),
                Ok(News::Interrupted) => return Err(Interrupted.into()),
                Err(RecvTimeoutError::Timeout) => {
                    let silent = (0..2).filter(|index| waiting[*index]).map(|index| NAMES[index]);
                    let silent = silent.collect::<Vec<_>>().join(" and ");
                    bail!("guest {silent} gave no answer for {} s", PATIENCE.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => bail!("nobody listens to the guests"),
            }
        }
        Ok(answers)
    }

    fn tell(&mut self, index: usize, command: &Command) -> Result<()> {
        let mut line = serde_json::to_vec(command).context("write a command")?;
        line.push(b'\n');
        let input = self.processes.get_mut(index).and_then(|guest| guest.input.as_mut());
        let input = input.with_context(|| format!("guest {} is not there", NAMES[index]))?;
        if input.write_all(&line).and_then(|()| input.flush()).is_err() {
            bail!("guest {} {}", NAMES[index], self.fate(index));
        }
        Ok(())
    }

    /// How a process that has closed its output ended.
    fn fate(&mut self, index: usize) -> String {
        let Some(guest) = self.processes.get_mut(index) else { return "is not there".into() };
        let status = guest.wait(LEAVING);
        let status = status.map_or_else(|| "has closed its output".into(), |how| format!("has ended: {how}"));
        let words = guest.last_words();
        if words.is_empty() { status } else { format!("{status}; it said: {words}") }
    }

    /// Ends both processes, if they still run.
    pub(crate) fn kill(&mut self) {
        self.processes.clear();
    }

    /// Waits until both processes, which were told to leave, have ended well.
    pub(crate) fn wait(&mut self) -> Result<()> {
        for (index, guest) in self.processes.iter_mut().enumerate() {
            guest.input = None;
            match guest.wait(LEAVING) {
                Some(status) if status.success() => {}
                Some(status) => bail!("guest {} ended with {status}: {}", NAMES[index], guest.last_words()),
                None => bail!("guest {} still runs {} s after it left", NAMES[index], LEAVING.as_secs()),
            }
        }
        Ok(())
    }
}

impl Guest {
    /// Waits for the end of the process.
    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                _ => return None,
            }
        }
    }

    /// The end of what it wrote to its standard error, in one line.
    fn last_words(&mut self) -> String {
        // While it runs the end doesn't come.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            return String::new();
        }
        let text = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let line = text.trim().replace('\n', " | ");
        let start = line.char_indices().rev().take(LAST_WORDS).last().map_or(0, |(at, _)| at);
        line[start..].to_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has been waited for already.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name).spawn(work).context("start a thread")
}

/// Passes a guest's answers on.
fn forward(index: usize, output: impl Read, sender: &Sender<News>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if sender.send(News::Line(index, line)).is_err() {
            return;
        }
    }
    let _ended = sender.send(News::End(index));
}

fn collect(mut errors: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error counts.
    let _cut_off = errors.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
