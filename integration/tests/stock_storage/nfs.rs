//! NFS over RDMA (RFC 8166, 8267): the client registers memory that the server reads and writes by RDMA.

use integration::{Pair, Vm, passed};

use super::{ADDRESSES, checksum, key_counts, keys_came_and_went, random_file, run};

/// Where the server has its files, and the client sees them.
const SERVED: &str = "/srv/nfs";
const MOUNTED: &str = "/mnt";
/// Sizes of files, in bytes: inline, about a page, about the largest transfer (128 KiB here), and many of them.
const SIZES: [u64; 8] = [1, 1000, 4095, 4097, 131_072, 131_073, 1_000_003, 5 << 20];

/// Serves a folder; ends the time in which clients of an earlier server could reclaim their locks.
fn serve(vm: &Vm) {
    run(vm, "modprobe -a nfsd rpcrdma");
    run(
        vm,
        &format!("mkdir -p {SERVED} /var/lib/nfs/v4recovery && mount -t tmpfs -o size=256m tmpfs {SERVED}"),
    );
    run(vm, "mount -t nfsd nfsd /proc/fs/nfsd && touch /var/lib/nfs/etab /var/lib/nfs/rmtab");
    run(vm, &format!("echo '{SERVED} *(rw,fsid=0,no_root_squash,insecure,no_subtree_check)' > /etc/exports"));
    run(vm, "exportfs -ra && rpc.mountd --no-nfs-version 3 --no-udp");
    run(vm, "echo 10 > /proc/fs/nfsd/nfsv4gracetime && echo 10 > /proc/fs/nfsd/nfsv4leasetime");
    // A listener for TCP needs names of services, which the guest doesn't have; it isn't wanted here.
    run(vm, "rpc.nfsd --no-nfs-version 3 --rdma=20049 4 && grep -q '^rdma 20049' /proc/fs/nfsd/portlist");
    run(vm, "echo Y > /proc/fs/nfsd/v4_end_grace");
}

fn serve_no_more(vm: &Vm) {
    run(vm, "rpc.nfsd 0 && exportfs -ua && killall rpc.mountd");
    run(vm, &format!("umount /proc/fs/nfsd && umount {SERVED}"));
    run(vm, "modprobe -r -a rpcrdma nfsd");
}

/// What the client's transport counts (`xprt_rdma_print_stats` in Linux's net/sunrpc/xprtrdma/transport.c).
#[derive(Debug)]
struct Transport {
    /// Bytes that requests and replies had in memory of their own.
    request_bytes: u64,
    reply_bytes: u64,
    bad_replies: u64,
    registrations: u64,
}

impl Transport {
    fn of(vm: &Vm) -> Self {
        let text = run(vm, "cat /proc/self/mountstats");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("xprt:\trdma "));
        let line = line.unwrap_or_else(|| panic!("no transport by RDMA in {text}"));
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        Self {
            request_bytes: numbers[13],
            reply_bytes: numbers[14],
            bad_replies: numbers[19],
            registrations: numbers[23],
        }
    }
}

pub(super) fn check(pair: &Pair) {
    let [server, client] = &pair.vms;
    serve(server);
    run(client, "modprobe -a nfsv4 rpcrdma");
    let before = key_counts(pair);
    let mount = format!("mount -t nfs4 -o rdma,port=20049,vers=4.2 {}:/ {MOUNTED}", ADDRESSES[0]);
    run(client, &format!("mkdir -p {MOUNTED} && {mount}"));
    files_go_both_ways(pair);
    many_at_once(pair);
    let transport = Transport::of(client);
    let carried: u64 = SIZES.iter().filter(|size| **size > 4096).sum();
    assert!(transport.request_bytes > carried && transport.reply_bytes > carried, "{transport:?}");
    assert!(transport.registrations > 0 && transport.bad_replies == 0, "{transport:?}");
    passed("NFS over RDMA: files of 1 byte to 5 MiB there and back, cached and direct, four at once");
    keys_came_and_went(pair, before, "NFS", true);
    run(client, &format!("umount {MOUNTED}"));
    // The transport ends some time after the last mount.
    run(client, "until modprobe -r -a rpcrdma nfsv4; do sleep 0.1; done");
    serve_no_more(server);
}

/// The client writes files that the server finds, and reads files that the server wrote.
fn files_go_both_ways(pair: &Pair) {
    let [server, client] = &pair.vms;
    for size in SIZES {
        let sum = random_file(client, "/tmp/file", size);
        run(client, &format!("cp /tmp/file {MOUNTED}/up"));
        assert_eq!(checksum(server, &format!("{SERVED}/up"), None), sum, "{size} bytes up");
        assert_eq!(checksum(client, &format!("{MOUNTED}/up"), None), sum, "{size} bytes back");
        let sum = random_file(server, &format!("{SERVED}/down"), size);
        assert_eq!(checksum(client, &format!("{MOUNTED}/down"), None), sum, "{size} bytes down");
        run(client, &format!("rm {MOUNTED}/up {MOUNTED}/down"));
    }
    let sum = random_file(client, "/tmp/file", 8 << 20);
    run(client, &format!("dd if=/tmp/file of={MOUNTED}/direct bs=1M oflag=direct"));
    assert_eq!(checksum(server, &format!("{SERVED}/direct"), None), sum);
    assert_eq!(checksum(client, &format!("{MOUNTED}/direct"), Some(8)), sum);
    run(client, &format!("rm /tmp/file {MOUNTED}/direct"));
}

/// Four processes write a file each, and then read another one's.
fn many_at_once(pair: &Pair) {
    let [server, client] = &pair.vms;
    let sum = random_file(client, "/tmp/file", 4 << 20);
    let write = format!("for i in 1 2 3 4; do cp /tmp/file {MOUNTED}/$i & done; wait");
    run(client, &format!("{write}; sync; echo 3 > /proc/sys/vm/drop_caches"));
    let read =
        "for i in 1 2 3 4; do sha256sum /mnt/$i > /tmp/sum$i & done; wait; cat /tmp/sum?; rm /tmp/sum?";
    let (there, here) = (run(server, &format!("sha256sum {SERVED}/[1-4]")), run(client, read));
    for sums in [there, here] {
        assert_eq!(sums.matches(&sum).count(), 4, "{sums}");
    }
    run(client, &format!("rm /tmp/file {MOUNTED}/[1-4]"));
}
