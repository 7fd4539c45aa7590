//! `cargo xtask fuzz`: the targets of integration/fuzz under libFuzzer, built with coverage by stable Rust.
//!
//! What is found is put in integration/fuzz/regressions, where a test finds it; what covers more is kept in
//! target/fuzz/corpus for the next run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The targets, as `paraverbs_fuzz` has them.
const TARGETS: [&str; 5] = ["control", "rings", "mads", "vfio_user", "card"];

/// What rustc is told for coverage: counters for each edge, and the operands of comparisons.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";

/// Longest input in bytes.
const LONGEST: usize = 2048;
/// Seconds after which an input hangs.
const HANG: u32 = 60;
/// Megabytes after which a target leaks.
const MEMORY_MB: u32 = 4096;
/// How often the targets' ends are looked for.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Targets; all, if none is named
    target: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Targets that run at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// What libFuzzer's choices are made of
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

impl Args {
    /// All targets, for so long.
    pub(crate) fn all(seconds: u32) -> Self {
        Self { target: Vec::new(), seconds, jobs: 2, seed: 1 }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    for name in &args.target {
        if !TARGETS.contains(&name.as_str()) {
            bail!("there is no target {name}; there are {}", TARGETS.join(", "));
        }
    }
    let program = build()?;
    let wanted = |name: &&str| args.target.is_empty() || args.target.iter().any(|wanted| wanted == name);
    let mut waiting: Vec<&str> = TARGETS.into_iter().filter(wanted).rev().collect();
    let mut running = BTreeMap::new();
    let mut failed = Vec::new();
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < args.jobs.max(1)
            && let Some(name) = waiting.pop()
        {
            running.insert(name, Run::start(&program, name, args)?);
        }
        std::thread::sleep(PAUSE);
        let names: Vec<&str> = running.keys().copied().collect();
        for name in names {
            let ended = running.get_mut(name).map(Run::ended).transpose()?.unwrap_or(false);
            if ended && let Some(run) = running.remove(name) {
                failed.extend(run.report(name)?);
            }
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing found something:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// Builds the fuzzing program, in a target folder of its own: its flags would build everything else anew.
fn build() -> Result<PathBuf> {
    let root = crate::root();
    let folder = root.join("target").join("fuzz");
    let host = host()?;
    println!("fuzz: builds the targets with coverage");
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(["build", "--quiet", "--locked", "--profile", "fuzz", "--package", "paraverbs-fuzz"])
        .args(["--features", "libfuzzer", "--bin", "paraverbs-fuzz", "--target", &host])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", COVERAGE)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(&root)
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("the fuzz targets can't be built ({status}); libFuzzer needs a C++ compiler");
    }
    Ok(folder.join(host).join("fuzz").join("paraverbs-fuzz"))
}

/// The machine that this runs on, as rustc names it. With it named, build scripts get no coverage.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("ask rustc for its host")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc doesn't name its host")?.to_owned())
}

/// A target that runs.
struct Run {
    child: Child,
    log: PathBuf,
}

impl Run {
    fn start(program: &Path, name: &str, args: &Args) -> Result<Self> {
        let root = crate::root();
        let corpus = root.join("target").join("fuzz").join("corpus").join(name);
        let found = root.join("integration").join("fuzz").join("regressions").join(name);
        for folder in [&corpus, &found] {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let log = root.join("target").join("fuzz").join(format!("{name}.log"));
        let output = fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
        let child = Command::new(program)
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-seed={}", args.seed))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-timeout={HANG}"))
            .arg(format!("-rss_limit_mb={MEMORY_MB}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args(["-print_final_stats=1", "-use_value_profile=1"])
            .arg(&corpus)
            .arg(&found)
            .env("PARAVERBS_FUZZ_TARGET", name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, log })
    }

    fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("wait for a target")?.is_some())
    }

    /// Prints what the target did; answers what it found.
    fn report(mut self, name: &str) -> Result<Option<String>> {
        let status = self.child.wait().context("wait for a target")?;
        let text = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let stat = |key: &str| {
            let line = text.lines().rev().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("?").to_owned()
        };
        let covered = text.lines().rev().find_map(|line| line.split("cov: ").nth(1)?.split(' ').next());
        println!(
            "fuzz: {name}: {} inputs, {} a second, {} edges covered, {}",
            stat("stat::number_of_executed_units:"),
            stat("stat::average_exec_per_sec:"),
            covered.unwrap_or("?"),
            if status.success() { "nothing found".to_owned() } else { format!("ended with {status}") }
        );
        if status.success() {
            return Ok(None);
        }
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        Ok(Some(format!("{name} (its log is {}):\n{tail}", self.log.display())))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong here.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
