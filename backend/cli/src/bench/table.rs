//! The report as tables: for a terminal, for a page, and as comma-separated values.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::plan::{Operation, Way, size};
use super::report::{Cell, Counts, Report, Row};

/// Bytes of a message from which on bandwidth is compared with that of a copy.
const LARGE: u32 = 64 << 10;

/// A table: its headings, and its rows.
struct Grid {
    title: &'static str,
    note: &'static str,
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Columns of words at the left; numbers follow.
    words: usize,
}

/// The report for a terminal.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    for line in machine(report) {
        out += &format!("{line}\n");
    }
    for grid in grids(report) {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&grid.headings);
        grid.rows.iter().for_each(|row| {
            table.add_row(row);
        });
        for column in grid.words..grid.headings.len() {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        out += &format!("\n{}. {}\n{table}\n", grid.title, grid.note);
    }
    out
}

/// The report for a page.
pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    for line in machine(report) {
        out += &format!("- {line}\n");
    }
    for grid in grids(report) {
        out += &format!("\n### {}\n\n{}\n\n", grid.title, grid.note);
        let alignment = |column| if column < grid.words { "---" } else { "---:" };
        let rule: Vec<&str> = (0..grid.headings.len()).map(alignment).collect();
        out += &format!("| {} |\n| {} |\n", grid.headings.join(" | "), rule.join(" | "));
        for row in &grid.rows {
            out += &format!("| {} |\n", row.join(" | "));
        }
    }
    out
}

/// The numbers, a line for each operation, size and way.
pub(crate) fn csv(report: &Report) -> String {
    let mut out = String::from(
        "operation,bytes,way,latency_ns,ns_per_message,bytes_per_second,copy_ns,threads that poll,cores,doorbell,left out\n",
    );
    for row in &report.rows {
        for way in Way::ALL {
            let cell = row.cell(way);
            let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1}"));
            let speed = cell.each.map(|each| f64::from(row.bytes) / each * 1e9);
            let numbers = [cell.latency, cell.each, speed, row.copy].map(number).join(",");
            let left_out = cell.left_out.as_deref().unwrap_or("");
            let head = format!("{},{},{}", row.operation, row.bytes, way.letter());
            let tail = format!("\"{}\",{},\"{}\",{left_out}", cell.polls, cell.cores, cell.doorbell);
            // Writing to a string does not fail.
            let _ = writeln!(out, "{head},{numbers},{tail}");
        }
    }
    out
}

fn machine(report: &Report) -> Vec<String> {
    let machine = &report.machine;
    let build =
        if report.optimised { "" } else { " (a build without optimisation: the numbers mean nothing)" };
    let mut lines = vec![
        format!("machine: {}, {} cores, Linux {}", machine.cpu, machine.cores, machine.kernel),
        format!("command: {}{build}", report.command),
        format!("medians of {} rounds; {:.0} s in all", report.rounds, report.seconds),
    ];
    if let Some(line) = report.cache_line {
        lines.push(format!("cache line to another thread and back: {:.2} µs", line / 1e3));
    }
    let rows = || report.rows.iter();
    if let Some((least, most)) = range(rows().filter_map(Row::latency_ratio)) {
        lines.push(format!("b/a in latency: {least:.2} to {most:.2} (to reach: 1.2 at most)"));
    }
    if let Some((least, most)) = range(rows().filter_map(Row::time_ratio)) {
        lines.push(format!("b/a in the time of a message: {least:.2} to {most:.2} (to reach: 1.2 at most)"));
    }
    let large = rows().filter(|row| row.bytes >= LARGE).filter_map(Row::part_of_copy);
    if let Some((least, most)) = range(large.map(|part| 100.0 * part)) {
        lines.push(format!("b of c from 64 KiB on: {least:.0} to {most:.0} % (to reach: 85 % at least)"));
    }
    lines
}

/// Least and greatest of some numbers, if there are any.
fn range(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let one = |number| (number, number);
    numbers.map(one).reduce(|(least, most), (number, _)| (number.min(least), number.max(most)))
}

fn grids(report: &Report) -> Vec<Grid> {
    vec![
        Grid {
            title: "Latency",
            note: "One message at a time: from posting to the completion taken; of send half a round trip.",
            headings: vec!["operation", "size", "a, µs", "a', µs", "b, µs", "b/a"],
            rows: report.rows.iter().map(latency).collect(),
            words: 2,
        },
        Grid {
            title: "Bandwidth",
            note: "Up to 128 messages (or 8 MiB) under way; c is memcpy between two memfds. b/a is of the time a message takes.",
            headings: vec![
                "operation",
                "size",
                "a, M/s",
                "b, M/s",
                "b/a",
                "a, GB/s",
                "a', GB/s",
                "b, GB/s",
                "c, GB/s",
                "b of c",
            ],
            rows: report.rows.iter().map(bandwidth).collect(),
            words: 2,
        },
        Grid {
            title: "Who polls",
            note: "For each operation and column; threads that poll need a core each.",
            headings: vec!["operation", "column", "threads that poll", "doorbell", "cores"],
            rows: pollers(report),
            words: 4,
        },
        Grid {
            title: "Counted",
            note: "Not timed, so the same on every machine.",
            headings: vec!["what", "found", "target"],
            rows: counted(&report.counts),
            words: 3,
        },
    ]
}

fn latency(row: &Row) -> Vec<String> {
    let time = |cell: &Cell| shown(cell, cell.latency, |ns| format!("{:.2}", ns / 1e3));
    let cells = Way::ALL.map(|way| time(row.cell(way)));
    let mut columns = vec![row.operation.to_string(), size(row.bytes)];
    columns.extend(cells);
    columns.push(ratio(row.latency_ratio()));
    columns
}

fn bandwidth(row: &Row) -> Vec<String> {
    let rate = |cell: &Cell| shown(cell, cell.each, |ns| format!("{:.2}", 1e3 / ns));
    let speed = |ns: f64| {
        let speed = f64::from(row.bytes) / ns;
        if speed >= 0.1 { format!("{speed:.1}") } else { format!("{speed:.3}") }
    };
    let of = |cell: &Cell| shown(cell, cell.each, speed);
    vec![
        row.operation.to_string(),
        size(row.bytes),
        rate(&row.alone),
        rate(&row.guest),
        ratio(row.time_ratio()),
        of(&row.alone),
        of(&row.inline),
        of(&row.guest),
        row.copy.map_or_else(|| "-".into(), speed),
        row.part_of_copy().map_or_else(|| "-".into(), |part| format!("{:.0} %", 100.0 * part)),
    ]
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
}

/// A number of a cell, or why there is none.
fn shown(cell: &Cell, value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    match (value, &cell.left_out) {
        (Some(value), _) => show(value),
        (None, Some(why)) => why.clone(),
        (None, None) => "-".into(),
    }
}

fn pollers(report: &Report) -> Vec<Vec<String>> {
    let measured = |operation: &Operation| report.rows.iter().any(|row| row.operation == *operation);
    let rows = |operation: Operation| {
        Way::ALL.map(|way| {
            let words = [way.letter(), way.pollers(operation), way.doorbell()].map(str::to_owned);
            let [letter, threads, doorbell] = words;
            vec![operation.to_string(), letter, threads, doorbell, way.cores(operation).to_string()]
        })
    };
    Operation::ALL.into_iter().filter(measured).flat_map(rows).collect()
}

fn counted(counts: &Counts) -> Vec<Vec<String>> {
    let or_why = |found: Result<String, &String>| found.unwrap_or_else(|why| format!("left out: {why}"));
    let copied = format!("{} bytes copied of {} posted", counts.copied_bytes, counts.posted_bytes);
    let instructions = counts.instructions.as_ref().map(|found| {
        let ratio = found.guest / found.alone;
        format!("a {:.0}, b {:.0}, b/a {ratio:.2}", found.alone, found.guest)
    });
    let calls = counts.system_calls.as_ref().map(|found| {
        let sum: u64 = found.calls.iter().map(|(_, calls)| calls).sum();
        let mut calls = found.calls.clone();
        calls.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        let most: Vec<String> = calls.iter().take(4).map(|(name, calls)| format!("{name} {calls}")).collect();
        format!("{sum} in {} messages ({})", found.messages, most.join(", "))
    });
    let asleep = counts.sleeping.as_ref().map(|found| format!("{:.0} µs", found.nanoseconds / 1e3));
    let writes = counts.sleeping.as_ref().map(|found| match (found.guest_writes, found.daemon_writes) {
        (Some(guest), Some(daemon)) => {
            let each = |writes: u64| writes as f64 / f64::from(found.messages);
            format!("guest {:.2}, daemon {:.2}", each(guest), each(daemon))
        }
        _ => "left out: needs strace (--counts)".into(),
    });
    let row = |what: &str, found: String, target: &str| vec![what.to_owned(), found, target.to_owned()];
    vec![
        row("payload copied by the model for the guests", copied, "once"),
        row("instructions to post a message and take its completion", or_why(instructions), "b/a ≤ 1.2"),
        row("system calls of guest and daemon while both poll", or_why(calls), "none a message"),
        row("write of 8 B when guest and daemon sleep, to the completion", or_why(asleep), ""),
        row("writes to eventfds for such a message", or_why(writes), ""),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::report::{Instructions, Machine, Sleeping, SystemCalls};
    use super::*;

    pub(crate) fn report() -> Report {
        let cell = |way: Way, operation, each| Cell {
            latency: each,
            each,
            left_out: each.is_none().then(|| "not run: needs 3 cores".into()),
            polls: way.pollers(operation),
            cores: way.cores(operation),
            doorbell: way.doorbell(),
        };
        let row = |operation, bytes, times: [Option<f64>; 3]| Row {
            operation,
            bytes,
            alone: cell(Way::Alone, operation, times[0]),
            inline: cell(Way::Inline, operation, times[1]),
            guest: cell(Way::Guest, operation, times[2]),
            copy: Some(f64::from(bytes) / 32.0),
        };
        Report {
            machine: Machine { cpu: "a CPU".into(), cores: 2, kernel: "6.1".into() },
            command: "paraverbs bench".into(),
            optimised: true,
            rounds: 3,
            seconds: 12.3,
            rows: vec![
                row(Operation::Write, 65536, [Some(2000.0), Some(1900.0), Some(2200.0)]),
                row(Operation::Send, 2, [None, Some(150.0), None]),
            ],
            cache_line: Some(430.0),
            counts: Counts {
                posted_bytes: 77,
                copied_bytes: 77,
                instructions: Ok(Instructions { alone: 500.0, guest: 550.0 }),
                system_calls: Ok(SystemCalls { messages: 100_000, calls: vec![("futex".into(), 3)] }),
                sleeping: Ok(Sleeping::new(2, &[93_000.0, 93_000.0])),
            },
        }
    }

    #[test]
    fn tables_have_numbers_ratios_and_what_was_left_out() {
        for shown in [text(&report()), markdown(&report())] {
            for word in [
                "64 KiB",
                "2.20",
                "1.10",
                "29.8",
                "93 %",
                "not run: needs 3 cores",
                "guest a, daemon's relay",
                "77 bytes copied of 77 posted",
                "a 500, b 550, b/a 1.10",
                "3 in 100000 messages (futex 3)",
                "0.43 µs",
                "93 µs",
                "a CPU, 2 cores",
                "b/a in latency: 1.10 to 1.10",
                "from 64 KiB on: 93 to 93 %",
            ] {
                assert!(shown.contains(word), "{word} in\n{shown}");
            }
        }
    }

    #[test]
    fn csv_has_a_line_for_each_way_and_as_many_fields_everywhere() {
        let text = csv(&report());
        assert_eq!(text.lines().count(), 1 + 2 * 3);
        let fields = |line: &str| {
            let outside = line.split('"').step_by(2);
            outside.map(|part| part.matches(',').count()).sum::<usize>()
        };
        assert!(text.lines().all(|line| fields(line) == 10), "{text}");
        assert!(text.contains("write,65536,b,2200.0,2200.0,29789090909.1,2048.0,"), "{text}");
    }
}
