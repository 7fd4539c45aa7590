//! rdma-core's own Python tests on the model: none fails, and `docs/pyverbs.md` says of each whether it passes or
//! why it can't run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod page;

use std::fs;
use std::time::Duration;

use integration::{Model, Rig, Vm, VmConfig, stock};
use page::{Page, Test};

/// Some 270 tests; guest code is translated.
const LIMIT: Duration = Duration::from_secs(400);
const RUNNER: &[u8] = include_bytes!("runner.py");
const PAGE: &str = include_str!("../../../docs/pyverbs.md");
/// What tests need: an address for those of the connection manager, and huge pages.
const SETUP: &str = "modprobe rdma_ucm && echo 64 > /proc/sys/vm/nr_hugepages \
     && ip link set ib0 up && ip addr add 10.9.8.1/24 dev ib0 \
     && until grep -q up /sys/class/net/ib0/operstate; do sleep 0.1; done";

/// Runs all tests in the guest. Gives what became of each, in the order of their names.
fn run(vm: &Vm) -> Vec<Test> {
    vm.check(SETUP).unwrap();
    vm.put("/tmp/runner.py", 0o644, RUNNER).unwrap();
    let output = vm.check_within(LIMIT, "cd /usr/share/pyverbs && python3 /tmp/runner.py").unwrap();
    let mut tests: Vec<Test> = output.lines().filter_map(Test::parse).collect();
    tests.sort();
    let done = output.lines().last().and_then(|line| line.strip_prefix("done\t"));
    assert_eq!(done, Some(tests.len().to_string().as_str()), "{output}");
    tests
}

#[test]
fn python_tests_of_rdma_core_pass_or_are_skipped_for_a_known_reason() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &[]).unwrap();
    let vm = rig.boot(VmConfig::new("a").memory_mib(2048).python().hca(model.socket(0))).unwrap();
    let untouched = model.dump().unwrap();
    stock::bring_up(&vm).unwrap();
    let tests = run(&vm);

    let failed: Vec<&Test> = tests.iter().filter(|test| test.outcome == "failed").collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let page = Page::parse(PAGE);
    assert_eq!(page.unexplained(&tests), [""; 0], "reasons and tables of docs/pyverbs.md");
    let written = page.with(&tests);
    if written != PAGE {
        let file = rig.folder().join("logs/pyverbs.md");
        fs::write(&file, written).unwrap();
        panic!("docs/pyverbs.md differs from what became of the tests; the new page is {}", file.display());
    }

    for test in &tests {
        println!("{:<6} {}", if test.outcome == "passed" { "ok" } else { "-" }, test.name);
    }
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    vm.check("modprobe -r rdma_ucm").unwrap();
    stock::unload(&vm).unwrap();
    assert_eq!(model.dump().unwrap(), untouched);
}
