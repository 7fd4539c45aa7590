//! apt on a configuration, sources and state of its own.
//!
//! The host's apt.conf (proxies, time-outs) is read first; what matters here is then set anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::mirror;
use crate::process;

/// Downloads of some hundred megabytes.
const LIMIT: Duration = Duration::from_secs(1200);

/// The private apt.
#[derive(Debug)]
pub(super) struct Apt {
    folder: PathBuf,
    config: PathBuf,
    prefer: Option<&'static str>,
}

impl Apt {
    /// An apt that lives in `folder` and knows no installed packages.
    pub(super) fn new(folder: &Path, suites: &[&str], prefer: Option<&'static str>) -> Result<Self> {
        let folder = folder.canonicalize().context("the rig's folder")?;
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        fs::write(folder.join("status"), "")?;
        let sources = folder.join("debian.sources");
        fs::write(
            &sources,
            format!(
                "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nArchitectures: amd64\nSigned-By: {}\n",
                mirror::uri()?,
                suites.join(" "),
                keyring()?.display()
            ),
        )?;
        let config = folder.join("apt.conf");
        fs::write(&config, configuration(&folder, &sources))?;
        Ok(Self { folder, config, prefer })
    }

    /// Fetches the lists of packages and checks their signatures.
    pub(super) fn update(&self) -> Result<()> {
        let mut command = self.command("apt-get")?;
        // Without this apt goes on with what it has when an index can't be fetched.
        command.args(["update", "-qq", "-o", "APT::Update::Error-Mode=any"]);
        process::run(&command, LIMIT).map(drop).context("fetch the lists of packages")
    }

    /// Downloads packages and everything that they depend on; gives the archives.
    pub(super) fn download_with_dependencies(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut command = self.command("apt-get")?;
        command.args(["install", "-qq", "-y", "--download-only"]);
        if let Some(suite) = self.prefer {
            command.args(["-t", suite]);
        }
        command.args(names);
        process::run(&command, LIMIT).with_context(|| format!("download {}", names.join(" ")))?;
        archives(&self.folder.join("cache/archives"))
    }

    /// Downloads packages without what they depend on; gives the archives.
    pub(super) fn download_alone(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let place = self.folder.join("alone");
        fs::create_dir_all(&place)?;
        let mut command = self.command("apt-get")?;
        command.args(["download", "-qq"]).args(names).current_dir(&place);
        process::run(&command, LIMIT).with_context(|| format!("download {}", names.join(" ")))?;
        archives(&place)
    }

    /// The name, starting with `prefix`, of a package that `of` depends on.
    pub(super) fn dependency(&self, of: &str, prefix: &str) -> Result<String> {
        let mut command = self.command("apt-cache")?;
        command.args(["depends", "--important", of]);
        let text = String::from_utf8(process::run(&command, LIMIT)?)?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{of} depends on no {prefix}*: {text}"))
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(process::find(program, "apt")?);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command)
    }
}

/// Debian's keys, which sign the lists of packages.
fn keyring() -> Result<PathBuf> {
    ["debian-archive-keyring.gpg", "debian-archive-keyring.pgp"]
        .map(|name| Path::new("/usr/share/keyrings").join(name))
        .into_iter()
        .find(|file| file.is_file())
        .context("Debian's keys are not on this machine (Debian package debian-archive-keyring)")
}

fn configuration(folder: &Path, sources: &Path) -> String {
    let folder = folder.display();
    let sources = sources.display();
    // The hooks that are cleared act on the host's own packages.
    format!(
        r##"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Default-Release;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "60";
Acquire::https::Timeout "60";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "archives";
Dir::Etc::sourcelist "{sources}";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"##
    )
}

fn archives(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!("apt downloaded nothing");
    }
    found.sort();
    Ok(found)
}
