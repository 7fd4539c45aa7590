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
    fn page_has_the_markers() {
        let page = std::fs::read_to_string(crate::root().join(PAGE)).unwrap();
        for marker in ["<!-- bench: begin -->\n", "<!-- bench: end -->\n"] {
            assert_eq!(page.matches(marker).count(), 1, "{marker}");
        }
    }
}
