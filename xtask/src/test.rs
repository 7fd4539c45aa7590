//! `cargo xtask test`: the checks that need no build, the rig, every test of the workspace, and a minute of each fuzz
//! target.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use integration::Rig;

/// The files in `integration/tests` whose tests boot VMs.
const WITH_VMS: &[&str] = &[
    "boot",
    "driver_stock",
    "driver_vfio",
    "mlx4_pair",
    "mlx4_stock",
    "stock_cm",
    "stock_diags",
    "stock_life",
    "stock_opensm",
    "stock_perftest",
    "stock_pyverbs",
    "stock_speed",
    "stock_storage",
    "vfio_daemon",
    "witness_guest",
];

/// The file of the driver's tests in which the device lies.
const LIES: &str = "corrupt";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that boot VMs
    #[arg(long)]
    no_vm: bool,
    /// Leave out the fuzz targets; with a filter they are left out too
    #[arg(long)]
    no_fuzz: bool,
    /// Repeat what is slow as often as it ought to be: loading a driver 20 times, not 3
    #[arg(long)]
    all: bool,
    /// Run only tests with one of these in their own name or their file's
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
    let mut envs = vec![("PARAVERBS_BIN_DIR", programs)];
    if args.all {
        envs.push(("PARAVERBS_ALL", Path::new("1")));
    }
    if has_nextest() {
        let expression = expression(&args.filter, args.no_vm);
        crate::cargo(&["nextest", "run", "--workspace", "-E", &expression], &envs)?;
    } else {
        for command in commands(&args.filter, args.no_vm, &test_files(None)?) {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            crate::cargo(&command, &envs)?;
        }
    }
    again_through_vfio_user(args, &envs)?;
    // nextest doesn't run the examples of the documentation, and they have no names to filter by.
    if args.filter.is_empty() {
        crate::cargo(&["test", "--quiet", "--workspace", "--doc"], &envs)?;
        if args.no_fuzz {
            println!("test: the fuzz targets are left out (--no-fuzz)");
        } else {
            crate::fuzz::run(&crate::fuzz::Args::a_minute_each())?;
        }
    }
    Ok(())
}

/// The driver's own tests once more, with a socket between driver and card: nothing in them or in the driver
/// knows the difference.
fn again_through_vfio_user(args: &Args, envs: &[(&str, &Path)]) -> Result<()> {
    println!("test: the driver's tests again, through vfio-user (PARAVERBS_SEAM=vfio-user)");
    if !args.all {
        println!("test: but not its answers to lies of the device, which take minutes (--all runs them too)");
    }
    let mut envs = envs.to_vec();
    envs.push(("PARAVERBS_SEAM", Path::new("vfio-user")));
    if has_nextest() {
        let lies = if args.all { "none()".to_owned() } else { format!("binary(={LIES})") };
        let wanted = expression(&args.filter, false);
        let wanted = format!("(package(mlx4) & kind(test) & ({wanted})) - {lies}");
        let none = if args.filter.is_empty() { "fail" } else { "pass" };
        return crate::cargo(&["nextest", "run", "--workspace", "--no-tests", none, "-E", &wanted], &envs);
    }
    let files = test_files(Some("mlx4"))?;
    let files = files.iter().filter(|file| args.all || file.as_str() != LIES);
    let mut command = vec!["test", "--package", "mlx4", "--no-fail-fast"];
    command.extend(files.flat_map(|file| ["--test", file]));
    command.extend(["--", "--show-output"]);
    command.extend(args.filter.iter().map(String::as_str));
    crate::cargo(&command, &envs)
}

/// nextest's expression for the tests that are wanted.
fn expression(filter: &[String], no_vm: bool) -> String {
    let wanted: Vec<String> = filter.iter().map(|name| format!("test(~{name}) | binary(~{name})")).collect();
    let wanted = if wanted.is_empty() { "all()".to_owned() } else { wanted.join(" | ") };
    if !no_vm {
        return wanted;
    }
    let vms: Vec<String> = WITH_VMS.iter().map(|file| format!("binary(={file})")).collect();
    format!("({wanted}) - (package(integration) & ({}))", vms.join(" | "))
}

/// cargo's own commands for the tests that are wanted: it has no filter for files, only a list of them.
fn commands(filter: &[String], no_vm: bool, files: &[String]) -> Vec<Vec<String>> {
    let allowed: Vec<&String> =
        files.iter().filter(|file| !(no_vm && WITH_VMS.contains(&file.as_str()))).collect();
    let named = |file: &&&String| filter.iter().any(|name| file.contains(name.as_str()));
    let run = |targets: &[&str], files: &[&String], names: &[String]| {
        let mut command: Vec<String> = ["test", "--workspace", "--no-fail-fast"]
            .iter()
            .chain(targets)
            .map(ToString::to_string)
            .collect();
        command.extend(files.iter().flat_map(|file| ["--test".to_owned(), (*file).clone()]));
        command.extend(["--", "--show-output"].map(str::to_owned));
        command.extend_from_slice(names);
        command
    };
    let of_files: Vec<&String> = allowed.iter().filter(named).copied().collect();
    let by_name: Vec<&String> = allowed.iter().filter(|file| !named(file)).copied().collect();
    let mut commands = vec![run(&["--lib", "--bins", "--examples", "--benches"], &by_name, filter)];
    if !of_files.is_empty() {
        commands.push(run(&[], &of_files, &[]));
    }
    commands
}

/// The names of all files of tests in the workspace, or in one package.
fn test_files(package: Option<&str>) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .current_dir(crate::root())
        .no_deps()
        .exec()
        .context("ask cargo for the workspace's metadata")?;
    let wanted = metadata.packages.into_iter().filter(|of| package.is_none_or(|name| of.name == name));
    let targets = wanted.flat_map(|package| package.targets);
    let mut files: Vec<String> =
        targets.filter(|target| target.is_test()).map(|target| target.name).collect();
    files.sort();
    files.dedup();
    Ok(files)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_vms_are_files() {
        let files = test_files(None).unwrap();
        for file in WITH_VMS {
            assert!(files.iter().any(|found| found == file), "{file} is no file of tests");
        }
        assert!(test_files(Some("mlx4")).unwrap().iter().any(|file| file == LIES));
    }

    #[test]
    fn filter_takes_files_and_names() {
        let filter = ["mlx4_stock".to_owned()];
        assert_eq!(expression(&filter, false), "test(~mlx4_stock) | binary(~mlx4_stock)");
        let files = ["demo".to_owned(), "mlx4_stock".to_owned()];
        let commands = super::commands(&filter, false, &files);
        let wanted = ["--test", "demo", "--", "--show-output", "mlx4_stock"].map(str::to_owned);
        assert!(commands[0].ends_with(&wanted));
        let wanted = ["--test", "mlx4_stock", "--", "--show-output"].map(str::to_owned);
        assert!(commands[1].ends_with(&wanted));
    }

    #[test]
    fn without_vms_no_file_with_vms_runs() {
        assert!(expression(&[], true).starts_with("(all()) - (package(integration) & (binary(=boot) | "));
        let files = ["demo".to_owned(), "mlx4_stock".to_owned()];
        let commands = super::commands(&[], true, &files);
        assert_eq!(commands.len(), 1);
        assert!(!commands[0].contains(&"mlx4_stock".to_owned()));
        assert!(commands[0].contains(&"demo".to_owned()));
    }
}
