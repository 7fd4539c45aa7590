//! The speed of the witness: the same programs between two VMs, by stock mlx4 drivers on the model, by the kernel's
//! software RoCE (rxe) over virtio-net, and by TCP over virtio-net. All of it is translated code on the same
//! processors, so only the ratios of one run mean something; none is asserted. The table goes next to the logs too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::Path;

use integration::pair::{Pair, listens, reach};
use integration::{Rig, Vm, passed, stock};
use vmm_config::Device;

const ADDRESSES: [&str; 2] = ["10.7.0.1", "10.7.0.2"];
/// The bytes of messages whose latency and bandwidth are measured.
const LATENCY_BYTES: u32 = 64;
const BANDWIDTH_BYTES: u32 = 65536;

/// The end of an Ethernet whose sockets are in `folder`.
fn ethernet(folder: &Path, place: usize) -> Device {
    let sockets = ["a", "b"].map(|name| folder.join(name));
    let [local, remote] = [place, 1 - place].map(|end| sockets[end].clone());
    Device::Ethernet { local, remote, mac: [0x52, 0x54, 0, 0, 0, u8::from(place != 0)] }
}

/// Takes the Ethernet up, with a device of software RoCE on it.
fn ethernet_up(vm: &Vm, address: &str) {
    vm.check("modprobe -a virtio_net rdma_rxe").unwrap();
    vm.check(&format!(
        "dev=$(ls -d /sys/bus/virtio/drivers/virtio_net/virtio*/net/*) && dev=${{dev##*/}} && ip link set $dev up \
         && ip addr add {address}/24 dev $dev && rdma link add rxe0 type rxe netdev $dev"
    ))
    .unwrap();
}

/// Runs a program of perftest; gives the number in a column of its last table's row.
fn perftest(pair: &Pair, device: &str, name: &str, (size, count): (u32, u32), column: usize) -> f64 {
    // A short queue: rxe loses what comes faster than it can take.
    let depth = if name.ends_with("_bw") { " -t 8" } else { "" };
    let program = format!("{name} -d {device} -F -s {size} -n {count}{depth}");
    let client = format!("{program} {}", ADDRESSES[0]);
    let [_, told] = pair.both(&program, &listens(18515), &client).unwrap();
    let row = told.lines().rfind(|line| line.split_whitespace().next() == Some(&size.to_string()));
    let number = row.and_then(|row| row.split_whitespace().nth(column)?.parse().ok());
    number.unwrap_or_else(|| panic!("{program}: {told}"))
}

/// Runs one of qperf's TCP tests; gives its number in bytes per second, or in nanoseconds.
fn tcp(pair: &Pair, test: &str, size: u32) -> f64 {
    let client = format!("qperf -u -t 3 -m {size} {} {test}", ADDRESSES[0]);
    let server = pair.serve("timeout 60 qperf", &listens(19765)).unwrap();
    let told = pair.connect(&client, &server).unwrap();
    let value = told.lines().find_map(|line| line.split_once('=')?.1.split_whitespace().next()?.parse().ok());
    pair.vms[0].check("killall qperf || true").unwrap();
    value.unwrap_or_else(|| panic!("qperf {test}: {told}"))
}

/// A row for each way: latency in microseconds, bandwidths in MB/s.
fn table(rows: &[(&str, f64, f64, f64)]) -> String {
    let mut text = format!(
        "| way | {} B there, \u{b5}s | {} KiB by write, MB/s | {} KiB by send, MB/s |\n|---|---:|---:|---:|\n",
        LATENCY_BYTES,
        BANDWIDTH_BYTES >> 10,
        BANDWIDTH_BYTES >> 10
    );
    for (way, latency, write, send) in rows {
        let write = if write.is_nan() { "-".to_owned() } else { format!("{write:.0}") };
        text.push_str(&format!("| {way} | {latency:.0} | {write} | {send:.0} |\n"));
    }
    text
}

#[test]
fn stock_drivers_on_the_model_beside_rxe_and_tcp() {
    let rig = Rig::prepare().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::boot(&rig, &[], |config, place| config.device(ethernet(folder.path(), place))).unwrap();
    pair.bring_up().unwrap();
    for (vm, address) in pair.vms.iter().zip(ADDRESSES) {
        ethernet_up(vm, address);
    }
    reach(&pair.vms[1], ADDRESSES[0]).unwrap();

    // Of perftest's rows: the typical latency is the fifth column, the average bandwidth (MiB/s) the fourth.
    let rdma = |device, count| {
        let latency = perftest(&pair, device, "ib_send_lat", (LATENCY_BYTES, count), 4);
        let bandwidth = |name| perftest(&pair, device, name, (BANDWIDTH_BYTES, count), 3) * 1.048_576;
        (latency, bandwidth("ib_write_bw"), bandwidth("ib_send_bw"))
    };
    let (model_row, rxe_row) = (rdma("mlx4_0", 2000), rdma("rxe0", 200));
    let tcp_row =
        (tcp(&pair, "tcp_lat", LATENCY_BYTES) / 1e3, f64::NAN, tcp(&pair, "tcp_bw", BANDWIDTH_BYTES) / 1e6);
    let row = |way, (latency, write, send)| (way, latency, write, send);
    let rows = [
        row("stock mlx4 driver on the model", model_row),
        row("rxe over virtio-net", rxe_row),
        row("TCP over virtio-net", tcp_row),
    ];
    let table = table(&rows);
    for (way, latency, _, send) in rows {
        assert!(latency > 0.0 && send > 0.0, "{way}: {table}");
    }
    println!("{table}");
    passed("the table of speeds");
    fs::write(rig.folder().join("logs/stock_speed.md"), table).unwrap();
    for vm in &pair.vms {
        assert_eq!(stock::problems(vm).unwrap(), [""; 0]);
    }
}
