//! `cargo xtask console`: the terminal on a VM's console.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-], which detaches, as in telnet.
const DETACH: u8 = 0x1d;

/// Connects the terminal to the socket until the VM stops or Ctrl-] is pressed.
pub(crate) fn attach(socket: &Path) -> Result<()> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    println!("attached; Ctrl-] detaches, return shows the prompt");
    let terminal = RawTerminal::enter()?;
    let keys = stream.try_clone().context("share the connection")?;
    // Never joined: it may wait for a key for ever.
    thread::spawn(move || {
        // Whatever goes wrong with the keys ends the connection, and so the other direction.
        let _ = send_keys(&keys);
        let _ = keys.shutdown(Shutdown::Both);
    });
    let shown = show(&stream);
    drop(terminal);
    println!();
    shown.context("read from the console")
}

fn send_keys(mut stream: &UnixStream) -> io::Result<()> {
    let mut keys = [0; 256];
    loop {
        let length = io::stdin().lock().read(&mut keys)?;
        let keys = &keys[..length];
        if keys.is_empty() || keys.contains(&DETACH) {
            return Ok(());
        }
        stream.write_all(keys)?;
    }
}

fn show(mut stream: &UnixStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&buffer[..length])?;
        stdout.flush()?;
    }
}

/// The terminal with every key passed on as it is; as it was before when dropped.
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("set the terminal")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
