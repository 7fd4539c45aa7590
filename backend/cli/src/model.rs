//! `paraverbs model`: one fabric, and a card on it for each socket.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use mlx4_model::fabric::sm::SmConfig;
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{Hca, HcaConfig};
use mlx4_model::trace::Trace;
use mlx4_model::vfio_user::{ServeError, ServedCard};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::control;
use crate::socket::SocketServer;

/// Node GUID of the first card: Mellanox's OUI and a number.
const FIRST_GUID: u64 = 0x0002_c903_00a0_0000;
/// Distance of the cards' GUIDs; a card uses four.
const GUID_STEP: u64 = 0x10;

/// How long links train. Drivers in VMs are slow to get ready for the first SMP.
const LINK_TRAINING: Duration = Duration::from_secs(1);

/// Arguments of `paraverbs model`.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Unix socket to serve a card on; repeat it for more cards
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,

    /// InfiniBand ports of each card
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    ports: u8,

    /// Write what drivers do with the cards to a file: commands with their mailboxes, and resets
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Unix socket that answers each connection with the cards' resources in use, and what they have counted, as JSON
    #[arg(long, value_name = "PATH")]
    dump_socket: Option<PathBuf>,

    /// Unix socket for one command a connection: `pull N` and `plug N` take the cable out of port N of the
    /// switch and put it back; the cards' ports have the switch's in order, from 1
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,

    /// Give all ports this partition besides the default one, as full members (15 bits; bit 15 may be set);
    /// repeat it for more
    #[arg(long = "pkey", value_name = "P_KEY", value_parser = parse_pkey)]
    pkeys: Vec<u16>,

    /// Leave out the built-in subnet manager: ports stay in INIT until another one manages them
    #[arg(long, conflicts_with = "pkeys")]
    no_sm: bool,
}

/// The bit of a P_Key that makes its port a full member.
const FULL_MEMBER: u16 = 0x8000;

/// Serves the cards until SIGINT or SIGTERM.
pub(crate) fn run(args: &ModelArgs) -> Result<()> {
    // Before anything that has to be cleaned up.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("can't wait for signals")?;
    let trace = args.trace.as_deref().map(open_trace).transpose()?.map(Arc::new);
    let fabric = Fabric::new(fabric_config(args)).context("can't make the fabric")?;
    let guids = (FIRST_GUID..).step_by(usize::try_from(GUID_STEP)?);
    let cards = args
        .sockets
        .iter()
        .zip(guids)
        .map(|(path, node_guid)| {
            let config = HcaConfig { node_guid, ports: args.ports, trace: trace.clone() };
            ServedCard::start(path, config, &fabric).map_err(advise)
        })
        .collect::<Result<Vec<_>>>()?;
    let hcas: Vec<_> = cards.iter().map(|card| Arc::clone(card.hca())).collect();
    let answer = move |mut stream: UnixStream| stream.write_all(dump(&hcas).as_bytes());
    let start_dump = |path| SocketServer::start("dump", path, answer).map_err(advise);
    let dump = args.dump_socket.as_deref().map(start_dump).transpose()?;
    let controlled = Arc::clone(&fabric);
    let answer = move |stream| control::serve(&controlled, stream);
    let start_control = |path| SocketServer::start("control", path, answer).map_err(advise);
    let control = args.control_socket.as_deref().map(start_control).transpose()?;

    for card in &cards {
        announce(card.hca().node_guid(), card.path());
    }
    if let Some(signal) = signals.forever().next() {
        log::info!("stopping after signal {signal}");
    }
    drop((dump, control));
    for card in cards {
        card.stop();
    }
    Ok(())
}

fn fabric_config(args: &ModelArgs) -> FabricConfig {
    let mut manager = SmConfig::default();
    manager.pkeys.extend(&args.pkeys);
    FabricConfig {
        training: LINK_TRAINING,
        subnet_manager: (!args.no_sm).then_some(manager),
        ..FabricConfig::default()
    }
}

/// A P_Key of a full member, from its number with or without the membership bit.
fn parse_pkey(text: &str) -> Result<u16> {
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u16::from_str_radix(hex, 16))?;
    match number | FULL_MEMBER {
        FULL_MEMBER => bail!("no partition has the number 0"),
        u16::MAX => bail!("all ports are in the default partition anyway"),
        pkey => Ok(pkey),
    }
}

/// Says on stdout that a card can be used; whoever started the program may wait for the line.
fn announce(guid: u64, path: &Path) {
    let mut out = io::stdout().lock();
    let line = writeln!(out, "serving ConnectX-3 {guid:#018x} on {}", path.display());
    if let Err(error) = line.and_then(|()| out.flush()) {
        log::debug!("nobody reads stdout: {error}");
    }
}

/// The resources of all cards and what each has counted, as one JSON object of two lists.
fn dump(hcas: &[Arc<Hca>]) -> String {
    let cards: Vec<_> = hcas.iter().map(|hca| hca.dump()).collect();
    let counters: Vec<_> = hcas.iter().map(|hca| counters(hca)).collect();
    format!("{{\"cards\":[{}],\"counters\":[{}]}}\n", cards.join(","), counters.join(","))
}

/// What a card has counted since it was made, the accesses to memory that were refused among it; and how much memory
/// it can reach now.
fn counters(hca: &Hca) -> String {
    let memory = [
        ("refused_accesses", hca.refused_accesses()),
        ("held_back_accesses", hca.held_back_accesses()),
        ("mapped_bytes", hca.mapped_bytes()),
    ];
    let counts = hca.counters().iter().chain(memory).map(|(name, count)| format!("\"{name}\":{count}"));
    format!("{{{}}}", counts.collect::<Vec<_>>().join(","))
}

fn open_trace(path: &Path) -> Result<Trace> {
    Trace::create(path).map_err(|error| {
        anyhow!("can't write the trace {}: {error}; choose a file that you may write", path.display())
    })
}

/// Adds what to do about an error.
fn advise(error: ServeError) -> anyhow::Error {
    let advice = error.advice();
    let error = anyhow!(error);
    anyhow!("{error:#}; {advice}")
}
