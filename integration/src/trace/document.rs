//! The differences that a document explains, as rows of a table, against those that there are.

use super::Difference;

/// A row: a difference, and why both drivers are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What differs.
    pub difference: Difference,
    /// The place in Linux or iPXE that shows why both are valid.
    pub why: String,
}

/// The rows of a document's tables whose first cell is in backticks:
/// command, field, stock, ours, why both are valid.
pub fn listed(document: &str) -> Vec<Listed> {
    document.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Listed> {
    let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [command, field, stock, ours, why] = cells[..] else { return None };
    let code = |cell: &str| cell.strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
    let difference =
        Difference { command: code(command)?, field: code(field)?, stock: code(stock)?, ours: code(ours)? };
    Some(Listed { difference, why: why.to_owned() })
}

/// What is wrong with a document: differences that it doesn't list, differences that it lists and that
/// aren't there, and rows that name no place in Linux or iPXE.
pub fn unexplained(found: &[Difference], listed: &[Listed]) -> Vec<String> {
    let not_listed = found
        .iter()
        .filter(|difference| !listed.iter().any(|row| row.difference == **difference))
        .map(|difference| format!("not listed: {difference}"));
    let gone = listed
        .iter()
        .filter(|row| !found.contains(&row.difference))
        .map(|row| format!("listed, but not there: {}", row.difference));
    let no_place = listed
        .iter()
        .filter(|row| !names_a_place(&row.why))
        .map(|row| format!("no place in Linux or iPXE: {} {}", row.difference, row.why));
    not_listed.chain(gone).chain(no_place).collect()
}

/// Whether a text names Linux or iPXE and a source file.
fn names_a_place(why: &str) -> bool {
    let file = why.split([' ', '`', ',', ';']).any(|word| word.ends_with(".c") || word.ends_with(".h"));
    file && (why.contains("Linux") || why.contains("iPXE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
# Differences

| command | field | stock | ours | why both are valid |
|---|---|---|---|---|
| `NOP` | `modifier` | `0x1f` | `0x0` | Linux `fw.c`, `mlx4_NOP`: a hint |
| `RUN_FW` | `sent` | `yes` | `no` | because |
";

    fn difference(command: &str) -> Difference {
        let [field, stock, ours] = ["modifier", "0x1f", "0x0"].map(str::to_owned);
        Difference { command: command.to_owned(), field, stock, ours }
    }

    #[test]
    fn rows_are_read_and_headings_are_not() {
        let rows = listed(DOCUMENT);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].difference, difference("NOP"));
        assert!(rows[0].why.starts_with("Linux"));
    }

    #[test]
    fn listed_difference_passes_and_every_other_is_told() {
        let rows = listed(DOCUMENT);
        assert_eq!(unexplained(&[difference("NOP")], &rows[..1]), [""; 0]);
        let told = unexplained(&[difference("NOP"), difference("MAP_FA")], &rows);
        let expected = [
            "not listed: | `MAP_FA` | `modifier` | `0x1f` | `0x0` |",
            "listed, but not there: | `RUN_FW` | `sent` | `yes` | `no` |",
            "no place in Linux or iPXE: | `RUN_FW` | `sent` | `yes` | `no` | because",
        ];
        assert_eq!(told, expected);
    }
}
