//! Debian's OpenSM instead of the model's own subnet manager: in guests with stock drivers it brings the fabric
//! up, sweeps again, hands over to another one, takes over from a dead one, and follows a cable that is pulled.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use integration::pair::{Pair, listens, reach};
use integration::{Kernel, Model, Process, Rig, Vm, passed, stock};

/// Guest code is translated, and two guests share the machine's processors with the model.
const LIMIT: Duration = Duration::from_secs(120);
const SIGHUP: i32 = 1;
const SIGTERM: i32 = 15;
/// What OpenSM is told: to write its log at once, to be patient with guests that are translated, and to give up
/// soon on another master that doesn't answer.
const CONFIG: &str = "force_log_flush TRUE\ntransaction_timeout 1000\nsminfo_polling_timeout 1000\n\
                      polling_retry_number 2\n";
/// The default partition and another one, both with IP; one of limited members only, and one with a full member,
/// whose port's GUID follows.
const PARTITIONS: &str = "Default=0x7fff,ipoib:ALL=full;\nOther=0x0001,ipoib:ALL=full;\nLimited=0x0002:ALL=limited;\n\
                          Mixed=0x0003:ALL=limited,0x";
/// The P_Keys of the first guest, which has the full member, and of the second one.
const P_KEYS: [&str; 2] = ["0x0002\n0x8001\n0x8003\n0xffff\n", "0x0002\n0x0003\n0x8001\n0xffff\n"];
const LOG: &str = "/tmp/opensm.log";
/// How a standby logs that its master is gone: the kernel of the guest answers in its place, that there is none.
const MASTER_IS_GONE: &str = "ERR 3111: Received MAD with error status = 0xC";
/// How the manager logs that a packet to the switch is lost, until it knows that its own port is down.
const CABLE_IS_PULLED: [&str; 3] = [
    "ERR 5411: DR SMP Send completed with error (IB_TIMEOUT)",
    "(IB_TIMEOUT): SubnGet(",
    "ERR 3120: Timeout",
];
/// What ib_ipoib says of a join while there is no master to answer it.
const JOIN_WITHOUT_MASTER: &str = "multicast join failed";
/// Where a port's own files are.
const PORT: &str = "/sys/class/infiniband/mlx4_0/ports/1";

/// A guest, and the asynchronous events of its HCA.
struct Host {
    vm: Vm,
    events: Process,
    address: &'static str,
    other_address: &'static str,
    /// Errors in OpenSM's log that were looked at.
    errors_seen: usize,
}

impl Host {
    fn start(vm: Vm, addresses: [&'static str; 2]) -> Self {
        stock::load(&vm).unwrap();
        vm.check("mkdir -p /var/log /var/cache/opensm").unwrap();
        vm.put("/tmp/opensm.conf", 0o644, CONFIG.as_bytes()).unwrap();
        let mut events = vm.spawn("ibv_asyncwatch").unwrap();
        assert!(events.line(LIMIT).unwrap().contains("async event FD"));
        Self { vm, events, address: addresses[0], other_address: addresses[1], errors_seen: 0 }
    }

    fn start_opensm(&self, priority: u8) -> Process {
        let files = format!("-F /tmp/opensm.conf -P /tmp/partitions.conf -f {LOG}");
        self.vm.spawn(&format!("exec opensm {files} -p {priority}")).unwrap()
    }

    /// A file of the port, without the line's end.
    fn port(&self, file: &str) -> String {
        self.vm.check(&format!("cat {PORT}/{file}")).unwrap().trim().to_owned()
    }

    /// The GUID of the port, as its first GID has it.
    fn guid(&self) -> String {
        self.port("gids/0").split(':').skip(4).collect()
    }

    /// The index of a P_Key in the port's table.
    fn index_of(&self, pkey: &str) -> String {
        let find = format!("cd {PORT}/pkeys && grep -l {pkey} *");
        self.vm.check(&find).unwrap().trim().to_owned()
    }

    /// Waits until a condition of the shell holds.
    fn wait(&self, condition: &str) {
        let wait = format!("until {condition}; do sleep 0.1; done");
        if let Err(error) = self.vm.check_within(LIMIT, &wait) {
            panic!("{error:#}\n{}", self.vm.check(&format!("cat {LOG}; ibstat")).unwrap());
        }
    }

    fn wait_for_state(&self, state: &str) {
        self.wait(&format!("grep -q '{state}' {PORT}/state"));
    }

    /// Waits until OpenSM has logged a text `count` times.
    fn wait_for_log(&self, text: &str, count: usize) {
        self.wait(&format!("[ $(grep -c '{text}' {LOG}) -ge {count} ]"));
    }

    /// How often OpenSM has logged a text so far.
    fn count_in_log(&self, text: &str) -> usize {
        self.vm.check(&format!("grep -c '{text}' {LOG} || true")).unwrap().trim().parse().unwrap()
    }

    /// Waits for these asynchronous events, in any order; there may be no others among them. A manager may ask a
    /// port more than once to register again.
    fn expect(&mut self, expected: &[&str]) {
        let mut missing = expected.to_vec();
        while !missing.is_empty() {
            let line = self.events.line(LIMIT).unwrap_or_else(|error| panic!("{error:#}, for {missing:?}"));
            let event = line.trim().strip_prefix("event_type IBV_EVENT_").expect("an event");
            let name = event.split(' ').next().unwrap();
            assert!(event.ends_with("port 1"), "{event}");
            match missing.iter().position(|wanted| *wanted == name) {
                Some(at) => drop(missing.remove(at)),
                None => assert_eq!(name, "CLIENT_REREGISTER", "instead of {missing:?}"),
            }
        }
    }

    /// The errors that OpenSM has logged since the last look.
    fn new_errors(&mut self) -> Vec<String> {
        let lines = self.vm.check(&format!("grep 'ERR ' {LOG} || true")).unwrap();
        let new: Vec<String> = lines.lines().skip(self.errors_seen).map(str::to_owned).collect();
        self.errors_seen += new.len();
        new
    }

    /// Expects that OpenSM has logged no errors since the last look but those that `excused` knows.
    fn no_errors_but(&mut self, excused: impl Fn(&str) -> bool) {
        let errors = self.new_errors();
        assert!(errors.iter().all(|line| excused(line)), "on {}: {errors:?}", self.vm.name());
    }
}

fn comes_up(hosts: &mut [Host; 2]) -> Process {
    for host in &*hosts {
        host.wait_for_state("2: INIT");
        assert_eq!([host.port("lid"), host.port("sm_lid")], ["0x0", "0x0"]);
    }
    let partitions = format!("{PARTITIONS}{}=full;\n", hosts[0].guid());
    for host in &*hosts {
        host.vm.put("/tmp/partitions.conf", 0o644, partitions.as_bytes()).unwrap();
    }
    let manager = hosts[0].start_opensm(3);
    for host in &mut *hosts {
        host.wait_for_state("4: ACTIVE");
        host.expect(&["LID_CHANGE", "PKEY_CHANGE", "PORT_ACTIVE", "CLIENT_REREGISTER"]);
    }
    hosts[0].wait_for_log("SUBNET UP", 1);
    let [one, other] = [&hosts[0], &hosts[1]];
    assert_ne!(one.port("lid"), other.port("lid"));
    assert!([one, other].iter().all(|host| host.port("sm_lid") == one.port("lid")));
    passed(format_args!(
        "opensm: both ports ACTIVE, with LIDs {} and {}",
        one.port("lid"),
        other.port("lid")
    ));

    for (host, pkeys) in hosts.iter().zip(P_KEYS) {
        assert_eq!(host.vm.check(&format!("cat {PORT}/pkeys/[0-3] | sort")).unwrap(), pkeys);
        host.vm
            .check(&format!("ip link set ib0 up && ip addr add {}/24 dev ib0", host.address))
            .and_then(|_| host.vm.check("echo 0x8001 > /sys/class/net/ib0/create_child"))
            .and_then(|_| {
                let address = host.other_address;
                host.vm.check(&format!("ip link set ib0.8001 up && ip addr add {address}/24 dev ib0.8001"))
            })
            .unwrap();
    }
    reach(&hosts[0].vm, hosts[1].address).unwrap();
    reach(&hosts[0].vm, hosts[1].other_address).unwrap();
    passed("opensm: IP in both of its partitions");
    manager
}

/// Limited members of a partition reach its full member and not each other; the port that refuses counts it.
fn limited_members_are_apart(hosts: &[Host; 2]) {
    let [one, other] = hosts;
    let run = |pkeys: [&str; 2], options: &str| {
        let program = format!("ib_send_lat -d mlx4_0 -F -s 8 -n 100 {options} --pkey_index");
        let server = one.vm.spawn(&format!("{program} {}", one.index_of(pkeys[0]))).unwrap();
        one.wait(&listens(18515));
        let client = format!("{program} {} {}", other.index_of(pkeys[1]), one.address);
        (server, other.vm.run_within(LIMIT, &client).unwrap())
    };
    let violations = || {
        let info = one.vm.check(&format!("smpquery portinfo {}", one.port("lid"))).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("PkeyViolations:")).expect("a counter");
        line.trim_matches('.').parse::<u32>().unwrap()
    };
    let before = violations();
    for options in ["-c RC", "-c UD"] {
        let (server, client) = run(["0x8003", "0x0003"], options);
        assert_eq!(client.status, 0, "{client}");
        assert_eq!(server.wait(LIMIT).unwrap().status, 0);
    }
    assert_eq!(violations(), before);
    let (server, client) = run(["0x0002", "0x0002"], "-c RC");
    let text = format!("{}{}", client.stdout, client.stderr);
    assert!(client.status != 0 && text.contains("status 12"), "no retry exceeded: {client}");
    server.kill().unwrap();
    assert!(violations() > before, "no P_Key violation counted");
    passed("opensm: limited members reach a full one and not each other, which the port counts");
}

fn sweeps_again(hosts: &[Host; 2], manager: &Process) {
    let sweeps = hosts[0].count_in_log("SUBNET UP");
    manager.signal(SIGHUP).unwrap();
    hosts[0].wait_for_log("SUBNET UP", sweeps + 1);
    assert!(hosts.iter().all(|host| host.port("state") == "4: ACTIVE"));
    passed("opensm: swept again after SIGHUP");
}

/// The second host's cable is pulled and put back.
fn follows_a_cable(hosts: &mut [Host; 2], model: &Model) {
    let lid = hosts[1].port("lid");
    let guid = hosts[1].port("gids/0").rsplit(':').next().unwrap().to_owned();
    model.set_cable(2, false).unwrap();
    hosts[1].expect(&["PORT_ERR"]);
    hosts[1].wait_for_state("1: DOWN");
    hosts[0].wait_for_log(&format!("Removed port with GUID:0x[0-9a-f]*{guid} "), 1);
    assert_eq!(hosts[0].port("state"), "4: ACTIVE");
    passed("opensm: port DOWN when its cable is pulled");

    model.set_cable(2, true).unwrap();
    hosts[1].wait_for_state("4: ACTIVE");
    hosts[1].expect(&["PORT_ACTIVE", "CLIENT_REREGISTER"]);
    hosts[0].wait_for_log(&format!("Discovered new port with GUID:0x[0-9a-f]*{guid} "), 1);
    assert_eq!(hosts[1].port("lid"), lid);
    reach(&hosts[0].vm, hosts[1].address).unwrap();
    passed("opensm: port ACTIVE, with its old LID, when the cable is back");
}

/// The cable of the manager's own host is pulled and put back.
fn loses_the_fabric(hosts: &mut [Host; 2], model: &Model) {
    let lids = hosts.each_ref().map(|host| host.port("lid"));
    let sweeps = hosts[0].count_in_log("SUBNET UP");
    model.set_cable(1, false).unwrap();
    hosts[0].expect(&["PORT_ERR"]);
    hosts[0].wait_for_log("SM port is down", 1);
    assert_eq!(hosts[1].port("state"), "4: ACTIVE");
    passed("opensm: tells that its own port is DOWN");

    model.set_cable(1, true).unwrap();
    hosts[0].wait_for_log("SUBNET UP", sweeps + 1);
    hosts[0].wait_for_state("4: ACTIVE");
    hosts[0].expect(&["PORT_ACTIVE", "CLIENT_REREGISTER"]);
    assert_eq!(hosts.each_ref().map(|host| host.port("lid")), lids);
    reach(&hosts[0].vm, hosts[1].address).unwrap();
    passed("opensm: manages the fabric again when its own cable is back");
}

/// A second manager, of a higher priority, gets the subnet, and dies. Linux's mlx4_ib tells programs nothing of
/// another master's LID (it raises no SM_CHANGE, and only sends to that LID from then on), so the ports' own files
/// show it, and that they are asked to register again.
fn hands_over(hosts: &mut [Host; 2]) {
    let is_managed_by = |hosts: &[Host; 2], master: usize| {
        let lid = hosts[master].port("lid");
        for host in hosts {
            host.wait(&format!("[ $(cat {PORT}/sm_lid) = {lid} ]"));
        }
        let info = hosts[1 - master].vm.check("sminfo").unwrap();
        assert!(info.contains("SMINFO_MASTER"), "{info}");
    };
    let second = hosts[1].start_opensm(9);
    hosts[1].wait_for_log("Entering MASTER state", 1);
    hosts[0].wait_for_log("Entering STANDBY state", 1);
    hosts[1].wait_for_log("SUBNET UP", 1);
    is_managed_by(hosts, 1);
    hosts.iter_mut().for_each(|host| host.expect(&["CLIENT_REREGISTER"]));
    reach(&hosts[0].vm, hosts[1].address).unwrap();
    passed("opensm: handed over to one of a higher priority");
    hosts.iter_mut().for_each(|host| host.no_errors_but(is_unanswered_notice));

    let sweeps = hosts[0].count_in_log("SUBNET UP");
    second.kill().unwrap();
    hosts[0].wait_for_log("Entering MASTER state", 2);
    hosts[0].wait_for_log("SUBNET UP", sweeps + 1);
    is_managed_by(hosts, 0);
    hosts.iter_mut().for_each(|host| host.expect(&["CLIENT_REREGISTER"]));
    reach(&hosts[0].vm, hosts[1].address).unwrap();
    passed("opensm: the standby took over when the master was killed");
    hosts[0].no_errors_but(|line| line.contains(MASTER_IS_GONE) || is_unanswered_notice(line));
}

/// Whether a line of OpenSM's log is about a notice of its own that nobody has answered in time: it tells the master of
/// itself, and while the subnet changes hands (or the guests are slow) nobody need be there. Such a failure has two lines.
fn is_unanswered_notice(line: &str) -> bool {
    line.contains("ERR 5410: Send completed with error (IB_TIMEOUT)")
        || line.contains("(IB_TIMEOUT): SubnTrap(Notice)")
}

#[test]
fn opensm_manages_the_fabric() {
    let rig = Rig::prepare().unwrap();
    let kernels = [Kernel::Stable, Kernel::Newest];
    let Pair { model, vms: [one, other] } =
        Pair::boot(&rig, &["--no-sm"], |config, place| config.kernel(kernels[place])).unwrap();
    let mut hosts =
        [Host::start(one, ["10.9.8.1", "10.9.9.1"]), Host::start(other, ["10.9.8.2", "10.9.9.2"])];
    let manager = comes_up(&mut hosts);
    limited_members_are_apart(&hosts);
    sweeps_again(&hosts, &manager);
    follows_a_cable(&mut hosts, &model);
    hosts[0].no_errors_but(|_| false);
    loses_the_fabric(&mut hosts, &model);
    hosts[0].no_errors_but(|line| CABLE_IS_PULLED.iter().any(|text| line.contains(text)));
    for host in &hosts {
        assert_eq!(stock::problems(&host.vm).unwrap(), [""; 0]);
    }
    hands_over(&mut hosts);

    for host in &hosts {
        let problems = stock::problems(&host.vm).unwrap();
        let others: Vec<_> = problems.iter().filter(|line| !line.contains(JOIN_WITHOUT_MASTER)).collect();
        assert!(others.is_empty(), "{others:?}");
    }
    manager.signal(SIGTERM).unwrap();
    assert_eq!(manager.wait(LIMIT).unwrap().status, 0);
    for Host { vm, events, .. } in hosts {
        events.kill().unwrap();
        stock::unload(&vm).unwrap();
    }
}
