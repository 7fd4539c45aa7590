//! The daemon's guest and a guest with the stock driver, on one fabric: `paraverbsd --device model
//! --fabric-socket` serves the card of the second one, and RDMA goes both ways between verbs of ours and the
//! stock ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod guest;

use integration::peer::{self, EXCHANGE_BYTES, EXCHANGE_MESSAGES, Peer, Stretch};
use integration::{Daemon, Rig, StockPeer, VmConfig, stock};

use guest::Guest;

#[test]
fn our_guest_and_a_stock_guest_exchange_verified_data() {
    let rig = Rig::prepare().unwrap();
    let daemon = Daemon::start(&rig, &["ours"], 1).unwrap();
    let vm = rig.boot(VmConfig::new("stock").hca(daemon.fabric_socket(0))).unwrap();
    stock::bring_up(&vm).unwrap();
    let guest = Guest::connect(daemon.guest_socket(0)).unwrap();

    // An intrusion ends a connection, so each of the two has one.
    for stock_intrudes in [true, false] {
        let mut theirs = StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES).unwrap();
        let mut ours = guest.peer(EXCHANGE_BYTES).unwrap();
        assert_ne!(theirs.endpoint().lid, ours.endpoint().lid, "each has a card of its own");
        peer::connect(&mut theirs, &mut ours).unwrap();
        assert_eq!(peer::exchange(&mut theirs, &mut ours).unwrap(), EXCHANGE_MESSAGES);
        if stock_intrudes {
            peer::intrude(&mut theirs, &mut ours).unwrap();
            guest.wait_for_access_error(&ours).unwrap();
        } else {
            peer::intrude(&mut ours, &mut theirs).unwrap();
        }
        theirs.stop().unwrap();
        ours.destroy().unwrap();
    }

    for options in ["", "-e"] {
        let mut ours = guest.peer(EXCHANGE_BYTES).unwrap();
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
