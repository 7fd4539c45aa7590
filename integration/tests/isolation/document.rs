//! `docs/isolation.md` against the sources: every test that it names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Where tests are, from the workspace's root.
const PLACES: [&str; 4] = ["mlx4", "backend", "guest-shim", "integration"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Where tables of cases are, and how each begins and ends.
const TABLES: &str = "integration/tests/hostile_guest";
const TABLE: [&str; 2] = ["CASES: &[Case]", "];"];

/// Names of tests in a source, and of the cases in its tables if it may have some.
fn tests_of(source: &str, may_have_tables: bool, names: &mut BTreeSet<String>) {
    let mut lines = source.lines().map(str::trim);
    let mut in_table = false;
    while let Some(line) = lines.next() {
        in_table = may_have_tables && (in_table || line.contains(TABLE[0]));
        if line.starts_with("#[test]") {
            let function = lines.by_ref().find_map(|line| line.split_once("fn "));
            let name = function.and_then(|(_, rest)| rest.split('(').next());
            names.extend(name.map(str::to_owned));
        } else if in_table {
            let rows = line.split("(\"").skip(1);
            names.extend(rows.filter_map(|row| row.split('"').next()).map(str::to_owned));
            in_table = !line.ends_with(TABLE[1]);
        }
    }
}

/// What the table's last column names: words in backquotes.
fn named(document: &str) -> Vec<&str> {
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Guarantee"));
    let columns = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    columns.flat_map(|column| column.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn tests_that_the_document_names_are_there() -> Result<()> {
    let document = fs::read_to_string(root().join("docs/isolation.md"))?;
    let (mut files, mut tests) = (Vec::new(), BTreeSet::new());
    for place in PLACES {
        sources(&root().join(place), &mut files)?;
    }
    for file in files {
        let may_have_tables = file.starts_with(root().join(TABLES));
        tests_of(&fs::read_to_string(file)?, may_have_tables, &mut tests);
    }
    let named = named(&document);
    ensure!(named.len() > 40, "the table names {} tests", named.len());
    let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
    ensure!(missing.is_empty(), "tests that are not there: {missing:#?}");
    Ok(())
}

#[test]
fn rows_of_other_tables_are_no_tests() {
    let source = "const CASES: &[Case] = &[(\"a: b\", a)];\nconst ROWS: &[Row] = &[\n(\"c\", 1),\n];";
    for (may_have_tables, expected) in [(true, vec!["a: b"]), (false, vec![])] {
        let mut names = BTreeSet::new();
        tests_of(source, may_have_tables, &mut names);
        assert!(names.iter().eq(expected), "{names:?}");
    }
}
