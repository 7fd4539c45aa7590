//! The workspace's own programs, as cargo builds them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{paths, process};

/// A build of one program on a busy machine of two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// The path of the workspace's program `name` of package `package`, built anew if it is stale, in the
/// profile that the caller was built in.
///
/// The variable `PARAVERBS_BIN_DIR` names a folder of finished programs instead.
///
/// # Errors
/// It can't be built, or isn't there.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("PARAVERBS_BIN_DIR") {
        return existing(PathBuf::from(folder).join(name));
    }
    let release = !cfg!(debug_assertions);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", package, "--bin", name]).current_dir(paths::workspace());
    build.arg("--target-dir").arg(paths::target());
    if release {
        build.arg("--release");
    }
    process::run(&build, BUILD_LIMIT).with_context(|| format!("build {name}"))?;
    existing(paths::target().join(if release { "release" } else { "debug" }).join(name))
}

/// The path of a test program of the workspace, built anew if it is stale, as a run of all tests builds it.
///
/// # Errors
/// It can't be built.
pub fn test_program(package: &str, file: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["test", "--quiet", "--workspace", "--no-run", "--message-format=json", "--test", file]);
    build.arg("--target-dir").arg(paths::target()).current_dir(paths::workspace());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = process::run(&build, BUILD_LIMIT).with_context(|| format!("build test {file}"))?;
    let messages = String::from_utf8_lossy(&output).into_owned();
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|message| {
            let of = message["package_id"].as_str().is_some_and(|id| {
                id.contains(&format!("{package}@")) || id.contains(&format!("/{package}#"))
            });
            of && message["target"]["name"] == file && message["executable"].is_string()
        });
    let program = program.with_context(|| format!("cargo built no test {file} of {package}"))?;
    existing(PathBuf::from(program["executable"].as_str().unwrap_or_default()))
}

/// The agent, which cargo builds together with the tests of this crate.
pub(crate) fn agent() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find this program")?;
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("rig-agent"))
        .find(|file| file.is_file())
        .context("the agent is not built: cargo build --package integration --bin rig-agent")
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("there is no program {}", path.display());
    }
    Ok(path)
}
