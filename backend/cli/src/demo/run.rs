//! The demo, step by step.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use paraverbsd::config::Device;

use super::checks::{Check, Report};
use super::guests::{Guests, Interrupted, NAMES};
use super::host::{Counts, Host, SPIN};
use super::protocol::{Answer, Command, Doorbells, LinkPlan, Operation, Service, Side, Tally, Waiting};
use super::screen::Screen;
use super::table::{self, Row};

/// Bytes of the large transfer.
const TRANSFER: usize = 256 << 20;
/// Sizes of messages that are measured, in bytes.
const SIZES: [u32; 5] = [8, 64, 4 << 10, 64 << 10, 1 << 20];

/// Sizes of messages that are measured of other services than RC, in bytes: those that fit into a datagram, and one.
const OTHER_SIZES: [u32; 3] = [8, 4 << 10, 64 << 10];

/// A link of RC.
const fn plan(outbox: usize, window: usize, receives: u32, slot: u32) -> LinkPlan {
    LinkPlan { service: Service::Rc, outbox, window, receives, slot, one_slot: false }
}

/// The link of the ping-pongs: room for messages of 1 MiB at some distance from the start of the window.
const VERIFIED: LinkPlan = plan(1 << 20, 2 << 20, 8, 1 << 20);
/// The link of the large transfer.
const LARGE: LinkPlan = plan(TRANSFER, TRANSFER, 2, 4096);
/// The link of the wrong rkey, and of the atomics.
const SMALL: LinkPlan = plan(4096, 4096, 1, 4096);
/// The link of the numbers.
const MEASURED: LinkPlan = LinkPlan { one_slot: true, ..plan(1 << 20, 1 << 20, 256, 1 << 20) };

/// What is measured of each service besides RC.
const OTHERS: [(Service, &[Operation]); 3] = [
    (Service::Srq, &[Operation::Send]),
    (Service::Uc, &[Operation::Send, Operation::Write]),
    (Service::Ud, &[Operation::Send]),
];

/// Why what is inside a card is not compared with anything.
const DARK: &str = "the daemon can't look into a card";

/// What a check has found: what was seen, or what was expected and what was seen instead.
type Finding = Result<String, String>;

/// The demo while it runs.
pub(crate) struct Demo<'a> {
    // The guests end before the daemon does.
    guests: Guests,
    screen: &'a Screen,
    report: Report,
    posted: Tally,
    rows: Vec<Row>,
    device: &'a Device,
}

impl<'a> Demo<'a> {
    pub(crate) fn new(guests: Guests, screen: &'a Screen, device: &'a Device) -> Self {
        let (report, posted) = (Report::default(), Tally::default());
        Self { guests, screen, report, posted, rows: Vec::new(), device }
    }

    /// Makes all checks that can be made on a device. Says whether all passed.
    ///
    /// # Errors
    /// The daemon can't be started, or the demo was interrupted.
    pub(crate) fn run(mut self) -> Result<bool> {
        let hca =
            if self.device.is_card() { self.device.to_string() } else { "a software ConnectX-3".into() };
        self.screen.progress(&format!("starting the daemon on {hca}"));
        let host = Host::start(self.device).context("can't start the daemon")?;
        let start = Instant::now();
        let result = self.make_checks(&host);
        // Whatever happened, the guests end first.
        self.guests.kill();
        let stopped = host.stop();
        match (result, stopped) {
            (Ok(Ok(_)), Ok(())) if self.device.is_card() => {
                let why = format!("guests and daemon have gone in order, but {DARK}");
                self.leave_out(Check::Teardown, &why);
            }
            (Ok(finding), Ok(())) => self.note(Check::Teardown, finding),
            (Ok(_), Err(error)) => {
                let seen = format!("expected a daemon that stops in order; {error:#}");
                self.note(Check::Teardown, Err(seen));
            }
            (Err(error), _) if error.is::<Interrupted>() => return Err(error),
            (Err(error), _) => self.screen.line(&format!("FAILED {error:#}")),
        }
        self.report.finish();
        self.show_rows(start.elapsed());
        self.screen.line(&self.report.summary());
        Ok(self.report.is_good())
    }

    /// Makes all checks but the last, which the daemon's end is a part of, and answers what that has found.
    fn make_checks(&mut self, host: &Host) -> Result<Finding> {
        let (dump, counts) = (host.dump(), host.counts());
        self.open(host)?;
        self.ping_pong()?;
        self.other_services()?;
        self.atomics()?;
        self.transfer()?;
        self.wrong_key()?;
        self.measure(Doorbells::Relayed)?;
        self.measure_others()?;
        if self.device.is_card() {
            self.leave_out(Check::Direct, "only the model has direct doorbells so far");
        } else {
            self.direct(host)?;
            self.measure(Doorbells::Direct)?;
        }
        match host.counts().zip(counts) {
            Some((now, before)) => self.compare_counts(&now, &before),
            None => [Check::WorkRequests, Check::Payload, Check::RejectedKeys]
                .into_iter()
                .for_each(|check| self.leave_out(check, DARK)),
        }
        self.screen.progress(Check::Teardown.sentence());
        match self.teardown(host, dump.as_deref()) {
            Err(error) if !error.is::<Interrupted>() => Ok(Err(format!("{error:#}"))),
            finding => finding,
        }
    }

    fn note(&mut self, check: Check, finding: Finding) {
        let text = self.report.note(check, &finding);
        self.screen.line(&text);
    }

    fn leave_out(&mut self, check: Check, why: &str) {
        let text = self.report.leave_out(check, why);
        self.screen.line(&text);
    }

    /// Makes a check that ends the demo if the guests don't answer.
    fn check(&mut self, check: Check, make: impl FnOnce(&mut Self) -> Result<Finding>) -> Result<()> {
        self.screen.progress(check.sentence());
        match make(self) {
            Ok(finding) => self.note(check, finding),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                self.note(check, Err(format!("{error:#}")));
                bail!("the checks after this one were not made");
            }
        }
        Ok(())
    }

    fn open(&mut self, host: &Host) -> Result<()> {
        self.check(Check::Open, |demo| {
            demo.guests.start()?;
            demo.open_devices(host, Doorbells::Relayed)
        })
    }

    /// Opens the devices with such doorbells, in place of those that were open.
    fn open_devices(&mut self, host: &Host, expected: Doorbells) -> Result<Finding> {
        let sockets = host.sockets(expected);
        let answers = self.guests.both(|side| Command::Open { socket: sockets[side as usize].clone() })?;
        let mut seen = Vec::new();
        for (name, answer) in NAMES.iter().zip(answers) {
            let Answer::Opened { device, port, lid, mtu, doorbells } = answer else {
                return unexpected(&answer);
            };
            if port != "PORT_ACTIVE" {
                return Ok(Err(format!("expected PORT_ACTIVE, guest {name} sees {port}")));
            }
            if doorbells != expected {
                let (expected, seen) = (expected.name(), doorbells.name());
                return Ok(Err(format!("expected doorbells {expected}, those of guest {name} are {seen}")));
            }
            seen.push(format!("{device}, LID {lid}, MTU {mtu}, doorbells {}", doorbells.name()));
        }
        Ok(Ok(seen.swap_remove(0)))
    }

    /// Connects a link, and answers the states of the queue pairs.
    fn connect(&mut self, plan: LinkPlan) -> Result<[String; 2]> {
        let answers = self.guests.both(|_| Command::Prepare { plan })?;
        let [Answer::Ready(first), Answer::Ready(second)] = answers else { bail!("no links: {answers:?}") };
        let far = |side| if side == Side::First { second } else { first };
        let answers = self.guests.both(|side| Command::Connect { far: far(side) })?;
        let [Answer::State(first), Answer::State(second)] = answers else { bail!("no states: {answers:?}") };
        Ok([first, second])
    }

    /// Connects a link for what is not a check of its own.
    fn connect_well(&mut self, plan: LinkPlan) -> Result<()> {
        let states = self.connect(plan)?;
        if states != ["RTS", "RTS"] {
            bail!("expected queue pairs in RTS, they are in {}", states.join(" and "));
        }
        Ok(())
    }

    /// Ends a link, and adds up what was posted on it.
    fn disconnect(&mut self) -> Result<()> {
        for answer in self.guests.both(|_| Command::Close)? {
            let Answer::Tally(tally) = answer else { bail!("no tally: {answer:?}") };
            self.posted += tally;
        }
        Ok(())
    }

    fn ping_pong(&mut self) -> Result<()> {
        self.check(Check::Connect, |demo| {
            let states = demo.connect(VERIFIED)?;
            Ok(expect("RTS and RTS", &states.join(" and ")))
        })?;
        for (operation, check) in
            Operation::MESSAGES.into_iter().zip([Check::Send, Check::Write, Check::Read])
        {
            self.check(check, |demo| demo.exchange(&[operation]))?;
        }
        self.disconnect()
    }

    /// Ping-pongs by operations, one after the other.
    fn exchange(&mut self, operations: &[Operation]) -> Result<Finding> {
        let (mut there, mut back, mut total) = (0, 0, 0);
        for operation in operations.iter().copied() {
            let answers = self.guests.both(|side| Command::PingPong { operation, side })?;
            let [
                Answer::Verified { messages, bytes },
                Answer::Verified { messages: messages_there, bytes: bytes_there },
            ] = answers
            else {
                return unexpected(&answers);
            };
            there += messages_there;
            back += messages;
            total += bytes + bytes_there;
        }
        let kilobytes = total as f64 / 1e3;
        Ok(Ok(format!("{there} messages from a to b and {back} back, {kilobytes:.0} kB")))
    }

    /// Ping-pongs over links of the other services.
    fn other_services(&mut self) -> Result<()> {
        for (check, service, operations) in [
            (Check::Uc, Service::Uc, &[Operation::Send, Operation::Write][..]),
            (Check::Ud, Service::Ud, &[Operation::Send]),
            (Check::Srq, Service::Srq, &[Operation::Send]),
        ] {
            self.check(check, |demo| {
                demo.connect_well(LinkPlan { service, ..VERIFIED })?;
                let finding = demo.exchange(operations)?;
                demo.disconnect()?;
                Ok(finding)
            })?;
        }
        Ok(())
    }

    fn atomics(&mut self) -> Result<()> {
        self.check(Check::Atomics, |demo| {
            demo.connect_well(SMALL)?;
            let answers = demo.guests.both(|side| Command::Atomics { side })?;
            let [Answer::Verified { messages, .. }, Answer::Verified { .. }] = answers else {
                return unexpected(&answers);
            };
            demo.disconnect()?;
            Ok(Ok(format!("{messages} operations, and the word has the value that it must have")))
        })
    }

    /// Opens devices whose doorbells are mapped into the guests.
    fn direct(&mut self, host: &Host) -> Result<()> {
        self.check(Check::Direct, |demo| {
            if let Err(seen) = demo.open_devices(host, Doorbells::Direct)? {
                return Ok(Err(seen));
            }
            demo.connect_well(VERIFIED)?;
            let finding = demo.exchange(&Operation::MESSAGES)?;
            demo.disconnect()?;
            Ok(finding)
        })
    }

    fn transfer(&mut self) -> Result<()> {
        self.check(Check::Transfer, |demo| {
            demo.connect_well(LARGE)?;
            let answers = demo.guests.both(|side| Command::Transfer { side })?;
            let [
                Answer::Transferred { bytes, crc32, seconds },
                Answer::Transferred { bytes: arrived, crc32: seen, .. },
            ] = answers
            else {
                return unexpected(&answers);
            };
            demo.disconnect()?;
            let whole = TRANSFER as u64;
            Ok(expect(
                &format!("{whole} bytes, CRC-32 {crc32:08x}"),
                &format!("{arrived} bytes, CRC-32 {seen:08x}"),
            )
            .map(|detail| {
                let speed = bytes as f64 / seconds / 1e9;
                format!("{detail}, in {seconds:.2} s ({speed:.1} GB/s)")
            }))
        })
    }

    fn wrong_key(&mut self) -> Result<()> {
        let mut refusals = None;
        self.check(Check::WrongKey, |demo| {
            demo.connect_well(SMALL)?;
            let answers = demo.guests.both(|side| Command::WrongKey { side })?;
            let [Answer::Refused(first), Answer::Refused(second)] = answers else {
                return unexpected(&answers);
            };
            demo.disconnect()?;
            let finding = expect("IBV_WC_REM_ACCESS_ERR", &first.status);
            refusals = Some((first, second));
            Ok(finding)
        })?;
        let Some((first, second)) = refusals else { return Ok(()) };
        let event = second.event.as_deref().unwrap_or("no event");
        let seen = format!(
            "requester in {}; owner of the memory in {}, {event}, receive ended with {}",
            first.state, second.state, second.status
        );
        let expected = "requester in ERR; owner of the memory in ERR, QpAccessErr, receive ended with IBV_WC_WR_FLUSH_ERR";
        self.note(Check::ErrorState, expect(expected, &seen));
        let memory = |untouched| if untouched { "zeroed as before" } else { "written to" };
        self.note(Check::Untouched, expect(memory(true), memory(second.untouched)));
        Ok(())
    }

    /// Measures RC; with relayed doorbells atomics too.
    fn measure(&mut self, doorbells: Doorbells) -> Result<()> {
        self.connect_well(MEASURED)?;
        for operation in Operation::MESSAGES {
            self.measure_sizes(operation, Service::Rc, doorbells, &SIZES)?;
        }
        if doorbells == Doorbells::Relayed {
            for operation in [Operation::FetchAdd, Operation::CompareSwap] {
                self.measure_sizes(operation, Service::Rc, doorbells, &[8])?;
            }
        }
        self.disconnect()
    }

    fn measure_others(&mut self) -> Result<()> {
        for (service, operations) in OTHERS {
            self.connect_well(LinkPlan { service, ..MEASURED })?;
            let sizes = if service == Service::Ud { &OTHER_SIZES[..2] } else { &OTHER_SIZES };
            for operation in operations {
                self.measure_sizes(*operation, service, Doorbells::Relayed, sizes)?;
            }
            self.disconnect()?;
        }
        Ok(())
    }

    fn measure_sizes(
        &mut self,
        operation: Operation,
        service: Service,
        doorbells: Doorbells,
        sizes: &[u32],
    ) -> Result<()> {
        let waiting = waiting(operation);
        for bytes in sizes.iter().copied() {
            let what = format!("{} ({}, {})", operation.name(), service.name(), doorbells.name());
            self.screen.progress(&format!("measuring {what} of {}", table::size(bytes)));
            let answers = self.guests.both(|side| Command::Measure { operation, bytes, waiting, side })?;
            let [Answer::Measured(Some(measured)), Answer::Measured(None)] = answers else {
                bail!("no numbers: {answers:?}");
            };
            self.rows.push(Row { operation, service, doorbells, bytes, waiting, measured });
        }
        Ok(())
    }

    /// All links are closed, so all that was posted has been executed or flushed.
    fn compare_counts(&mut self, now: &Counts, before: &Counts) {
        let Tally { sends, datagrams, receives, received, received_datagrams, flushed, payload, wrong_keys } =
            self.posted;
        let count = |name| now.since(before, name);
        let requests = |sends, receives, flushed| {
            format!("{sends} send and {receives} receive requests executed, {flushed} flushed")
        };
        let mut finding = expect(
            &requests(sends, received, flushed),
            &requests(count("send_wqes"), count("receive_wqes"), count("flushed_wqes")),
        )
        .map(|seen| format!("{seen}; {received_datagrams} datagrams received"));
        if received + received_datagrams + flushed != receives {
            finding = Err(format!(
                "expected {receives} receives; {received}, {received_datagrams} of datagrams and {flushed} flushed were seen"
            ));
        }
        // The model counts those of the subnet manager too.
        if received_datagrams != datagrams {
            finding = Err(format!("expected {datagrams} datagrams, {received_datagrams} were received"));
        }
        self.note(Check::WorkRequests, finding);
        let bytes = |count: u64| format!("{count} bytes");
        self.note(Check::Payload, expect(&bytes(payload), &bytes(count("payload_bytes"))));
        let keys = |count: u64| format!("{count} wrong rkey");
        self.note(Check::RejectedKeys, expect(&keys(wrong_keys), &keys(count("rejected_rkeys"))));
    }

    fn teardown(&mut self, host: &Host, before: Option<&str>) -> Result<Finding> {
        self.guests.both(|_| Command::Leave)?;
        self.guests.wait()?;
        Ok(match host.wait_alone() {
            Ok(dump) => expect(before.unwrap_or_default(), dump.as_deref().unwrap_or_default())
                .map(|_| "the model's dump is the one before".into()),
            Err(left) => Err(format!("expected no guest, {left} still connected")),
        })
    }

    fn show_rows(&self, elapsed: Duration) {
        if self.rows.is_empty() {
            return;
        }
        let (cores, spin) = (cores(), SPIN.as_micros());
        self.screen.line("");
        self.screen.line(&table::render(&self.rows));
        self.screen
            .line("Latency is half a round trip for send, and from posting to completion for the others.");
        self.screen.line(&format!(
            "The engine is the daemon's thread; it {}, and sleeps after {spin} µs without.",
            if self.device.is_card() { "relays doorbells to the card" } else { "executes all work requests" }
        ));
        self.screen.line(&format!("{cores} cores, {:.1} s in all.", elapsed.as_secs_f64()));
    }
}

/// Polling guests and the engine need a core each; where there are fewer, guests sleep.
fn waiting(operation: Operation) -> Waiting {
    let pollers = if operation.is_two_sided() { 3 } else { 2 };
    if cores() < pollers { Waiting::Sleep } else { Waiting::Poll }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn expect(expected: &str, seen: &str) -> Finding {
    if seen == expected { Ok(seen.to_owned()) } else { Err(format!("expected {expected}; seen {seen}")) }
}

fn unexpected(answer: &impl std::fmt::Debug) -> Result<Finding> {
    bail!("an answer of another kind: {answer:?}")
}
