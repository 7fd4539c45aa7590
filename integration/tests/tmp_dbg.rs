//! dbg
use std::time::Duration;
use integration::{Model, Rig, VmConfig, stock};
#[test]
fn dbg() {
    let rig = Rig::prepare().unwrap();
    let model = Model::start(&rig, 2, &[]).unwrap();
    let config = |name, hca| VmConfig::new(name).hca(model.socket(hca));
    let vms = std::thread::scope(|scope| {
        let other = scope.spawn(|| rig.boot(config("b", 1)).unwrap());
        [rig.boot(config("a", 0)).unwrap(), other.join().unwrap()]
    });
    for vm in &vms { stock::bring_up(vm).unwrap(); }
    for (vm, a) in vms.iter().zip(["10.9.8.1", "10.9.8.2"]) { vm.check(&format!("ip link set ib0 up && ip addr add {a}/24 dev ib0")).unwrap(); }
    vms[0].check("for i in $(seq 60); do ping -c 1 -W 1 10.9.8.2 >/dev/null && exit 0; done; exit 1").unwrap();
    for cmd in std::fs::read_to_string("/tmp/cmds").unwrap().lines() {
        println!("##### {cmd}");
        let t = std::time::Instant::now();
        let s = vms[0].spawn(cmd).unwrap();
        std::thread::sleep(Duration::from_millis(2500));
        let c = vms[1].spawn(&format!("P=10.9.8.1; {cmd}")).unwrap();
        println!("client: {:?}", c.wait(Duration::from_secs(25)).map(|o| o.to_string()));
        println!("server: {:?}", s.wait(Duration::from_secs(5)).map(|o| o.to_string()));
        println!("{:?}", t.elapsed());
    }
    println!("{:?} {:?}", stock::problems(&vms[0]), stock::problems(&vms[1]));
}
