//! The rig's stock peers: two queue pairs of a guest with the stock driver and the stock verbs, on one card.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use integration::peer::{self, EXCHANGE_BYTES, Peer, Status, Stretch};
use integration::{Model, Rig, StockPeer, VmConfig, stock};

#[test]
fn stock_peers_exchange_verified_data_and_refuse_a_wrong_key() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 1, &[]).unwrap();
    let vm = rig.boot(VmConfig::new("a").hca(model.socket(0))).unwrap();
    stock::bring_up(&vm).unwrap();
    let mut peers = [0, 1].map(|_| StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES).unwrap());
    let [one, other] = &mut peers;
    peer::connect(one, other).unwrap();
    assert_eq!(peer::exchange(one, other).unwrap(), 282);

    let at = Stretch { offset: 0, length: 8, count: 1 };
    one.fill(at, 1).unwrap();
    let error = one.verify(at, 2).unwrap_err();
    assert!(format!("{error:#}").contains("byte 0 of 8 is "), "{error:#}");
    let target = other.endpoint();
    other.post_recv(at).unwrap();
    assert_eq!(one.write(at, target.address, target.rkey ^ 1).unwrap(), Status::REM_ACCESS_ERR);
    assert_eq!(other.received(at).unwrap(), Status::WR_FLUSH_ERR);
    assert_eq!([one.state().unwrap(), other.state().unwrap()], ["ERR", "ERR"]);

    for peer in peers {
        peer.stop().unwrap();
    }
    let mut peer = StockPeer::start(&rig, &vm, "mlx4_0", EXCHANGE_BYTES).unwrap();
    let at = Stretch { offset: 0, length: 4096, count: 1 };
    let told = peer::ping_pong(&vm, "", &mut peer, at, 100).unwrap();
    assert!(told.contains("100 iters in"), "{told}");
    peer.stop().unwrap();
    assert_eq!(stock::problems(&vm).unwrap(), [""; 0]);
}
