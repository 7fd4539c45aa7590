//! The daemon's guest and a guest with the stock driver, on one fabric: `paraverbsd --device model
//! --fabric-socket` serves the card of the second one, and RDMA goes both ways between verbs of ours and the
//! stock ones. And both in a subnet of OpenSM's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod guest;
mod opensm;

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::peer::{self, EXCHANGE_BYTES, Peer, QKEY, Route, Service, Stretch, Terms, Trespass, Way};
use integration::{Daemon, Rig, StockPeer, Vm, VmConfig, stock};

use guest::{Guest, GuestPeer};

/// The stock driver is asked through a shell in its guest.
const LIMIT: Duration = Duration::from_secs(60);
/// The broadcast group of IPv4 in the default partition (RFC 4391), and its LID, the first that the subnet has.
const BROADCAST_GID: [u8; 16] =
    [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
const BROADCAST_LID: u16 = 0xc000;

/// A counter of the stock driver's that counts RNR NAKs, as it was.
struct Refusals<'a> {
    vm: &'a Vm,
    name: &'static str,
    before: u64,
}

impl<'a> Refusals<'a> {
    fn count(vm: &'a Vm, name: &'static str) -> Result<Self> {
        let before = Self::read(vm, name)?;
        Ok(Self { vm, name, before })
    }

    fn read(vm: &Vm, name: &str) -> Result<u64> {
        let count = vm.check(&format!("cat /sys/class/infiniband/mlx4_0/hw_counters/{name}"))?;
        count.trim().parse().with_context(|| format!("{name} is {count:?}"))
    }

    /// Waits until there are more.
    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while Self::read(self.vm, self.name)? == self.before {
            ensure!(Instant::now() < deadline, "{} stays {} for {LIMIT:?}", self.name, self.before);
        }
        Ok(())
    }
}

/// The first GID of the stock guest's port.
fn stock_gid(vm: &Vm) -> Result<[u8; 16]> {
    let gid = vm.check("cat /sys/class/infiniband/mlx4_0/ports/1/gids/0")?;
    Ok(gid.trim().parse::<Ipv6Addr>().with_context(|| format!("the GID is {gid:?}"))?.octets())
}

/// The way to the broadcast group.
fn broadcast() -> Way {
    Way { lid: BROADCAST_LID, qpn: 0xff_ffff, qkey: QKEY, gid: Some(BROADCAST_GID) }
}

/// Has the stock kernel join the subnet's broadcast group, as it does for IPoIB.
fn join_broadcast_group(vm: &Vm) -> Result<()> {
    vm.check("ip link set ib0 up")?;
    let deadline = Instant::now() + LIMIT;
    // There is a carrier once it is in the group.
    while vm.check("cat /sys/class/net/ib0/carrier")?.trim() != "1" {
        ensure!(Instant::now() < deadline, "ib0 has no carrier after {LIMIT:?}");
    }
    Ok(())
}

#[test]
fn our_guest_and_a_stock_guest_exchange_verified_data() {
    let rig = Rig::prepare().unwrap();
    let daemon = Daemon::start(&rig, &["ours"], 1).unwrap();
    let vm = rig.boot(VmConfig::new("stock").hca(daemon.fabric_socket(0))).unwrap();
    stock::bring_up(&vm).unwrap();
    let guest = Guest::connect(daemon.guest_socket(0)).unwrap();

    let both = |service| {
        let theirs = StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES, service).unwrap();
        let ours = guest.peer(EXCHANGE_BYTES, service).unwrap();
        assert_ne!(theirs.endpoint().lid, ours.endpoint().lid, "each has a card of its own");
        (theirs, ours)
    };
    let apart = |(theirs, ours): (StockPeer, GuestPeer)| {
        theirs.stop().unwrap();
        ours.destroy().unwrap();
    };

    for service in [Service::Rc, Service::Uc, Service::Xrc] {
        for mtu in [256, 512, 1024, 2048, 4096] {
            let (mut theirs, mut ours) = both(service);
            peer::connect(&mut theirs, &mut ours, &Terms { mtu, ..Terms::default() }).unwrap();
            let messages = peer::exchange(&mut theirs, &mut ours, service).unwrap();
            assert_eq!(messages, service.exchange_messages());
            if service.is_reliable() {
                peer::count(&mut theirs, &mut ours).unwrap();
                peer::count(&mut ours, &mut theirs).unwrap();
            }
            apart((theirs, ours));
            println!("ok     {service:?}, MTU {mtu}: {messages} messages");
        }
    }

    let (mut theirs, mut ours) = both(Service::RcShared);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    let messages = peer::exchange(&mut theirs, &mut ours, Service::RcShared).unwrap();
    apart((theirs, ours));
    println!("ok     RcShared: {messages} messages");
    for service in [Service::RcShared, Service::Xrc] {
        for stock_is_at_fault in [true, false] {
            let (mut theirs, mut ours) = both(service);
            if stock_is_at_fault {
                peer::starve(&mut theirs, &mut ours).unwrap();
            } else {
                peer::starve(&mut ours, &mut theirs).unwrap();
            }
            apart((theirs, ours));
        }
        println!("ok     {service:?}: no receive in the shared queue of either end");
    }

    let (mut theirs, mut ours) = both(Service::Ud);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    let messages = peer::exchange(&mut theirs, &mut ours, Service::Ud).unwrap();
    assert_eq!(messages, Service::Ud.exchange_messages());
    apart((theirs, ours));
    println!("ok     Ud: {messages} messages");

    for service in [Service::Rc, Service::RcShared, Service::Xrc, Service::Uc, Service::Ud] {
        let (mut theirs, mut ours) = both(service);
        peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
        peer::tell(&mut theirs, &mut ours, service).unwrap();
        peer::tell(&mut ours, &mut theirs, service).unwrap();
        apart((theirs, ours));
        integration::passed(format_args!("{service:?}: immediate data, in both directions"));
    }

    let (mut theirs, mut ours) = both(Service::Uc);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    peer::lose(&mut theirs, &mut ours).unwrap();
    peer::lose(&mut ours, &mut theirs).unwrap();
    apart((theirs, ours));
    integration::passed("Uc: a message without a receive is lost, and the next one arrives, at either end");

    let (mut theirs, mut ours) = both(Service::Ud);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    let [their_gid, our_gid] = [stock_gid(&vm).unwrap(), guest.gid().unwrap()];
    peer::address(&mut theirs, &mut ours, [their_gid, our_gid]).unwrap();
    peer::address(&mut ours, &mut theirs, [our_gid, their_gid]).unwrap();
    integration::passed("Ud: GRH looked at, and a wrong Q_Key dropped, in both directions");
    join_broadcast_group(&vm).unwrap();
    theirs.attach(BROADCAST_GID, BROADCAST_LID).unwrap();
    peer::datagram(&mut ours, &mut theirs, &broadcast(), [our_gid, BROADCAST_GID], 40).unwrap();
    apart((theirs, ours));
    // The daemon joins the group for its port before the guest hears that its queue pair is in it.
    let (mut theirs, mut ours) = both(Service::Ud);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    ours.attach(BROADCAST_GID, BROADCAST_LID).unwrap();
    peer::datagram(&mut theirs, &mut ours, &broadcast(), [their_gid, BROADCAST_GID], 40).unwrap();
    apart((theirs, ours));
    integration::passed("Ud: multicast, in both directions");

    let (mut theirs, mut ours) = both(Service::Rc);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    peer::revoke(&mut theirs, &mut ours).unwrap();
    apart((theirs, ours));
    let (mut theirs, mut ours) = both(Service::Rc);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    peer::revoke(&mut ours, &mut theirs).unwrap();
    apart((theirs, ours));
    integration::passed("Rc: a window written to, and its key invalidated by a send, in both directions");

    for service in [Service::Rc, Service::RcShared, Service::Xrc] {
        let (mut theirs, mut ours) = both(service);
        peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
        let refusals = Refusals::count(&vm, "sq_num_rnr").unwrap();
        peer::late(&mut theirs, &mut ours, || refusals.wait()).unwrap();
        let refusals = Refusals::count(&vm, "rq_num_rnr").unwrap();
        peer::late(&mut ours, &mut theirs, || refusals.wait()).unwrap();
        apart((theirs, ours));
        integration::passed(format_args!("{service:?}: a receive that comes after RNR NAKs, at either end"));
    }

    // Each of these ends a connection.
    for stock_is_at_fault in [true, false] {
        let (mut theirs, mut ours) = both(Service::Rc);
        peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
        if stock_is_at_fault {
            peer::intrude(&mut theirs, &mut ours).unwrap();
            guest.wait_for_access_error(&ours).unwrap();
        } else {
            peer::intrude(&mut ours, &mut theirs).unwrap();
        }
        apart((theirs, ours));
        for fault in [peer::starve, peer::miss] {
            let (mut theirs, mut ours) = both(Service::Rc);
            if stock_is_at_fault {
                fault(&mut theirs, &mut ours).unwrap();
            } else {
                fault(&mut ours, &mut theirs).unwrap();
            }
            apart((theirs, ours));
        }
        println!("ok     wrong key, no receive, nobody there; at fault: stock {stock_is_at_fault}");
    }

    for stock_is_at_fault in [true, false] {
        for what in Trespass::ALL {
            let (mut theirs, mut ours) = both(Service::Rc);
            peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
            if stock_is_at_fault {
                peer::trespass(&mut theirs, &mut ours, EXCHANGE_BYTES, what).unwrap();
            } else {
                peer::trespass(&mut ours, &mut theirs, EXCHANGE_BYTES, what).unwrap();
            }
            apart((theirs, ours));
        }
        println!("ok     {:?}; at fault: stock {stock_is_at_fault}", Trespass::ALL);
    }

    for options in ["", "-e"] {
        let mut ours = guest.peer(EXCHANGE_BYTES, Service::Rc).unwrap();
        let at = Stretch { offset: 0, length: 4096, count: 1 };
        let told = peer::ping_pong(&vm, options, &mut ours, at, 1000).unwrap();
        assert!(told.contains("1000 iters in"), "{told}");
        ours.destroy().unwrap();
    }

    guest.close().unwrap();
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    stock::unload(&vm).unwrap();
    vm.shutdown().unwrap();
    let log = daemon.log();
    assert!(log.lines().all(|line| line.starts_with("serving ")), "{log}");
    daemon.stop().unwrap();
}
