//! The daemon's guest and a guest with the stock driver, on one fabric: `paraverbsd --device model
//! --fabric-socket` serves the card of the second one, and RDMA goes both ways between verbs of ours and the
//! stock ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod guest;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::peer::{self, EXCHANGE_BYTES, Peer, Service, Stretch, Terms, Trespass};
use integration::{Daemon, Rig, StockPeer, Vm, VmConfig, stock};

use guest::{Guest, GuestPeer};

/// The stock driver is asked through a shell in its guest.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

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
        let deadline = Instant::now() + REFUSAL_LIMIT;
        while Self::read(self.vm, self.name)? == self.before {
            ensure!(Instant::now() < deadline, "{} stays {} for {REFUSAL_LIMIT:?}", self.name, self.before);
        }
        Ok(())
    }
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
