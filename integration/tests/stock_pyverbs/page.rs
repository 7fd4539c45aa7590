//! The page that lists the Python tests: a table of the reasons of skips, which people write, and below a line
//! of its own a table of the tests, which the test writes.

use std::fmt::Write as _;

/// Above it is what people write.
const GENERATED: &str = "## Tests\n";

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Test {
    /// Module, class and function.
    pub(crate) name: String,
    /// `passed`, `skipped` or `failed`.
    pub(crate) outcome: String,
    /// Why it was skipped or failed.
    pub(crate) reason: String,
}

impl Test {
    /// A test of a line that the runner printed: outcome, name, reason. Programs that tests start print other
    /// lines.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split('\t').collect();
        let [outcome @ ("passed" | "skipped" | "failed"), name, reason] = parts[..] else { return None };
        Some(Self { name: name.to_owned(), outcome: outcome.to_owned(), reason: reason.to_owned() })
    }
}

/// The part of the page that people write.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    head: &'a str,
    /// Numbers and texts of the reasons.
    reasons: Vec<(&'a str, &'a str)>,
}

impl<'a> Page<'a> {
    /// Takes a page apart: rows of the table of reasons have a number, the reason in backticks, and the line
    /// that is the cause.
    pub(crate) fn parse(page: &'a str) -> Self {
        let head = page.split_once(GENERATED).map_or(page, |(head, _)| head);
        let row = |line: &'a str| {
            let cells: Vec<&str> =
                line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
            let [number, reason, _] = cells[..] else { return None };
            Some((number, reason.strip_prefix('`')?.strip_suffix('`')?))
        };
        Self { head, reasons: head.lines().filter_map(row).collect() }
    }

    /// What is wrong with the table of reasons: ones that it lacks, and ones that no test has any more.
    pub(crate) fn unexplained(&self, tests: &[Test]) -> Vec<String> {
        let skipped = || tests.iter().filter(|test| test.outcome == "skipped");
        let lacking = skipped()
            .filter(|test| self.number(&test.reason).is_none())
            .map(|test| format!("{} is skipped for a reason that isn't listed: {}", test.name, test.reason));
        let gone = self
            .reasons
            .iter()
            .filter(|(_, reason)| !skipped().any(|test| test.reason == *reason))
            .map(|(number, reason)| format!("no test is skipped for reason {number}, {reason}"));
        lacking.chain(gone).collect()
    }

    /// The page with a table of these tests.
    pub(crate) fn with(&self, tests: &[Test]) -> String {
        let count = |outcome| tests.iter().filter(|test| test.outcome == outcome).count();
        let mut page = format!(
            "{}{GENERATED}\n{} tests: {} passed, {} skipped, {} failed. \
             The test writes what is below this line's heading.\n\n| test | outcome |\n|---|---|\n",
            self.head,
            tests.len(),
            count("passed"),
            count("skipped"),
            count("failed"),
        );
        for test in tests {
            let outcome = match self.number(&test.reason) {
                Some(number) => format!("{}: {number}", test.outcome),
                None => test.outcome.clone(),
            };
            // Writing to a String doesn't fail.
            let _ = writeln!(page, "| `{}` | {outcome} |", test.name);
        }
        page
    }

    fn number(&self, reason: &str) -> Option<&'a str> {
        self.reasons.iter().find(|(_, listed)| *listed == reason).map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "# A page\n\n| no. | reason | cause |\n|---|---|---|\n| 1 | `no such thing` | here |\n\n";

    fn test(line: &str) -> Test {
        Test::parse(line).unwrap()
    }

    #[test]
    fn page_lists_each_test_and_is_its_own_source() {
        let tests = [test("passed\ta.B.c\t"), test("skipped\ta.B.d\tno such thing")];
        let page = Page::parse(PAGE).with(&tests);
        assert!(page.starts_with(PAGE));
        assert!(page.ends_with("| `a.B.c` | passed |\n| `a.B.d` | skipped: 1 |\n"), "{page}");
        assert_eq!(Page::parse(&page).with(&tests), page);
    }

    #[test]
    fn reasons_that_are_not_listed_or_not_met_are_told() {
        let page = Page::parse(PAGE);
        assert_eq!(page.unexplained(&[test("skipped\ta\tno such thing")]), [""; 0]);
        let problems = page.unexplained(&[test("skipped\ta\tanother")]);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn other_lines_are_no_tests() {
        assert_eq!(Test::parse("passed by"), None);
        assert_eq!(Test::parse("done\t2"), None);
    }
}
