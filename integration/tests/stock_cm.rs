//! The kernel's RDMA connection manager and IP over InfiniBand on the model: two guests with stock drivers, of
//! two kernels, on one fabric run librdmacm's own programs, and exchange IP in datagram and connected mode, in
//! two partitions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use integration::pair::{Pair, reach};
use integration::patience::until;
use integration::{Kernel, Model, Rig, all, passed, stock};

/// Guest code is translated, and two guests share the machine's processors with the model.
const LIMIT: Duration = Duration::from_secs(120);
/// Of ib0 in the two guests, in the default partition.
const ADDRESSES: [&str; 2] = ["10.9.8.1", "10.9.8.2"];
/// Of ib0.8001, in the other partition.
const OTHER_ADDRESSES: [&str; 2] = ["10.9.9.1", "10.9.9.2"];
/// The multicast group of mckey: its address, and the MGID that ib_ipoib's rules make of it.
const GROUP: (&str, &str) = ("239.1.2.3", "ff124001ffff0000000000000f010203");
/// What ib_ipoib says, as warnings, whenever connected mode is turned on.
const CONNECTED_MODE_WARNINGS: [&str; 2] =
    ["enabling connected mode will cause multicast packet drops", "will cause multicast packet drops."];

/// Waits until HCAs' multicast tables have been given a group `count` times.
fn wait_for_group(model: &Model, mgid: &str, count: usize) {
    let is_written = |line: &&str| line.trim_start().starts_with("in hex") && line.contains(mgid);
    until(mgid, || Ok(model.trace()?.lines().filter(is_written).count() >= count)).unwrap();
}

/// The shell's test for a program that listens by the connection manager.
const CM_LISTENS: &str = "rdma resource show cm_id | grep -q LISTEN";

/// Runs a program of the connection manager at both ends; gives what they print.
fn both(pair: &Pair, server: &str, client: &str) -> [String; 2] {
    pair.both(server, CM_LISTENS, client).unwrap()
}

fn rping(pair: &Pair, address: &str) {
    for size in [64, 65535] {
        let options = format!("-a {address} -C 20 -S {size} -V");
        both(pair, &format!("rping -s {options}"), &format!("rping -c {options}"));
        passed(format_args!("rping of {size} bytes at {address}"));
    }
}

fn connection_manager(pair: &Pair) {
    let server = ADDRESSES[0];
    rping(pair, server);
    for (program, options) in [("ucmatose", "-c 4 -C 20 -S 4096"), ("udaddy", "-c 2 -C 20 -S 1024")] {
        let outputs =
            both(pair, &format!("{program} {options}"), &format!("{program} -s {server} {options}"));
        for output in outputs {
            assert!(output.contains("data transfers complete"), "{program}: {output}");
            assert!(output.contains("return status 0"), "{program}: {output}");
        }
        passed(format_args!("{program} {options}"));
    }

    // Its server goes on listening.
    let process = pair.serve("cmtime -c 20", CM_LISTENS).unwrap();
    let times = pair.connect(&format!("cmtime -s {server} -c 20"), &process).unwrap();
    for step in ["resolve addr", "resolve route", "connect", "disconnect"] {
        assert!(times.lines().any(|line| line.starts_with(step)), "no {step} in {times}");
    }
    process.kill().unwrap();
    passed("cmtime: 20 connections");

    for size in ["1000", "65536"] {
        let options = format!("-S {size} -C 50 -I 10");
        for output in both(pair, &format!("rstream {options}"), &format!("rstream -s {server} {options}")) {
            assert!(output.contains("usec/xfer"), "rstream: {output}");
        }
        passed(format_args!("rstream {options}"));
    }
    // Its server goes on, too.
    let process = pair.serve(&format!("udpong -b {server}"), "ss -lun | grep -q ':7174 '").unwrap();
    let output = pair.connect(&format!("udpong -s {server} -C 100 -S 512"), &process).unwrap();
    assert!(output.lines().any(|line| line.starts_with("custom")), "udpong: {output}");
    process.kill().unwrap();
    passed("udpong: 100 datagrams");
}

/// mckey's receiver ends when it has all messages, so the sender starts when it is a member.
fn multicast(pair: &Pair) {
    let (address, mgid) = GROUP;
    let options = format!("-m {address} -C 20 -S 512");
    let receiver = pair.vms[0].spawn(&format!("mckey {options} -b {}", ADDRESSES[0])).unwrap();
    wait_for_group(&pair.model, mgid, 1);
    let sent = pair.connect(&format!("mckey {options} -b {} -s", ADDRESSES[1]), &receiver).unwrap();
    let received = receiver.wait(LIMIT).unwrap();
    assert_eq!(received.status, 0, "mckey: {received}");
    for output in [sent, received.stdout] {
        assert!(output.contains("data transfers complete"), "mckey: {output}");
    }
    passed(format_args!("mckey: 20 messages to {address}"));
}

/// Pings of sizes up to the MTU, without fragments, and one that is too long.
fn pings(pair: &Pair, address: &str, sizes: &[u32]) {
    let longest = sizes.iter().max().unwrap();
    let list: Vec<String> = sizes.iter().map(u32::to_string).collect();
    let ping = format!(
        "for size in {}; do ping -c 3 -i 0.2 -W 5 -M do -s $size {address} || exit 1; done",
        list.join(" ")
    );
    let output = pair.vms[0].check_within(LIMIT, &ping).unwrap();
    let complete = output.matches("3 packets transmitted, 3 received").count();
    assert_eq!(complete, sizes.len(), "{output}");
    let too_long = format!("ping -c 1 -W 1 -M do -s {} {address}", longest + 1);
    assert_ne!(pair.vms[0].run(&too_long).unwrap().status, 0);
    passed(format_args!("ping of {} sizes up to {longest} bytes at {address}", sizes.len()));
}

/// A ping of each `step`th size up to the longest, whole or in fragments of IP as the MTU has it.
fn pings_by_step(pair: &Pair, address: &str, longest: u32, step: usize) {
    let ping = format!(
        "n=0; for size in $(seq 0 {step} {longest}); do ping -q -c 1 -W 10 -s $size {address} >/dev/null \
         || {{ echo $size bytes are lost; exit 1; }}; n=$((n + 1)); done; echo $n"
    );
    let answered = pair.vms[1].check_within(LIMIT * 10, &ping).unwrap();
    passed(format_args!("ping of each {step}. size to {longest} bytes at {address}: {}", answered.trim()));
}

/// TCP in both directions.
fn iperf(pair: &Pair, address: &str) {
    for reverse in ["", " -R"] {
        let server = pair.serve(&format!("iperf3 -s -1 -B {address}"), "ss -ltn | grep -q ':5201 '").unwrap();
        let report = pair.connect(&format!("iperf3 -c {address} -n 32M{reverse}"), &server).unwrap();
        assert!(report.contains("iperf Done."), "{report}");
        assert_eq!(server.wait(LIMIT).unwrap().status, 0);
        passed(format_args!("iperf3{reverse} at {address}"));
    }
}

fn set_connected_mode(pair: &Pair, interface: &str, address: &str) {
    for vm in &pair.vms {
        let class = format!("/sys/class/net/{interface}");
        vm.check(&format!("echo connected > {class}/mode && ip link set {interface} mtu 65520 up")).unwrap();
        assert_eq!(vm.check(&format!("cat {class}/mode {class}/mtu")).unwrap(), "connected\n65520\n");
    }
    reach(&pair.vms[0], address).unwrap();
}

/// The second partition has an interface of its own, whose packets bear its P_Key.
fn second_partition(pair: &Pair) {
    for vm in &pair.vms {
        let table = vm.check("cat /sys/class/infiniband/mlx4_0/ports/1/pkeys/[01]").unwrap();
        assert_eq!(table, "0xffff\n0x8001\n");
        vm.check("echo 0x8001 > /sys/class/net/ib0/create_child").unwrap();
        assert_eq!(vm.check("cat /sys/class/net/ib0.8001/pkey").unwrap().trim(), "0x8001");
    }
    pair.address("ib0.8001", OTHER_ADDRESSES).unwrap();
    pings(pair, OTHER_ADDRESSES[1], &[0, 56, 2016]);
    pair.ping_all_nodes("ib0.8001").unwrap();
    passed("multicast ping on ib0.8001");
    iperf(pair, OTHER_ADDRESSES[0]);
    rping(pair, OTHER_ADDRESSES[0]);
    partitions_are_apart(pair);
    set_connected_mode(pair, "ib0.8001", OTHER_ADDRESSES[1]);
    pings(pair, OTHER_ADDRESSES[1], &[56, 2017, 65492]);
    for vm in &pair.vms {
        vm.check("echo 0x8001 > /sys/class/net/ib0/delete_child").unwrap();
    }
}

/// Queue pairs of one partition reach each other, those of two don't.
fn partitions_are_apart(pair: &Pair) {
    const LISTENS: &str = "ss -ltn | grep -q ':18515 '";
    let program = "ib_send_lat -d mlx4_0 -F -s 8 -n 100 --pkey_index";
    let server = pair.serve(&format!("{program} 1"), LISTENS).unwrap();
    pair.connect(&format!("{program} 1 {}", ADDRESSES[0]), &server).unwrap();
    assert_eq!(server.wait(LIMIT).unwrap().status, 0);
    let server = pair.serve(&format!("{program} 0"), LISTENS).unwrap();
    let refused = pair.vms[1].run_within(LIMIT, &format!("{program} 1 {}", ADDRESSES[0])).unwrap();
    assert_ne!(refused.status, 0, "{refused}");
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(text.contains("status 12"), "no retry exceeded: {refused}");
    server.kill().unwrap();
    passed("queue pairs of two partitions don't reach each other");
}

#[test]
fn connection_manager_and_ip_work_between_stock_drivers() {
    let rig = Rig::prepare().unwrap();
    let kernels = [Kernel::Stable, Kernel::Newest];
    let pair =
        Pair::boot(&rig, &["--pkey", "0x8001"], |config, place| config.kernel(kernels[place])).unwrap();
    pair.bring_up().unwrap();
    for vm in &pair.vms {
        vm.check("modprobe rdma_ucm").unwrap();
    }
    pair.address("ib0", ADDRESSES).unwrap();

    connection_manager(&pair);
    multicast(&pair);

    pings(&pair, ADDRESSES[1], &[0, 1, 2, 3, 56, 255, 256, 1000, 1500, 2016]);
    pings_by_step(&pair, ADDRESSES[0], 2016, if all() { 1 } else { 31 });
    pings_by_step(&pair, ADDRESSES[0], 65507, if all() { 101 } else { 6007 });
    iperf(&pair, ADDRESSES[0]);
    set_connected_mode(&pair, "ib0", ADDRESSES[1]);
    pings_by_step(&pair, ADDRESSES[0], 65492, if all() { 101 } else { 3001 });
    pings(&pair, ADDRESSES[1], &[0, 1, 56, 1500, 2016, 2017, 4096, 9000, 32768, 65491, 65492]);
    iperf(&pair, ADDRESSES[0]);
    pair.ping_all_nodes("ib0").unwrap();
    passed("multicast ping on ib0");
    rping(&pair, ADDRESSES[0]);
    second_partition(&pair);

    for vm in &pair.vms {
        let problems = stock::problems(vm).unwrap();
        let others: Vec<_> = problems
            .iter()
            .filter(|line| !CONNECTED_MODE_WARNINGS.iter().any(|known| line.contains(known)))
            .collect();
        assert!(others.is_empty(), "{others:?}");
        vm.check("modprobe -r rdma_ucm").unwrap();
        stock::unload(vm).unwrap();
    }
}
