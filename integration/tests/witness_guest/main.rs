//! The daemon's guest and a guest with the stock driver, on one fabric: `paraverbsd --device model
//! --fabric-socket` serves the card of the second one, and RDMA goes both ways between verbs of ours and the
//! stock ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod guest;

use integration::peer::{self, EXCHANGE_BYTES, Peer, Service, Stretch, Terms, Trespass};
use integration::{Daemon, Rig, StockPeer, VmConfig, stock};

use guest::{Guest, GuestPeer};

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

    for service in [Service::Rc, Service::Uc] {
        for mtu in [256, 512, 1024, 2048, 4096] {
            let (mut theirs, mut ours) = both(service);
            peer::connect(&mut theirs, &mut ours, &Terms { mtu, ..Terms::default() }).unwrap();
            let messages = peer::exchange(&mut theirs, &mut ours, service).unwrap();
            assert_eq!(messages, service.exchange_messages());
            if service == Service::Rc {
                peer::count(&mut theirs, &mut ours).unwrap();
                peer::count(&mut ours, &mut theirs).unwrap();
            }
            apart((theirs, ours));
            println!("ok     {service:?}, MTU {mtu}: {messages} messages");
        }
    }

    let (mut theirs, mut ours) = both(Service::Ud);
    peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
    let messages = peer::exchange(&mut theirs, &mut ours, Service::Ud).unwrap();
    assert_eq!(messages, Service::Ud.exchange_messages());
    apart((theirs, ours));
    println!("ok     Ud: {messages} messages");

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
