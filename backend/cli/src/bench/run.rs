//! The bench, step by step. What is compared is measured in turn, round by round, so that whatever else the machine
//! does in the meantime concerns all of it alike.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::host::Host;
use super::plan::{MOST_BYTES, Operation, Plan, Quantity, Task, Way};
use super::players::{self, Player};
use super::protocol::Command;
use super::report::{Cell, Counts, Machine, Report, Row, Samples, Sleeping};
use super::tools;

/// Round trips of a cache line in a round.
const LINES: u32 = 8000;
/// Messages that guest and daemon sleep for.
const SLEEPS: u32 = 200;

/// The bench while it runs.
struct Bench {
    // The players end before the daemon does.
    alone: Player,
    guests: [Player; 2],
    host: Host,
    samples: Samples,
    interrupted: Arc<AtomicBool>,
    oversubscribe: bool,
    cores: usize,
    /// Payload bytes that guests have posted.
    posted: u64,
}

/// Runs it.
///
/// # Errors
/// It was interrupted, or something of it failed; nothing is left then.
pub(crate) fn run(plan: &Plan, with_tools: bool, oversubscribe: bool) -> Result<Report> {
    let start = Instant::now();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("can't wait for signals")?;
    }
    let machine = Machine::this();
    let mut bench = Bench::start(interrupted, oversubscribe, machine.cores)?;
    for round in 0..plan.rounds {
        progress(&format!("round {} of {}", round + 1, plan.rounds));
        bench.round(plan, round)?;
    }
    let rows = bench.rows(plan);
    let cache_line = bench.samples.line();
    let counts = bench.counts(plan, with_tools)?;
    progress("");
    let optimised = !cfg!(debug_assertions);
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    Ok(Report {
        machine,
        command: format!("paraverbs {command}"),
        optimised,
        rounds: plan.rounds,
        seconds: start.elapsed().as_secs_f64(),
        rows,
        cache_line,
        counts,
    })
}

impl Bench {
    fn start(interrupted: Arc<AtomicBool>, oversubscribe: bool, cores: usize) -> Result<Self> {
        progress("starting");
        let host = Host::start()?;
        let mut alone = Player::start("the driver alone", &[])?;
        alone.ask(&Command::OpenAlone)?;
        let guests = players::guests(host.sockets(), &[])?;
        let samples = Samples::default();
        Ok(Self { alone, guests, host, samples, interrupted, oversubscribe, cores, posted: 0 })
    }

    fn round(&mut self, plan: &Plan, round: u32) -> Result<()> {
        let line = self.alone.nanoseconds(&Command::CacheLine { rounds: LINES })?;
        self.samples.cache_line(line);
        for &operation in &plan.operations {
            for &bytes in &plan.sizes {
                for task in plan.tasks(operation, bytes) {
                    self.measure(&task, round)?;
                }
            }
        }
        Ok(())
    }

    /// Measures each way, in an order that changes, and the copy between them.
    fn measure(&mut self, task: &Task, round: u32) -> Result<()> {
        let mut ways = Way::ALL;
        ways.rotate_left(round as usize % Way::ALL.len());
        for (index, way) in ways.into_iter().enumerate() {
            if self.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted; players and daemon were stopped");
            }
            if index == 1 && task.quantity == Quantity::Rate {
                let copy = Command::Copy { bytes: task.bytes, times: task.messages };
                let taken = self.alone.nanoseconds(&copy)?;
                self.samples.copies(task.bytes, taken);
            }
            if self.runs(way, task.operation) {
                let taken = self.take(task, way)?;
                self.samples.messages(task, way, taken);
            }
        }
        Ok(())
    }

    fn runs(&self, way: Way, operation: Operation) -> bool {
        self.oversubscribe || way.cores(operation) <= self.cores
    }

    fn take(&mut self, task: &Task, way: Way) -> Result<Vec<f64>> {
        let measure = Command::Measure { task: *task, way };
        let [first, second] = &mut self.guests;
        match (way, task.operation) {
            (Way::Guest, Operation::Send) => {
                second.tell(&Command::Serve { task: *task })?;
                let taken = first.nanoseconds(&measure)?;
                second.answer()?;
                Ok(taken)
            }
            (Way::Guest, _) => {
                let taken = first.nanoseconds(&measure)?;
                self.posted += u64::from(task.executed()) * u64::from(task.bytes);
                Ok(taken)
            }
            _ => self.alone.nanoseconds(&measure),
        }
    }

    fn rows(&self, plan: &Plan) -> Vec<Row> {
        let pairs = plan.operations.iter().flat_map(|op| plan.sizes.iter().map(move |bytes| (*op, *bytes)));
        pairs.map(|(operation, bytes)| self.row(operation, bytes)).collect()
    }

    fn row(&self, operation: Operation, bytes: u32) -> Row {
        let cell = |way: Way| {
            let needs = way.cores(operation);
            let left_out = format!("not run: needs {needs} cores");
            Cell {
                latency: self.samples.message(operation, bytes, Quantity::Latency, way),
                each: self.samples.message(operation, bytes, Quantity::Rate, way),
                left_out: (!self.runs(way, operation)).then_some(left_out),
                polls: way.pollers(operation),
                cores: needs,
                doorbell: way.doorbell(),
            }
        };
        Row {
            operation,
            bytes,
            alone: cell(Way::Alone),
            inline: cell(Way::Inline),
            guest: cell(Way::Guest),
            copy: self.samples.copy(bytes),
        }
    }

    /// Counts what isn't timed, and ends the bench.
    fn counts(mut self, plan: &Plan, with_tools: bool) -> Result<Counts> {
        let one_sided = plan.operations.iter().all(|operation| *operation != Operation::Send);
        let (posted_bytes, copied_bytes) = if one_sided || !self.runs(Way::Guest, Operation::Send) {
            (self.posted, self.host.count("copied_bytes"))
        } else {
            self.copied_alone()?
        };
        progress("sleeping");
        let taken = self.guests[0].nanoseconds(&Command::Sleep { messages: SLEEPS })?;
        let mut sleeping = Ok(Sleeping::new(SLEEPS, &taken));
        let mut system_calls = Err("not asked for (--counts)".to_owned());
        if with_tools {
            progress("system calls");
            system_calls = tools::system_calls(&mut self.guests[0], self.host.folder(), self.cores)?;
            if let (Ok(sleeping), Ok(writes)) =
                (&mut sleeping, tools::eventfd_writes(&mut self.guests[0], self.host.folder(), SLEEPS)?)
            {
                (sleeping.guest_writes, sleeping.daemon_writes) = (Some(writes[0]), Some(writes[1]));
            }
        }
        let Self { alone, guests, host, .. } = self;
        alone.leave()?;
        guests.into_iter().try_for_each(Player::leave)?;
        let mut instructions = Err("not asked for (--counts)".to_owned());
        if with_tools {
            progress("instructions");
            instructions = tools::instructions(host.sockets(), host.folder())?;
        }
        host.stop()?;
        Ok(Counts { posted_bytes, copied_bytes, instructions, system_calls, sleeping })
    }

    /// Bytes posted and copied by some writes of their own, where the guests have also sent to each other.
    fn copied_alone(&mut self) -> Result<(u64, u64)> {
        let before = (self.posted, self.host.count("copied_bytes"));
        let (operation, quantity) = (Operation::Write, Quantity::Rate);
        let task = Task { operation, quantity, bytes: MOST_BYTES, messages: 8 };
        self.take(&task, Way::Guest)?;
        Ok((self.posted - before.0, self.host.count("copied_bytes") - before.1))
    }
}

/// Tells on a terminal what is going on just now; empty: nothing any more.
fn progress(what: &str) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        // Start of the line, and erase it.
        let text = if what.is_empty() { String::new() } else { format!("bench: {what} ...") };
        let _nobody_reads = write!(err, "\r\x1b[2K{text}").and_then(|()| err.flush());
    }
}
