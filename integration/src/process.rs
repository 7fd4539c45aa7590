//! Processes on the host: ones that run until they are stopped, and tools that run once.
//!
//! A [`Child`] never outlives its handle, nor this process: the kernel kills it when the thread that
//! started it ends, so all are started by one thread that lives as long as this process does.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a process that must end is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How many lines of output go into a message.
const TAIL: usize = 40;

/// A process that runs until it is stopped. Dropping it kills the process.
#[derive(Debug)]
pub struct Child {
    name: String,
    child: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command` with its standard output and error going to the file `log`, which is emptied
    /// first. Its standard input is empty.
    ///
    /// # Errors
    /// The log can't be written, or the program can't be started.
    pub fn spawn(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let err = out.try_clone().context("share the log file")?;
        let mut command = dies_with_parent(command);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn(command).with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that the output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How the process ended, or `None` while it runs.
    ///
    /// # Errors
    /// The process can't be waited for.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    /// It still runs after `limit`; it goes on running.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} (pid {}) still runs after {limit:?}", self.name, self.pid());
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until files are there that the process makes, such as its sockets.
    ///
    /// # Errors
    /// It ends without, or one is missing after `limit`. The message has the end of its output.
    pub fn wait_for_files<'a>(
        &mut self,
        files: impl IntoIterator<Item = &'a PathBuf>,
        limit: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        for file in files {
            while !file.exists() {
                if let Some(status) = self.status()? {
                    bail!("{} ended with {status}: {}", self.name, self.tail(TAIL));
                }
                if Instant::now() >= deadline {
                    bail!("{} made no {} within {limit:?}: {}", self.name, file.display(), self.tail(TAIL));
                }
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Asks the process to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// It still runs after `limit`; it goes on running.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.status()?.is_none() {
            // Not reaped yet, so the number is still this process's own.
            kill_process(Pid::from_child(&self.child), Signal::TERM)
                .with_context(|| format!("send SIGTERM to {}", self.name))?;
        }
        self.wait(limit)
    }

    /// The last `lines` lines of the output.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if the process has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last `lines` lines of a file, or a line that says why there are none.
pub fn tail(file: &Path, lines: usize) -> String {
    match std::fs::read(file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", file.display()),
    }
}

/// Runs a tool to its end and gives its standard output.
///
/// # Errors
/// It can't be started, fails, or still runs after `limit` (it is killed then). The message has what
/// it wrote to its standard error.
pub fn run(command: &Command, limit: Duration) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut out = tempfile::tempfile().context("create a temporary file")?;
    let mut err = tempfile::tempfile().context("create a temporary file")?;
    let mut command = dies_with_parent(command);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let child = spawn(command).with_context(|| format!("start {name}"))?;
    let mut child = Child { name: name.clone(), child, log: PathBuf::new() };
    let status = child.wait(limit)?;
    if !status.success() {
        let mut text = Vec::new();
        err.rewind()?;
        err.read_to_end(&mut text)?;
        bail!("{name} failed ({}): {}", outcome(status), String::from_utf8_lossy(&text).trim());
    }
    let mut text = Vec::new();
    out.rewind()?;
    out.read_to_end(&mut text)?;
    Ok(text)
}

/// Finds a program in PATH, or in the folders of the administrator's programs.
///
/// # Errors
/// It isn't there; `package` is what to install.
pub fn find(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not on this machine (Debian package {package})"))
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The same command, killed by the kernel when the thread that starts it ends.
fn dies_with_parent(command: &Command) -> Command {
    // If this process has died before the request to the kernel was made, the parent is another by then.
    const CHECKED: &str = r#"[ "$PPID" = "$1" ] || exit 1; shift; exec "$@""#;
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--", "sh", "-c", CHECKED, "sh"]);
    wrapped.arg(std::process::id().to_string()).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        set_env(&mut wrapped, key, value);
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

fn set_env(command: &mut Command, key: &OsStr, value: Option<&OsStr>) {
    match value {
        Some(value) => command.env(key, value),
        None => command.env_remove(key),
    };
}

type Started = std::io::Result<std::process::Child>;

/// Starts a command on the thread that starts all of them.
fn spawn(command: Command) -> Result<std::process::Child> {
    static STARTER: OnceLock<Sender<(Command, Sender<Started>)>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, requests) = channel::<(Command, Sender<Started>)>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // Nobody listens only if the asking thread has died.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, started) = channel();
    starter.send((command, answer)).ok().context("the starting thread has ended")?;
    Ok(started.recv().context("the starting thread has ended")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn run_gives_the_standard_output() {
        assert_eq!(run(&sh("echo a; echo b >&2"), Duration::from_secs(10)).unwrap(), b"a\n");
    }

    #[test]
    fn run_of_a_failing_tool_tells_status_and_standard_error() {
        let error = run(&sh("echo broken >&2; exit 3"), Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status 3): broken");
    }

    #[test]
    fn run_over_its_limit_kills_the_tool() {
        let start = Instant::now();
        let error = run(&sh("exec sleep 100"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("still runs after 100ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn child_started_by_a_thread_that_ended_goes_on_until_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut child =
            thread::spawn(move || Child::spawn("sleeper", &sh("echo up; exec sleep 100"), &log).unwrap())
                .join()
                .unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(child.status().unwrap().is_none());
        assert_eq!(child.tail(5), "up");
        let process = PathBuf::from(format!("/proc/{}", child.pid()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists());
    }

    #[test]
    fn child_of_a_killed_process_dies_with_it() {
        const VICTIM: &str = "RIG_TEST_VICTIM";
        if std::env::var_os(VICTIM).is_some() {
            let folder = tempfile::tempdir().unwrap();
            let child = Child::spawn("sleeper", &sh("exec sleep 100"), &folder.path().join("log")).unwrap();
            println!("child={}.", child.pid());
            thread::sleep(Duration::from_secs(100));
            return;
        }
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::child_of_a_killed_process_dies_with_it", "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = victim.stdout.take().unwrap();
        let pid = loop {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            said.push(char::from(byte[0]));
            if let Some((_, pid)) = said.strip_suffix('.').and_then(|said| said.split_once("child=")) {
                break pid.to_owned();
            }
        };
        victim.kill().unwrap();
        victim.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // Whoever inherits it may leave it as a zombie: state Z.
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "process {pid} still runs");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn terminate_lets_the_process_clean_up() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let mut child = Child::spawn("trapper", &sh(script), &log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.tail(1) != "up" && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        let status = child.terminate(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(child.tail(1), "bye");
    }

    #[test]
    fn find_of_a_missing_program_names_the_package() {
        let error = find("no-such-program", "some-package").unwrap_err();
        assert!(error.to_string().contains("some-package"), "{error}");
    }
}
