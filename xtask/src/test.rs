//! `cargo xtask test`: the checks that need no build, the rig, and every test of the workspace.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use integration::Rig;

/// Every test but those that boot VMs, which are the tests of this one package.
const WITHOUT_VMS: &str = "not (package(integration) and kind(test))";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that boot VMs
    #[arg(long)]
    no_vm: bool,
    /// Run only tests whose names contain one of these
    filter: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::edges::run()?;
    crate::unsafe_code::run()?;
    crate::cargo(&["build", "--quiet", "--workspace", "--bins"], &[])?;
    if args.no_vm {
        println!("test: the tests that boot VMs are left out (--no-vm)");
    } else {
        let rig = Rig::prepare().context("prepare the rig for the tests that boot VMs")?;
        println!("test: the rig is ready in {}", rig.folder().display());
    }
    let exe = std::env::current_exe().context("find this program")?;
    let programs = exe.parent().context("this program is in no folder")?;
    let envs = [("PARAVERBS_BIN_DIR", programs)];
    let filter = args.filter.iter().map(String::as_str);
    if has_nextest() {
        let mut command = vec!["nextest", "run", "--workspace"];
        if args.no_vm {
            command.extend(["-E", WITHOUT_VMS]);
        }
        command.extend(filter);
        crate::cargo(&command, &envs)?;
    } else if args.no_vm {
        let filter: Vec<&str> = filter.collect();
        let others = ["test", "--workspace", "--exclude", "integration", "--all-targets", "--"];
        crate::cargo(&[&others[..], &filter[..]].concat(), &envs)?;
        let own = ["test", "--package", "integration", "--lib", "--bins", "--"];
        crate::cargo(&[&own[..], &filter[..]].concat(), &envs)?;
    } else {
        let command = ["test", "--workspace", "--all-targets", "--no-fail-fast", "--"];
        crate::cargo(&[&command[..], &filter.collect::<Vec<_>>()[..]].concat(), &envs)?;
    }
    // nextest doesn't run the examples of the documentation, and they have no names to filter by.
    if args.filter.is_empty() {
        crate::cargo(&["test", "--quiet", "--workspace", "--doc"], &envs)?;
    }
    Ok(())
}

fn has_nextest() -> bool {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let version = Command::new(cargo)
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}
