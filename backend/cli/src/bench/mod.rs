//! `paraverbs bench`: latency and bandwidth of messages between two guests, compared with the driver alone and with
//! what memory can do, in one run.
//!
//! - `plan`: what is measured; `run`: how, step by step; `report`: what came of it
//! - `host`: the daemon; `players`: the processes; `protocol`: what they are told; `player`: what they do
//! - `tools`: counts by strace and valgrind
//! - `table`, `plot`, `page`: output

mod host;
mod page;
mod plan;
mod players;
mod plot;
mod protocol;
mod report;
mod run;
mod table;
mod tools;

pub(crate) mod player;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use plan::{Operation, Plan};
use report::Report;

/// How often each measurement is made.
const ROUNDS: u32 = 15;
/// About how long one measurement takes.
const TIME: Duration = Duration::from_millis(15);
/// Messages of a quick run's measurements.
const QUICK_MESSAGES: u32 = 64;

/// Arguments of `paraverbs bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Sizes of messages, e.g. 2,4K,8M (from 1 byte to 8 MiB)
    #[arg(long, value_delimiter = ',', value_parser = plan::parse_size)]
    sizes: Vec<u32>,
    /// Messages of each measurement, instead of as many as fit in some milliseconds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: Option<u32>,
    /// What is measured, instead of all
    #[arg(long, value_delimiter = ',', value_enum)]
    operations: Vec<Operation>,
    /// How often each measurement is made; medians are shown
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Also count instructions and system calls, with valgrind and strace where they are installed
    #[arg(long)]
    counts: bool,
    /// Run also what needs more cores than there are: polling threads then share them
    #[arg(long)]
    oversubscribe: bool,
    /// A few messages of three sizes, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Write the numbers to a file of comma-separated values
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write everything to a JSON file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots (SVG) to a folder
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Put the tables between the markers of a page (Markdown)
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

impl BenchArgs {
    fn plan(&self) -> Plan {
        let or =
            |given: &[u32], default: &[u32]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
        let all: &[u32] = if self.quick { &plan::QUICK_SIZES } else { &plan::SIZES };
        let mut sizes = or(&self.sizes, all);
        sizes.sort_unstable();
        sizes.dedup();
        let operations = Operation::ALL
            .into_iter()
            .filter(|operation| self.operations.is_empty() || self.operations.contains(operation));
        Plan {
            sizes,
            operations: operations.collect(),
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { ROUNDS }),
            messages: self.messages.or(self.quick.then_some(QUICK_MESSAGES)),
            time: TIME,
        }
    }
}

/// Runs the bench and writes what was asked for.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let report = run::run(&args.plan(), args.counts, args.oversubscribe)?;
    print!("{}", table::text(&report));
    write(args, &report)?;
    Ok(ExitCode::SUCCESS)
}

fn write(args: &BenchArgs, report: &Report) -> Result<()> {
    let save = |path: &PathBuf, text: &str| {
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    };
    if let Some(path) = &args.csv {
        save(path, &table::csv(report))?;
    }
    if let Some(path) = &args.json {
        save(path, &(serde_json::to_string_pretty(report).context("write the report")? + "\n"))?;
    }
    if let Some(folder) = &args.plots {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        for (name, svg) in plot::all(report) {
            save(&folder.join(name), &svg)?;
        }
    }
    if let Some(path) = &args.page {
        let old = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        save(
            path,
            &page::replace(&old, &table::markdown(report)).with_context(|| path.display().to_string())?,
        )?;
    }
    Ok(())
}
