//! `cargo xtask fuzz`: builds the targets of integration/fuzz with coverage, by flags that stable Rust takes, and
//! lets LLVM's fuzzer run them. Nothing needs to be installed but a C++ compiler.
//!
//! What it has found interesting stays in target/fuzz/corpus; what broke a target, in target/fuzz/found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// The targets.
const TARGETS: [&str; 5] = ["control", "rings", "mads", "vfio_user", "card"];

/// What coverage takes: counters of edges, their places, and the values that are compared.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing";

/// Seconds after which an input counts as hanging: far beyond what a busy machine makes of the longest.
const TIMEOUT: u32 = 120;
/// Megabytes of memory that a target may use.
const MEMORY: u32 = 4096;
/// Longest input in bytes.
const LONGEST: u32 = 4096;
/// Where the fuzzer's choices begin if nobody says. It takes 0 as leave to choose by itself.
const SEED: u32 = 1;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Targets; all of them if none is named
    #[arg(value_parser = TARGETS)]
    target: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Targets that run at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Where the fuzzer's choices begin: one number, the same choices; another for each long run
    #[arg(long, default_value_t = SEED, value_parser = clap::value_parser!(u32).range(1..))]
    seed: u32,
}

impl Args {
    /// A minute for each target, two at once.
    pub(crate) fn a_minute_each() -> Self {
        Self { target: Vec::new(), seconds: 60, jobs: 2, seed: SEED }
    }
}

/// How a target's run has ended.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    executions: u64,
    coverage: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = build()?;
    let wanted =
        TARGETS.iter().filter(|name| args.target.is_empty() || args.target.iter().any(|t| t == *name));
    let wanted: Vec<&str> = wanted.copied().collect();
    let mut failed = Vec::new();
    for names in wanted.chunks(args.jobs.max(1)) {
        let started: Vec<(&str, Child)> =
            names.iter().map(|name| Ok((*name, start(&program, name, args)?))).collect::<Result<_>>()?;
        for (name, mut child) in started {
            let status = child.wait().with_context(|| format!("wait for {name}"))?;
            let text = fs::read_to_string(log(name)).unwrap_or_default();
            let summary = summary(&text);
            println!(
                "fuzz: {name}: {} executions, {} edges covered, {}",
                summary.executions,
                summary.coverage,
                if status.success() { "nothing found" } else { "CRASHED" }
            );
            if !status.success() {
                println!("{}", last_lines(&text));
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} failed; the inputs are in {}", failed.join(", "), folder("found").display());
    }
    Ok(())
}

fn folder(name: &str) -> PathBuf {
    crate::root().join("target/fuzz").join(name)
}

fn log(name: &str) -> PathBuf {
    folder("logs").join(name)
}

/// Builds the targets; returns the program.
fn build() -> Result<PathBuf> {
    let target = folder("");
    // With a platform named, the flags are for what runs on it only: not for build scripts and macros.
    let platform = platform()?;
    let arguments = [
        "build",
        "--quiet",
        "--locked",
        "--package",
        "paraverbs-fuzz",
        "--features",
        "libfuzzer",
        "--bin",
        "fuzz-target",
        "--profile",
        "fuzz",
        "--target",
        &platform,
    ];
    let envs = [("RUSTFLAGS", Path::new(FLAGS)), ("CARGO_TARGET_DIR", target.as_path())];
    crate::cargo(&arguments, &envs)?;
    Ok(target.join(platform).join("fuzz/fuzz-target"))
}

/// The platform that this is.
fn platform() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("ask rustc for its version")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc doesn't say what it runs on")?.to_owned())
}

fn start(program: &Path, name: &str, args: &Args) -> Result<Child> {
    let (corpus, found) = (folder("corpus").join(name), folder("found").join(name));
    for folder in [&corpus, &found, &folder("logs")] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let seeds = crate::root().join("integration/fuzz/regressions").join(name);
    let output = fs::File::create(log(name)).context("make the fuzzer's log")?;
    Command::new(program)
        .env("PARAVERBS_FUZZ", name)
        .args([&corpus, &seeds])
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-seed={}", args.seed))
        // A slow machine is no finding.
        .args(["-report_slow_units=600", "-print_final_stats=1", "-verbosity=1"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("share the fuzzer's log")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// The numbers that the fuzzer's log ends with.
fn summary(text: &str) -> Summary {
    let number = |word: &str| word.parse().unwrap_or(0);
    let stat =
        |line: &str| line.strip_prefix("stat::number_of_executed_units:").map(|rest| number(rest.trim()));
    let executions = text.lines().find_map(stat);
    let mut progress = (0, 0);
    for line in text.lines().filter(|line| line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(place) = words.iter().position(|word| *word == "cov:") else { continue };
        let executed = words.first().map_or(0, |word| number(word.trim_start_matches('#')));
        progress = (executed, words.get(place + 1).map_or(0, |word| number(word)));
    }
    Summary { executions: executions.unwrap_or(progress.0), coverage: progress.1 }
}

/// The end of a log, without the fuzzer's progress.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_folders_of_inputs() {
        for name in TARGETS {
            let folder = crate::root().join("integration/fuzz/regressions").join(name);
            assert!(folder.is_dir(), "{} isn't there", folder.display());
        }
    }

    #[test]
    fn summary_is_read_from_the_log() {
        let log = "INFO: Seed: 1\n#2\tINITED cov: 21 ft: 30 corp: 1/1b\n#70\tNEW    cov: 35 ft: 40\n";
        assert_eq!(summary(log), Summary { executions: 70, coverage: 35 });
        let done = format!("{log}stat::number_of_executed_units: 90\n");
        assert_eq!(summary(&done), Summary { executions: 90, coverage: 35 });
        assert_eq!(summary("nothing"), Summary { executions: 0, coverage: 0 });
    }
}
