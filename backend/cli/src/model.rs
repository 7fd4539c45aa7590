//! `paraverbs model`: one fabric, and a card on it for each socket.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::{Hca, HcaConfig};
use mlx4_model::trace::Trace;
use mlx4_model::vfio_user::{ServeError, ServedCard};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::dump::DumpServer;

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
}

/// Serves the cards until SIGINT or SIGTERM.
pub(crate) fn run(args: &ModelArgs) -> Result<()> {
    // Before anything that has to be cleaned up.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("can't wait for signals")?;
    let trace = args.trace.as_deref().map(open_trace).transpose()?.map(Arc::new);
    let fabric = Fabric::new(FabricConfig { training: LINK_TRAINING, ..FabricConfig::default() })
        .context("can't make the fabric")?;
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
    let start_dump = |path| DumpServer::start(path, move || dump(&hcas)).map_err(advise);
    let dump = args.dump_socket.as_deref().map(start_dump).transpose()?;

    for card in &cards {
        announce(card.hca().node_guid(), card.path());
    }
    if let Some(signal) = signals.forever().next() {
        log::info!("stopping after signal {signal}");
    }
    drop(dump);
    for card in cards {
        card.stop();
    }
    Ok(())
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

/// What a card has counted since it was made, the accesses to memory that were refused among it.
fn counters(hca: &Hca) -> String {
    let memory =
        [("refused_accesses", hca.refused_accesses()), ("held_back_accesses", hca.held_back_accesses())];
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
