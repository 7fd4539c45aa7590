//! `paraverbs bench` as a user runs it. Its times mean nothing here: a debug build, and a few messages.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use integration::process::Child;
use integration::program;

const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn quick_run_has_a_number_or_a_reason_for_everything() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let page = at("page.md");
    fs::write(&page, "before\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n").unwrap();
    let temporary = at("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(program("paraverbs-cli", "paraverbs").unwrap());
    command.args(["bench", "--quick", "--sizes", "2,64K,1M", "--messages", "16"]).env("TMPDIR", &temporary);
    command.arg("--csv").arg(at("csv")).arg("--json").arg(at("json"));
    command.arg("--plots").arg(at("plots")).arg("--page").arg(&page);
    let mut child = Child::spawn("bench", &command, &at("log")).unwrap();
    let status = child.wait(LIMIT);
    let text = child.tail(1000);
    assert_eq!(status.unwrap_or_else(|error| panic!("{error:#}\n{text}")).code(), Some(0), "{text}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "the bench has left something behind");

    let csv = fs::read_to_string(at("csv")).unwrap();
    let mut rows = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    assert_eq!(rows.next().unwrap()[..5], ["operation", "bytes", "way", "latency_ns", "ns_per_message"]);
    let rows: Vec<_> = rows.collect();
    assert_eq!(rows.len(), 3 * 3 * 3, "{csv}");
    for row in &rows {
        let positive = |text: &&str| text.parse::<f64>().is_ok_and(|number| number > 0.0);
        let measured = row[3..7].iter().all(positive);
        let left_out =
            row[3..6].iter().all(|text| text.is_empty()) && row.concat().contains("not run: needs");
        assert!(measured || left_out, "{row:?}");
        // One-sided messages have two pollers at most, and a test machine has two cores.
        let may_lack_cores = row[0] == "send" || std::thread::available_parallelism().unwrap().get() < 2;
        assert!(measured || may_lack_cores, "{row:?}");
    }

    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(at("json")).unwrap()).unwrap();
    let counts = &json["counts"];
    assert_eq!(counts["posted_bytes"], counts["copied_bytes"]);
    assert!(counts["posted_bytes"].as_u64().unwrap() > 0);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("before\n") && page.ends_with("after\n") && !page.contains("old"), "{page}");
    for shown in [&text, &page] {
        for word in
            ["Latency", "Bandwidth", "Who polls", "64 KiB", "guest a, daemon's relay", "not asked for"]
        {
            assert!(shown.contains(word), "{word} in\n{shown}");
        }
    }
    for name in ["bench-write-latency.svg", "bench-write-bandwidth.svg", "bench-read-bandwidth.svg"] {
        let svg = fs::read_to_string(at("plots").join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.matches("<circle").count() >= 3, "{name}: {svg}");
    }
}

#[test]
fn arguments_that_make_no_sense_end_in_one_error() {
    for wrong in
        [&["--sizes", "9M"][..], &["--sizes", "0"], &["--messages", "0"], &["--operations", "write,fly"]]
    {
        let mut command = Command::new(program("paraverbs-cli", "paraverbs").unwrap());
        let output = command.arg("bench").args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{wrong:?}");
    }
}
