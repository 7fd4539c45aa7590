//! Our daemon in a subnet that Debian's OpenSM manages, from a VM with the stock driver: it brings our port up, and has
//! it in the multicast groups that our guest's queue pairs are in, and in no others.

use std::net::Ipv6Addr;

use integration::peer::{self, EXCHANGE_BYTES, Route, Service, Terms};
use integration::{Daemon, Model, Process, Rig, StockPeer, Vm, VmConfig, passed, stock};

use crate::guest::{Guest, GuestPeer};
use crate::{BROADCAST_GID, LIMIT, broadcast, join_broadcast_group, stock_gid};

const SIGTERM: i32 = 15;
/// Patient with a guest that is translated.
const CONFIG: &str = "force_log_flush TRUE\ntransaction_timeout 1000\n";

fn start(vm: &Vm) -> Process {
    vm.spawn("exec opensm -F /tmp/opensm.conf -f /tmp/opensm.log").unwrap()
}

fn stop(manager: Process) {
    manager.signal(SIGTERM).unwrap();
    assert_eq!(manager.wait(LIMIT).unwrap().status, 0);
}

/// Waits until OpenSM says that a port is a full member of the broadcast group, or that it isn't.
fn wait_for_membership(vm: &Vm, port_gid: [u8; 16], is_member: bool) {
    let list = "saquery --smkey 1 -m 0xc000";
    let members = format!("{list} | grep -c 'PortGid[.]*{} '", Ipv6Addr::from(port_gid));
    wait(vm, &format!("[ $({members}) = {} ]", u8::from(is_member)), list);
}

/// Waits until the switch sends the broadcast group's packets to both ports.
fn wait_for_route(vm: &Vm) {
    let table = "ibroute -M -G 0x0002c90300f00000";
    // A row has an x for each port, and one in its LID.
    wait(vm, &format!("[ $({table} | grep ^0xc000 | grep -o x | wc -l) = 3 ]"), table);
}

/// Waits for a condition of the shell; `show` shows why it doesn't come.
fn wait(vm: &Vm, condition: &str, show: &str) {
    if let Err(error) = vm.check_within(LIMIT, &format!("until {condition}; do sleep 0.2; done")) {
        panic!("{error:#}\n{}", vm.check(show).unwrap());
    }
}

#[test]
fn our_guest_lives_in_a_subnet_of_opensm() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 2, &["--no-sm"]).unwrap();
    let device = format!("vfio-user:{}", model.socket(0).display());
    let daemon = Daemon::on(&rig, &device, &["ours"], 0).unwrap();
    let vm = rig.boot(VmConfig::new("manager").hca(model.socket(1))).unwrap();
    stock::load(&vm).unwrap();
    vm.check("mkdir -p /var/log /var/cache/opensm").unwrap();
    vm.put("/tmp/opensm.conf", 0o644, CONFIG.as_bytes()).unwrap();
    let manager = start(&vm);
    stock::wait_for_active(&vm, "mlx4_0", 1, LIMIT).unwrap();
    let guest = Guest::connect(daemon.guest_socket(0)).unwrap();
    passed("opensm: brings our port up");

    join_broadcast_group(&vm).unwrap();
    let gids = [stock_gid(&vm).unwrap(), guest.gid().unwrap()];
    let both = || {
        let mut theirs = StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES, Service::Ud).unwrap();
        let mut ours = guest.peer(EXCHANGE_BYTES, Service::Ud).unwrap();
        peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
        (theirs, ours)
    };
    let reaches_ours = |theirs: &mut StockPeer, ours: &mut GuestPeer| {
        wait_for_membership(&vm, gids[1], true);
        wait_for_route(&vm);
        peer::datagram(theirs, ours, &broadcast(), [gids[0], BROADCAST_GID], 40).unwrap();
    };
    let (mut theirs, mut ours) = both();
    wait_for_membership(&vm, gids[1], false);
    ours.attach(BROADCAST_GID, broadcast().lid).unwrap();
    reaches_ours(&mut theirs, &mut ours);
    passed("opensm: our port joins the group that our guest's queue pair is in, and gets its packets");

    // It has forgotten all, and asks its ports to register again.
    stop(manager);
    let manager = start(&vm);
    reaches_ours(&mut theirs, &mut ours);
    passed("opensm: another manager is asked too");

    ours.destroy().unwrap();
    wait_for_membership(&vm, gids[1], false);
    theirs.stop().unwrap();
    passed("opensm: it leaves with the last queue pair");

    guest.close().unwrap();
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    stop(manager);
    stock::unload(&vm).unwrap();
    vm.shutdown().unwrap();
    daemon.stop().unwrap();
}
