//! A guest is killed (SIGKILL) again and again, each time with requests outstanding in both directions, while
//! two others exchange data: they see no error, and everything that the dead one had is given back.
//!
//! `PARAVERBS_SEED` repeats a run's random moments; `PARAVERBS_KILLS` is the number of kills.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use integration::load::{
    End, Ending, Patience, RALLY_BYTES, SPAR_BYTES, SPAR_DEPTH, Side, Victim, rally, spar,
};
use paraverbs_verbs::{Context, WcStatus};
use paraverbsd::Daemon;
use paraverbsd::config::{Config, Device, GuestEntry, GuestKind};
use virtio_rdma::request::query::Stats;

const KILLS: u64 = 200;
/// How long a victim may live once it is busy, at most.
const LIFE: Duration = Duration::from_millis(20);
/// How long it may take until everything has been given back.
const SETTLE: Duration = Duration::from_secs(20);

/// What there is: in the model, in the driver, in the daemon, in this process.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    /// The model's objects by kind; how much ICM they once needed is left out.
    model: serde_json::Value,
    driver: usize,
    quarantined_bytes: u64,
    /// Of each guest: its name, whether it is connected, and its objects.
    guests: Vec<(String, bool, Vec<u64>)>,
    descriptors: usize,
    /// Mappings of guests' memory.
    mappings: usize,
}

impl Counts {
    fn of(daemon: &Daemon) -> Result<Self> {
        let status = daemon.status();
        let model = daemon.model().context("the device is no model")?;
        let mut model: serde_json::Value = serde_json::from_str(&model.dump())?;
        if let Some(model) = model.as_object_mut() {
            model.remove("icm_pages");
        }
        let guests = status.guests.iter().map(|guest| {
            let objects = guest.stats.map(|stats| objects(&stats)).unwrap_or_default();
            (guest.name.clone(), guest.connected, objects)
        });
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(Self {
            model,
            driver: status.objects,
            quarantined_bytes: status.quarantined_bytes,
            guests: guests.collect(),
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
        })
    }
}

fn objects(stats: &Stats) -> Vec<u64> {
    vec![
        stats.objects.get().into(),
        stats.quarantined.get().into(),
        stats.registered_bytes.get(),
        stats.mapped_bytes.get(),
    ]
}

/// Waits until the counts are those of `before`.
fn settle(daemon: &Daemon, before: &Counts) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let now = Counts::of(daemon)?;
        if now == *before {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not given back after {SETTLE:?}: {now:#?}\nbefore: {before:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Two guests that exchange data until they are stopped.
struct Rally {
    stop: Arc<AtomicBool>,
    players: Vec<JoinHandle<Result<u64>>>,
}

impl Rally {
    fn start(contexts: [&Context; 2]) -> Result<Self> {
        let [one, other] = contexts.map(|context| End::new(context, RALLY_BYTES, 8));
        let (one, other) = (one?, other?);
        let (at_one, at_other) = (one.endpoint(), other.endpoint());
        one.connect(&at_other, Patience::Long)?;
        other.connect(&at_one, Patience::Long)?;
        let stop = Arc::<AtomicBool>::default();
        let play = |end: End, to, side| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || rally(&end, to, side, &stop))
        };
        let players = vec![play(other, at_one, Side::Second), play(one, at_other, Side::First)];
        Ok(Self { stop, players })
    }

    /// Fails if one of them has ended, as it does after an error.
    fn check(&self) -> Result<()> {
        ensure!(
            !self.players.iter().any(JoinHandle::is_finished),
            "the two others don't exchange data any more"
        );
        Ok(())
    }

    /// Ends it; answers how many messages there were.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut messages = 0;
        for player in self.players {
            messages += player.join().map_err(|_| anyhow!("a player has panicked"))??;
        }
        Ok(messages)
    }
}

/// Starts a victim whose two ends are connected to a guest each, and kills it after `life` under load.
fn kill_one(contexts: [&Context; 2], program: &Path, socket: &Path, life: Duration) -> Result<[Ending; 2]> {
    let [one, other] = contexts.map(|context| End::new(context, SPAR_BYTES, SPAR_DEPTH));
    let ours = [one?, other?];
    let (mut victim, theirs) = Victim::start(program, socket, ours.len())?;
    let [to_one, to_other] = *theirs else { bail!("the victim has {} ends", theirs.len()) };
    for (end, to) in ours.iter().zip([&to_one, &to_other]) {
        end.connect(to, Patience::Short)?;
    }
    victim.connect(&ours.each_ref().map(End::endpoint))?;
    let (busy, all_busy) = channel();
    thread::scope(|scope| {
        let [one, other] = [(&ours[0], to_one), (&ours[1], to_other)].map(|(end, to)| {
            let busy = busy.clone();
            scope.spawn(move || spar(end, to, || busy.send(()).unwrap_or_default()))
        });
        for _ in 0..2 {
            all_busy.recv_timeout(SETTLE).context("requests aren't outstanding")?;
        }
        thread::sleep(life);
        victim.kill()?;
        let join = |end: thread::ScopedJoinHandle<'_, Result<Ending>>| {
            end.join().map_err(|_| anyhow!("a sparring thread has panicked"))?
        };
        Ok([join(one)?, join(other)?])
    })
}

#[test]
fn guest_killed_under_load_costs_the_others_nothing() -> Result<()> {
    let kills = number("PARAVERBS_KILLS")?.unwrap_or(KILLS);
    let seed = match number("PARAVERBS_SEED")? {
        Some(seed) => seed,
        None => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
    };
    println!("PARAVERBS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    let folder = tempfile::tempdir()?;
    let sockets = ["one", "other", "victim"].map(|name| (name, folder.path().join(name)));
    let guests = sockets.iter().map(|(name, path)| GuestEntry::new(name, path, GuestKind::Process));
    let config = Config {
        device: Device::default(),
        fabric_sockets: Vec::new(),
        guests: guests.collect(),
        spin: None,
    };
    let daemon = Daemon::start(&config)?;
    let [one, other] = [&sockets[0].1, &sockets[1].1].map(Context::connect);
    let (one, other) = (one?, other?);
    let contexts = [&one, &other];
    let program = Path::new(env!("CARGO_BIN_EXE_rig-victim"));
    let victim = &sockets[2].1;

    let rally = Rally::start(contexts)?;
    // What two guests once needed for connections they keep for the next ones.
    drop(contexts.map(|context| End::new(context, SPAR_BYTES, SPAR_DEPTH)));
    let before = Counts::of(&daemon)?;
    let mut done = 0;
    for kill in 1..=kills {
        let what = || format!("kill {kill} of seed {seed}");
        rally.check().with_context(what)?;
        let endings = kill_one(contexts, program, victim, LIFE.mul_f64(random.f64())).with_context(what)?;
        for ending in endings {
            // The dead one's queue pair answers nothing; that its memory is refused would say that it went
            // before the queue pair.
            ensure!(ending.status == WcStatus::RetryExcErr, "{}: {ending:?}", what());
            done += ending.done;
        }
        settle(&daemon, &before).with_context(what)?;
    }
    let messages = rally.stop()?;
    ensure!(messages > kills, "only {messages} messages in {kills} kills");
    println!(
        "{kills} kills; {messages} messages between the two others; {done} requests of theirs with the dead"
    );
    println!("each time as before: {before:?}");
    drop((one, other));
    let model = Arc::clone(daemon.model().context("the device is no model")?);
    daemon.stop()?;
    let left: serde_json::Value = serde_json::from_str(&model.dump())?;
    ensure!(left["running"] == false && left["icm_pages"] == 0, "left in the model: {left}");
    Ok(())
}

fn number(variable: &str) -> Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{variable}={text:?}"))?)),
        Err(_) => Ok(None),
    }
}
