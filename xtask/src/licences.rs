//! Which licences the workspace's dependencies may have.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;

/// Licences (SPDX identifiers) that go together with the project's own.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    // Of LLVM's fuzzer, which only fuzz targets link.
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(crate::root())
        .other_options(["--locked".to_owned()])
        .exec()
        .context("ask cargo for the dependencies' metadata")?;
    let mut wrong = BTreeMap::new();
    for package in &metadata.packages {
        let licence = package.license.as_deref().unwrap_or("(none)");
        if !is_accepted(licence) {
            wrong.insert(format!("  {} {}: {licence}", package.name, package.version), ());
        }
    }
    if !wrong.is_empty() {
        let lines: Vec<String> = wrong.into_keys().collect();
        bail!("licences that are not in the list (xtask/src/licences.rs):\n{}", lines.join("\n"));
    }
    println!("licences: of {} packages, all in the list", metadata.packages.len());
    Ok(())
}

/// Whether an SPDX expression leaves a choice in which every licence is accepted. An expression that
/// can't be read is not accepted.
fn is_accepted(expression: &str) -> bool {
    // Old manifests write a slash for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let accepted = either(&mut words);
    words.next().is_none() && accepted == Some(true)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>) -> Option<bool> {
    let mut accepted = all(words)?;
    while words.next_if_eq(&"OR").is_some() {
        accepted |= all(words)?;
    }
    Some(accepted)
}

fn all(words: &mut Words<'_>) -> Option<bool> {
    let mut accepted = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        accepted &= one(words)?;
    }
    Some(accepted)
}

fn one(words: &mut Words<'_>) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let accepted = either(words)?;
        return words.next_if_eq(&")").map(|_| accepted);
    }
    let mut licence = word.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next()?);
    }
    Some(ACCEPTED.contains(&licence.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expression_with_an_accepted_choice_is_accepted() {
        for expression in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0-only OR MIT",
            "(MIT OR GPL-3.0-only) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "Apache-2.0 AND BSD-3-Clause",
        ] {
            assert!(is_accepted(expression), "{expression}");
        }
    }

    #[test]
    fn any_other_expression_is_not_accepted() {
        for expression in [
            "GPL-2.0-only",
            "MIT AND GPL-2.0-only",
            "Apache-2.0 WITH Other-exception",
            "(none)",
            "",
            "MIT OR",
            "(MIT",
            "MIT MIT",
        ] {
            assert!(!is_accepted(expression), "{expression}");
        }
    }
}
