//! Our driver and the stock one on one fabric: a card of the model in this process and one in a VM exchange
//! data both ways.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod card;

use integration::peer::{self, EXCHANGE_BYTES, Peer, Service, Stretch, Terms};
use integration::{Rig, StockPeer, VmConfig, stock};
use mlx4_model::fabric::{Fabric, FabricConfig};
use mlx4_model::hca::HcaConfig;
use mlx4_model::vfio_user::ServedCard;

use card::Card;

/// Node GUIDs of our card and the other one.
const GUIDS: [u64; 2] = [0x0002_c903_00b0_0000, 0x0002_c903_00b0_0100];

#[test]
fn our_driver_and_the_stock_driver_exchange_verified_data() {
    let rig = Rig::prepare().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("stock");
    let fabric = Fabric::new(FabricConfig::default()).unwrap();
    let served =
        ServedCard::start(&socket, HcaConfig { node_guid: GUIDS[1], ports: 1, trace: None }, &fabric)
            .unwrap();
    let vm = rig.boot(VmConfig::new("stock").hca(&socket)).unwrap();
    stock::bring_up(&vm).unwrap();
    let card = Card::open(&fabric, GUIDS[0]).unwrap();

    // An intrusion ends a connection, so each of the two has one.
    for stock_intrudes in [true, false] {
        let mut theirs = StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES, Service::Rc).unwrap();
        let mut ours = card.peer(EXCHANGE_BYTES).unwrap();
        peer::connect(&mut theirs, &mut ours, &Terms::default()).unwrap();
        let messages = peer::exchange(&mut theirs, &mut ours, Service::Rc).unwrap();
        assert_eq!(messages, Service::Rc.exchange_messages());
        peer::count(&mut theirs, &mut ours).unwrap();
        peer::count(&mut ours, &mut theirs).unwrap();
        if stock_intrudes {
            peer::intrude(&mut theirs, &mut ours).unwrap();
        } else {
            peer::intrude(&mut ours, &mut theirs).unwrap();
        }
        theirs.stop().unwrap();
        ours.destroy().unwrap();
    }

    let mut theirs = StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES, Service::Rc).unwrap();
    let at = Stretch { offset: 0, length: 4096, count: 1 };
    theirs.fill(at, 1).unwrap();
    let error = theirs.verify(at, 2).unwrap_err();
    assert!(format!("{error:#}").contains("byte 0 of 4096 is "), "{error:#}");
    theirs.stop().unwrap();

    let mut ours = card.peer(EXCHANGE_BYTES).unwrap();
    let told = peer::ping_pong(&vm, "", &mut ours, at, 1000).unwrap();
    assert!(told.contains("1000 iters in"), "{told}");
    ours.destroy().unwrap();

    card.close().unwrap();
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
    stock::unload(&vm).unwrap();
    vm.shutdown().unwrap();
    served.stop();
}
