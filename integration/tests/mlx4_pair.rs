//! Two guests with stock drivers, each with an HCA of the model on one fabric: IP over InfiniBand (UD and
//! multicast), and RC, UC, UD and SRQ traffic by programs that others wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use integration::pair::{Pair, listens};
use integration::trace::{self, Behaviour};
use integration::{Model, Rig, passed};

/// Guest code is translated, and two guests share the machine's processors with the model.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
const ADDRESSES: [&str; 2] = ["10.9.8.1", "10.9.8.2"];

/// Runs a program in both guests, the second one as the client of the first one's address, and expects
/// both to succeed. Gives what they printed.
fn both(pair: &Pair, program: &str) -> [String; 2] {
    pair.both(program, &listens(18515), &format!("{program} {}", ADDRESSES[0])).unwrap()
}

fn ping_pong(pair: &Pair, program: &str) {
    for output in both(pair, program) {
        assert!(output.contains("1000 iters in"), "{program}: {output}");
    }
    passed(program);
}

/// Runs a program of perftest; it ends with a table whose last row has the size and the number of messages.
fn perftest(pair: &Pair, program: &str, size: u32, iterations: u32) {
    let program = format!("{program} -d mlx4_0 -F -s {size} -n {iterations}");
    let [_, client] = both(pair, &program);
    let row: Vec<&str> = client
        .lines()
        .filter(|line| line.split_whitespace().next() == Some(&size.to_string()))
        .flat_map(str::split_whitespace)
        .collect();
    assert_eq!(row.get(1), Some(&iterations.to_string().as_str()), "{program}: {client}");
    passed(program);
}

fn ip_over_infiniband(pair: &Pair) {
    let vms = &pair.vms;
    for vm in vms {
        assert_eq!(vm.check("cat /sys/class/net/ib0/mode").unwrap().trim(), "datagram");
    }
    pair.address("ib0", ADDRESSES).unwrap();
    // Every size up to the datagram's MTU, without fragments.
    for size in [56, 1500, 2016] {
        let ping = vms[0].check(&format!("ping -c 5 -i 0.2 -M do -s {size} 10.9.8.2")).unwrap();
        assert!(ping.contains("5 packets transmitted, 5 received"), "{ping}");
    }
    let too_long = vms[0].run("ping -c 1 -W 1 -M do -s 2020 10.9.8.2").unwrap();
    assert_ne!(too_long.status, 0, "{too_long}");
    pair.ping_all_nodes("ib0").unwrap();
    // Segments whose last piece is shorter than a word.
    for text in ["a", "bc", "def", "ghijklm"] {
        let server = vms[0].spawn("timeout 20 busybox nc -l -p 5000").unwrap();
        vms[0].check("until ss -ltn | grep -q ':5000 '; do sleep 0.1; done").unwrap();
        vms[1].check(&format!("printf {text} | timeout 10 busybox nc {} 5000", ADDRESSES[0])).unwrap();
        assert_eq!(server.wait(PROGRAM_LIMIT).unwrap().stdout, text);
    }
    passed("IP over InfiniBand: ping, multicast ping, TCP segments of 1 to 7 bytes");
}

/// What the driver gave the model on the day when golden bytes were taken from it.
const RECORDED: &str = include_str!("../../mlx4/wire/tests/golden/stock-6.12.trace");

/// Expects the driver to have brought its HCAs up by the recorded commands, and to have filled the fields of
/// all commands as recorded, addresses and numbers aside. If it hasn't, the trace is written anew next to
/// the logs.
fn behaves_as_recorded(rig: &Rig, model: &Model) {
    let recorded = trace::parse(RECORDED).unwrap();
    let now = trace::parse(&model.trace().unwrap()).unwrap();
    let sequence = trace::bring_up(&recorded, recorded[0].hca);
    let mut problems = Vec::new();
    for hca in now.iter().map(|record| record.hca).collect::<BTreeSet<u64>>() {
        let found = trace::bring_up(&now, hca);
        if found != sequence {
            problems.push(format!("bring-up of {hca:x} by {found:?}, recorded {sequence:?}"));
        }
    }
    let [before, after] = [&recorded, &now].map(|records| Behaviour::of(records));
    problems.extend(before.differences(&after).iter().map(|new| format!("recorded and now: {new}")));
    problems.extend(after.differences(&before).iter().map(|gone| format!("now and recorded: {gone}")));
    if !problems.is_empty() {
        let file = rig.folder().join("logs/stock.trace");
        let text: String = trace::reduce(&now).into_iter().map(|record| record.text).collect();
        fs::write(&file, text).unwrap();
        panic!("{}\nthe new trace is {}", problems.join("\n"), file.display());
    }
}

#[test]
fn two_stock_drivers_exchange_data() {
    let rig = Rig::prepare().unwrap();
    let pair = Pair::boot(&rig, &[], |config, _| config).unwrap();
    pair.bring_up().unwrap();

    ip_over_infiniband(&pair);
    for program in ["ibv_rc_pingpong", "ibv_rc_pingpong -e", "ibv_uc_pingpong", "ibv_srq_pingpong"] {
        ping_pong(&pair, &format!("{program} -d mlx4_0"));
    }
    ping_pong(&pair, "ibv_rc_pingpong -d mlx4_0 -c -s 65536");
    ping_pong(&pair, "ibv_rc_pingpong -d mlx4_0 -g 0");
    ping_pong(&pair, "ibv_uc_pingpong -d mlx4_0 -g 0");
    ping_pong(&pair, "ibv_ud_pingpong -d mlx4_0 -s 1024");
    for options in ["", " -e"] {
        let program = format!("ibv_xsrq_pingpong -d mlx4_0 -n 1000{options}");
        for output in both(&pair, &program) {
            assert!(output.contains("success"), "{program}: {output}");
        }
        passed(program);
    }
    for test in ["send", "write", "read"] {
        perftest(&pair, &format!("ib_{test}_lat"), 8, 1000);
        perftest(&pair, &format!("ib_{test}_bw"), 65536, 1000);
    }
    perftest(&pair, "ib_atomic_lat", 8, 500);

    pair.unload().unwrap();
    behaves_as_recorded(&rig, &pair.model);
    passed("stock driver: the same commands and fields as recorded for golden bytes");
}
