//! A guest of the demo: a process of its own, which opens its device at the daemon's socket and does what it
//! is told on its standard input, as `protocol` has it.

mod atomics;
mod link;
mod measure;
mod pingpong;
mod transfer;
mod wrong_key;

use std::io::{self, BufRead, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use paraverbs_verbs::{Context, Doorbells as Way, Mtu, Pd};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::protocol::{Answer, Command, Doorbells};
use link::{Link, PORT};

/// Arguments of a guest.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// The process that started it, without which it ends
    #[arg(long)]
    parent: u32,
}

/// Serves commands until it is told to leave, or the demo is gone.
pub(crate) fn run(args: &GuestArgs) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the demo")?;
    let parent = getppid().map_or(0, Pid::as_raw_pid);
    ensure!(u32::try_from(parent) == Ok(args.parent), "the demo is gone");
    let mut guest = Guest::default();
    for line in io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line.context("read a command")?).context("a command")?;
        let leaving = matches!(command, Command::Leave);
        let answer = guest.obey(command).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
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

/// The device, as far as a link needs it.
struct Device {
    // In the order in which they end.
    pd: Pd,
    context: Context,
    lid: u16,
    mtu: Mtu,
}

/// What a guest has.
#[derive(Default)]
struct Guest {
    // In the order in which they end.
    link: Option<Link>,
    device: Option<Device>,
    links: u32,
}

impl Guest {
    fn obey(&mut self, command: Command) -> Result<Answer> {
        match command {
            Command::Open { socket } => self.open(&socket),
            Command::Prepare { plan } => {
                let device = self.device.as_ref().context("no device is open")?;
                self.links += 1;
                let link = Link::new(&device.context, &device.pd, plan)?;
                let endpoint = link.endpoint(device.lid, psn(self.links));
                self.link = Some(link);
                Ok(Answer::Ready(endpoint))
            }
            Command::Connect { far } => {
                let link = self.link.as_mut().context("there is no link")?;
                let device = self.device.as_ref().context("no device is open")?;
                Ok(Answer::State(state_name(link.connect(&device.pd, far, psn(self.links), device.mtu)?)))
            }
            Command::PingPong { operation, side } => pingpong::run(self.link()?, operation, side),
            Command::Transfer { side } => transfer::run(self.link()?, side),
            Command::WrongKey { side } => {
                let context = self.device()?.context.clone();
                wrong_key::run(self.link()?, &context, side)
            }
            Command::Atomics { side } => atomics::run(self.link()?, side),
            Command::Measure { operation, bytes, waiting, side } => {
                let link = self.link()?;
                link.waiting = waiting;
                measure::run(link, operation, bytes, side)
            }
            Command::Close => Ok(Answer::Tally(self.link.take().context("there is no link")?.close()?)),
            Command::Leave => {
                let Self { link, device, .. } = std::mem::take(self);
                if link.is_some() {
                    bail!("the link is still open");
                }
                device.context("no device is open")?.pd.dealloc().context("end the protection domain")?;
                Ok(Answer::Gone)
            }
        }
    }

    fn open(&mut self, socket: &Path) -> Result<Answer> {
        if let Some(device) = self.device.take() {
            device.pd.dealloc().context("end the protection domain")?;
        }
        let context = Context::connect(socket)?;
        let attr = context.query_device().context("query the device")?;
        let port = context.query_port(PORT).context("query the port")?;
        let pd = context.alloc_pd().context("allocate a protection domain")?;
        let device = format!(
            "{:04x}:{:04x}, firmware {}, {}",
            attr.vendor_id, attr.vendor_part_id, attr.fw_ver, attr.board_id
        );
        let doorbells = match context.doorbells().context("ask for doorbells")? {
            Way::Relayed => Doorbells::Relayed,
            Way::Direct => Doorbells::Direct,
            other => bail!("doorbells of another kind: {other:?}"),
        };
        self.device = Some(Device { pd, context, lid: port.lid, mtu: port.active_mtu });
        Ok(Answer::Opened {
            device,
            port: port.state.to_string(),
            lid: port.lid,
            mtu: port.active_mtu.bytes(),
            doorbells,
        })
    }

    fn device(&self) -> Result<&Device> {
        self.device.as_ref().context("no device is open")
    }

    fn link(&mut self) -> Result<&mut Link> {
        self.link.as_mut().context("there is no link")
    }
}

/// The PSN that a link starts with: any will do, and that of the next one is another.
fn psn(link: u32) -> u32 {
    link.wrapping_mul(0x10_3579) & 0xff_ffff
}

/// A state as verbs spells it.
fn state_name(state: paraverbs_verbs::QpState) -> String {
    format!("{state:?}").to_uppercase()
}
