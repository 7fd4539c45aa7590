//! Which crate of the workspace may depend on which: the design's table, held against cargo's metadata.

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// The crates, each with those that it may depend on directly. A crate that isn't built yet stands here
/// already: the table is the decision, and a change of it is one too.
const ALLOWED: &[(&str, Targets)] = &[
    ("mlx4-wire", Targets::These(&[])),
    ("mlx4-queue", Targets::These(&["mlx4-wire"])),
    ("mlx4-pci", Targets::These(&[])),
    ("mlx4", Targets::These(&["mlx4-wire", "mlx4-pci", "mlx4-queue"])),
    ("mlx4-model", Targets::These(&["mlx4-wire", "mlx4-pci", "paraverbs-guard"])),
    ("virtio-rdma", Targets::These(&[])),
    ("paraverbs-guard", Targets::These(&[])),
    ("paraverbs-tenant", Targets::These(&["virtio-rdma"])),
    ("paraverbs-hca", Targets::These(&["paraverbs-tenant", "mlx4", "mlx4-pci", "mlx4-wire"])),
    ("paraverbs-rdma", Targets::These(&["paraverbs-tenant", "paraverbs-guard", "virtio-rdma"])),
    ("paraverbs-ipoib", Targets::These(&["paraverbs-tenant", "mlx4-wire", "mlx4-queue"])),
    (
        "paraverbsd",
        Targets::These(&[
            "paraverbs-tenant",
            "paraverbs-hca",
            "paraverbs-rdma",
            "paraverbs-ipoib",
            "mlx4",
            "mlx4-pci",
            "mlx4-model",
            "vmm-config",
        ]),
    ),
    ("paraverbs-cli", Targets::AllBut(&["integration", "xtask"])),
    ("paraverbs-verbs", Targets::These(&["virtio-rdma", "mlx4-queue", "mlx4-wire"])),
    ("paraverbs-capi", Targets::These(&["paraverbs-verbs"])),
    ("vmm-config", Targets::These(&[])),
    ("integration", Targets::AllBut(&["xtask"])),
    ("paraverbs-fuzz", Targets::AllBut(&["xtask"])),
    ("xtask", Targets::These(&["integration"])),
];

/// What tests, examples and benchmarks may use besides. The driver, and what guests have of it, are tested on the
/// model: whether a guest can reach what isn't his, only something that acts like a card can say.
const ALLOWED_IN_TESTS: &[(&str, &str)] = &[("mlx4", "mlx4-model"), ("paraverbs-hca", "mlx4-model")];

#[derive(Debug)]
enum Targets {
    These(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

impl Targets {
    fn contain(&self, name: &str) -> bool {
        match self {
            Self::These(names) => names.contains(&name),
            Self::AllBut(names) => !names.contains(&name),
        }
    }
}

/// A dependency of one crate of the workspace on another.
#[derive(Debug)]
struct Edge {
    from: String,
    to: String,
    /// Whether only tests, examples and benchmarks have it.
    in_tests: bool,
}

pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(crate::root())
        .no_deps()
        .exec()
        .context("ask cargo for the workspace's metadata")?;
    let members: Vec<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let mut edges = Vec::new();
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|found| members.contains(&found.name)) {
            edges.push(Edge {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                in_tests: dependency.kind == DependencyKind::Development,
            });
        }
    }
    let wrong = violations(&members, &edges);
    if !wrong.is_empty() {
        bail!("the table of edges (xtask/src/edges.rs) does not allow:\n{}", wrong.join("\n"));
    }
    println!("edges: {} between {} crates, all in the table", edges.len(), members.len());
    Ok(())
}

/// What the table doesn't allow, in a line each.
fn violations(members: &[String], edges: &[Edge]) -> Vec<String> {
    let row = |name: &str| ALLOWED.iter().find(|(from, _)| *from == name).map(|(_, targets)| targets);
    let mut wrong: Vec<String> = members
        .iter()
        .filter(|name| row(name).is_none())
        .map(|name| format!("  {name}: a crate that is not in the table"))
        .collect();
    for edge in edges {
        let allowed = row(&edge.from).is_none_or(|targets| targets.contain(&edge.to));
        let in_tests = edge.in_tests && ALLOWED_IN_TESTS.contains(&(&edge.from, &edge.to));
        if !allowed && !in_tests {
            let kind = if edge.in_tests { " (in tests)" } else { "" };
            wrong.push(format!("  {} -> {}{kind}", edge.from, edge.to));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(from: &str, to: &str, in_tests: bool) -> Vec<String> {
        let members = [from.to_owned(), to.to_owned()];
        violations(&members, &[Edge { from: from.to_owned(), to: to.to_owned(), in_tests }])
    }

    #[test]
    fn violations_of_edges_in_the_table_are_none() {
        for (from, to) in [
            ("mlx4-model", "mlx4-wire"),
            ("mlx4", "mlx4-queue"),
            ("paraverbs-cli", "mlx4-model"),
            ("integration", "paraverbs-cli"),
            ("xtask", "integration"),
        ] {
            assert_eq!(found(from, to, false), [""; 0], "{from} -> {to}");
        }
    }

    #[test]
    fn violations_tell_edges_that_are_not_in_the_table() {
        for (from, to) in [
            ("mlx4-wire", "mlx4-model"),
            ("mlx4", "mlx4-model"),
            ("paraverbs-verbs", "mlx4"),
            ("paraverbs-cli", "integration"),
            ("integration", "xtask"),
            ("xtask", "mlx4-wire"),
        ] {
            assert_eq!(found(from, to, false), [format!("  {from} -> {to}")]);
        }
    }

    #[test]
    fn violations_of_test_edges_follow_their_own_table() {
        assert_eq!(found("mlx4", "mlx4-model", true), [""; 0]);
        assert_eq!(found("mlx4-model", "mlx4", true), ["  mlx4-model -> mlx4 (in tests)"]);
    }

    #[test]
    fn violations_tell_a_crate_that_is_not_in_the_table() {
        let wrong = violations(&["helpers".to_owned()], &[]);
        assert_eq!(wrong, ["  helpers: a crate that is not in the table"]);
    }

    #[test]
    fn rows_name_only_crates_of_the_table() {
        let names: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
        for (_, Targets::These(targets) | Targets::AllBut(targets)) in ALLOWED {
            assert!(targets.iter().all(|target| names.contains(target)), "{targets:?}");
        }
    }
}
