//! The table of what was measured.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::protocol::{Doorbells, Measurement, Operation, Service, Waiting};

/// A row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) operation: Operation,
    pub(crate) service: Service,
    pub(crate) doorbells: Doorbells,
    pub(crate) bytes: u32,
    pub(crate) waiting: Waiting,
    pub(crate) measured: Measurement,
}

impl Row {
    /// Who polls and who sleeps.
    fn who(&self) -> &'static str {
        match (self.operation.is_two_sided(), self.waiting) {
            (true, Waiting::Poll) => "a, b, engine poll",
            (true, Waiting::Sleep) => "a, b sleep; engine polls",
            (false, Waiting::Poll) => "a, engine poll; b idle",
            (false, Waiting::Sleep) => "a sleeps; engine polls; b idle",
        }
    }
}

/// The table as text.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    let headings = [
        "operation",
        "service",
        "doorbells",
        "size",
        "median",
        "99 %",
        "messages/s",
        "bandwidth",
        "who polls, who sleeps",
    ];
    table.set_header(headings);
    for row in rows {
        let measured = &row.measured;
        table.add_row([
            row.operation.name().to_owned(),
            row.service.name().to_owned(),
            row.doorbells.name().to_owned(),
            size(row.bytes),
            microseconds(measured.median),
            microseconds(measured.percentile99),
            rate(measured.rate),
            bandwidth(measured.bandwidth),
            row.who().to_owned(),
        ]);
    }
    for column in 3..=7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// A size in bytes, as people write it.
pub(crate) fn size(bytes: u32) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

fn microseconds(nanoseconds: u64) -> String {
    let tenths = (nanoseconds + 50) / 100;
    format!("{}.{} µs", tenths / 10, tenths % 10)
}

fn rate(rate: f64) -> String {
    if rate >= 1e6 { format!("{:.2} M", rate / 1e6) } else { format!("{:.1} k", rate / 1e3) }
}

fn bandwidth(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.2} GB/s", bytes / 1e9) } else { format!("{:.1} MB/s", bytes / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_has_its_numbers_and_tells_who_sleeps() {
        let measured =
            Measurement { median: 1449, percentile99: 93_051, rate: 2_345_678.0, bandwidth: 1.5e9 };
        let row = |operation, service, doorbells, waiting| Row {
            operation,
            service,
            doorbells,
            bytes: 65536,
            waiting,
            measured,
        };
        let rows = [
            row(Operation::Send, Service::Srq, Doorbells::Direct, Waiting::Sleep),
            row(Operation::Read, Service::Uc, Doorbells::Relayed, Waiting::Poll),
        ];
        let text = render(&rows);
        for word in [
            "RC, SRQ",
            "direct",
            "64 KiB",
            "1.4 µs",
            "93.1 µs",
            "2.35 M",
            "1.50 GB/s",
            "a, b sleep; engine polls",
            "a, engine poll; b idle",
        ] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn numbers_have_the_unit_that_fits() {
        assert_eq!([8, 4096, 1 << 20].map(size), ["8 B", "4 KiB", "1 MiB"]);
        assert_eq!([rate(999.0), rate(1e6)], ["1.0 k", "1.00 M"]);
        assert_eq!([bandwidth(8e6), bandwidth(1e9)], ["8.0 MB/s", "1.00 GB/s"]);
    }
}
