//! `cargo xtask bench`: `paraverbs bench` as a release build, with all that it can count; and the page of its numbers.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The page with the numbers, and the folder of its plots, from the root.
const PAGE: &str = "docs/performance.md";
const PLOTS: &str = "docs";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Put the numbers into docs/performance.md, and the plots beside it
    #[arg(long)]
    docs: bool,
    /// Arguments of `paraverbs bench`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::cargo(&["build", "--release", "--package", "paraverbs-cli"], &[])?;
    let root = crate::root();
    let mut command = Command::new(program(&root)?);
    command.args(["bench", "--counts"]).args(&args.arguments).current_dir(&root);
    if args.docs {
        command.args(["--page", PAGE, "--plots", PLOTS]);
    }
    let status = command.status().context("start paraverbs bench")?;
    if !status.success() {
        bail!("paraverbs bench failed ({status})");
    }
    Ok(())
}

/// The release build of the tool.
fn program(root: &Path) -> Result<std::path::PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec();
    let target = metadata.context("ask cargo for the workspace's metadata")?.target_directory;
    Ok(target.join("release/paraverbs").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_its_numbers_and_plots() {
        let page = std::fs::read_to_string(crate::root().join(PAGE)).unwrap();
        let (_, rest) = page.split_once("<!-- bench: begin -->\n").unwrap();
        let (numbers, rest) = rest.split_once("<!-- bench: end -->\n").unwrap();
        assert!(!rest.contains("<!-- bench:"));
        for heading in ["### Latency\n", "### Bandwidth\n", "### Who polls\n", "### Counted\n"] {
            assert!(numbers.contains(heading), "{heading}");
        }
        let plots: Vec<&str> =
            rest.split("](").skip(1).filter_map(|link| link.split_once(')')).map(|l| l.0).collect();
        assert!(!plots.is_empty());
        for plot in plots {
            assert!(crate::root().join(PLOTS).join(plot).is_file(), "{plot}");
        }
    }
}
