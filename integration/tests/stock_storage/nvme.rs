//! NVMe over RDMA (NVMe over Fabrics): a disk of one guest's memory is the other one's disk. The client registers
//! memory, if it is told to for each request, or else only for what doesn't lie in one piece.

use integration::patience::until;
use integration::{Pair, Vm, passed};

use super::{ADDRESSES, checksum, key_counts, keys_came_and_went, random_file, run};

/// What ib_ipoib says of a join while its cable is pulled.
pub(super) const JOIN_WITHOUT_CABLE: &str = "multicast join failed";
/// The disk at both ends, and its size.
const SERVED: &str = "/dev/ram0";
const DISK: &str = "/dev/nvme0n1";
const MIB: u32 = 32;
/// Where the server is configured, and the controller's own files at the client.
const TARGET: &str = "/sys/kernel/config/nvmet";
const CONTROLLER: &str = "/sys/class/nvme/nvme0";

fn serve(vm: &Vm) {
    run(vm, &format!("modprobe nvmet_rdma && modprobe brd rd_nr=1 rd_size={}", MIB << 10));
    run(vm, "mount -t configfs none /sys/kernel/config");
    run(
        vm,
        &format!(
            "cd {TARGET}/subsystems && mkdir disk && echo 1 > disk/attr_allow_any_host && mkdir disk/namespaces/1 \
             && echo -n {SERVED} > disk/namespaces/1/device_path && echo 1 > disk/namespaces/1/enable"
        ),
    );
    run(
        vm,
        &format!(
            "mkdir {TARGET}/ports/1 && cd {TARGET}/ports/1 && echo rdma > addr_trtype && echo ipv4 > addr_adrfam \
             && echo {} > addr_traddr && echo 4420 > addr_trsvcid && ln -s ../../subsystems/disk subsystems/disk",
            ADDRESSES[0]
        ),
    );
}

fn serve_no_more(vm: &Vm) {
    run(vm, &format!("rm {TARGET}/ports/1/subsystems/disk && rmdir {TARGET}/ports/1"));
    run(vm, &format!("cd {TARGET}/subsystems && rmdir disk/namespaces/1 disk"));
    run(vm, "umount /sys/kernel/config && modprobe -r -a nvmet_rdma brd");
}

/// Connects with two queues for I/O.
fn connect(vm: &Vm, register_always: &str) {
    run(vm, &format!("modprobe nvme_rdma register_always={register_always}"));
    let options = format!(
        "transport=rdma,traddr={},trsvcid=4420,nqn=disk,nr_io_queues=2,reconnect_delay=1,keep_alive_tmo=2",
        ADDRESSES[0]
    );
    run(vm, &format!("echo -n '{options}' > /dev/nvme-fabrics && until [ -b {DISK} ]; do sleep 0.1; done"));
    assert_eq!(run(vm, &format!("cat {CONTROLLER}/queue_count")).trim(), "3");
}

fn disconnect(vm: &Vm) {
    run(vm, &format!("echo 1 > {CONTROLLER}/delete_controller && [ ! -e {DISK} ]"));
    run(vm, "modprobe -r nvme_rdma");
}

pub(super) fn check(pair: &Pair) {
    let [server, client] = &pair.vms;
    serve(server);
    for register_always in ["Y", "N"] {
        let before = key_counts(pair);
        connect(client, register_always);
        blocks(pair);
        several_at_once(pair);
        passed(format_args!(
            "NVMe over RDMA, register_always={register_always}: blocks of 512 bytes to 1 MiB, four writers at once"
        ));
        if register_always == "Y" {
            keys_came_and_went(pair, before, "NVMe", false);
            cable_is_pulled(pair);
        }
        disconnect(client);
    }
    serve_no_more(server);
}

/// Writes blocks of some sizes, and compares what both ends read.
fn blocks(pair: &Pair) {
    let [server, client] = &pair.vms;
    for (size, count) in [(512, 64), (4096, 64), (8192, 32), (65536, 32), (1 << 20, 16)] {
        let sum = random_file(client, "/tmp/file", size * count);
        run(client, &format!("dd if=/tmp/file of={DISK} bs={size} oflag=direct"));
        let read = format!("bs={size} count={count} iflag=direct 2>/dev/null | sha256sum");
        for (vm, disk) in [(client, DISK), (server, SERVED)] {
            let found = run(vm, &format!("dd if={disk} {read}"));
            assert!(found.starts_with(&sum), "{size} bytes at a time, on {disk}: {found}, not {sum}");
        }
    }
    run(client, "rm /tmp/file");
}

/// Four processes write a quarter of the disk each.
fn several_at_once(pair: &Pair) {
    let [server, client] = &pair.vms;
    random_file(client, "/tmp/file", u64::from(MIB) << 20);
    let quarter = MIB / 4;
    let write =
        format!("dd if=/tmp/file of={DISK} bs=64k count={0} skip=$s seek=$s oflag=direct", quarter * 16);
    run(client, &format!("for i in 0 1 2 3; do s=$((i * {})); {write} & done; wait", quarter * 16));
    let sum = checksum(client, "/tmp/file", None);
    assert_eq!([checksum(client, DISK, Some(MIB)), checksum(server, SERVED, Some(MIB))], [&*sum, &*sum]);
    run(client, "rm /tmp/file");
}

/// The client's cable is pulled while it writes, and put back when it has noticed; the writes end all the same.
fn cable_is_pulled(pair: &Pair) {
    let [server, client] = &pair.vms;
    let sum = random_file(client, "/tmp/file", u64::from(MIB) << 20);
    let is = |state: &str| Ok(client.run(&format!("cat {CONTROLLER}/state"))?.stdout.trim() == state);
    let writer = client.spawn(&format!("exec dd if=/tmp/file of={DISK} bs=64k oflag=direct")).unwrap();
    let sent = pair.model.count(1, "send_wqes").unwrap();
    until("the first writes", || Ok(pair.model.count(1, "send_wqes")? > sent + 20)).unwrap();
    pair.model.set_cable(2, false).unwrap();
    until("the controller's loss", || is("connecting")).unwrap();
    assert!(writer.is_running(), "it ended before the cable was pulled: {:?}", writer.output());
    pair.model.set_cable(2, true).unwrap();
    until("the controller's return", || is("live")).unwrap();
    let output = writer.wait(super::LIMIT).unwrap();
    assert_eq!(output.status, 0, "{output}");
    assert_eq!([checksum(client, DISK, Some(MIB)), checksum(server, SERVED, Some(MIB))], [&*sum, &*sum]);
    run(client, "rm /tmp/file");
    passed("NVMe over RDMA: a cable pulled while it writes and put back; nothing is lost");
}
