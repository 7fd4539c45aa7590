//! The diagnostics of InfiniBand's own package, in a guest with the stock driver: what they tell of the fabric of
//! the model agrees, whichever way they ask (sysfs, subnet management, the SA, performance management).
//!
//! Not here: ibidsverify, ibfindnodesusing and check_lft_balance, which are Perl programs, and the guest has no
//! Perl; and the records that the SA of the model doesn't keep (it refuses them by a status that says so).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::ops::RangeInclusive;
use std::time::Duration;

use integration::pair::{Pair, listens};
use integration::{Rig, Vm, passed, patience};

/// Guest code is translated, and two guests share the machine's processors with the model.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
const ADDRESSES: [&str; 2] = ["10.9.8.1", "10.9.8.2"];

/// The port of one guest, as `ibstat` describes it there.
#[derive(Debug)]
struct End {
    lid: String,
    sm_lid: String,
    /// 16 digits without `0x`, as the GUIDs below.
    port_guid: String,
    node_guid: String,
    description: String,
}

/// The value of the line `key: value` or `key:....value`; libibmad and saquery fill with dots.
fn field(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(key)?;
        rest.starts_with([':', '.'])
            .then(|| rest.trim_start_matches(':').trim_start_matches('.').trim_start().to_owned())
    });
    value.unwrap_or_else(|| panic!("no {key} in {text}"))
}

fn number(text: &str, key: &str) -> u64 {
    let value = field(text, key);
    let number = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    number.unwrap_or_else(|error| panic!("{key} is {value}: {error}"))
}

/// The records of saquery's output, each from its head line.
fn records(text: &str) -> Vec<&str> {
    text.split("Record dump:").skip(1).collect()
}

fn ask(vm: &Vm, command: &str) -> String {
    vm.check_within(PROGRAM_LIMIT, command).unwrap()
}

fn lines_have(text: &str, parts: &[&str]) {
    let found = text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "no line with {parts:?} in\n{text}");
}

/// ibstat, ibstatus and ibaddr of one guest agree.
fn own_port(vm: &Vm) -> End {
    let ibstat = ask(vm, "ibstat mlx4_0");
    let guid = |key| field(&ibstat, key).trim_start_matches("0x").to_owned();
    assert_eq!(field(&ibstat, "State"), "Active");
    assert_eq!(field(&ibstat, "Rate"), "56");
    let description = ask(vm, "cat /sys/class/infiniband/mlx4_0/node_desc").trim().to_owned();
    let end = End {
        lid: field(&ibstat, "Base lid"),
        sm_lid: field(&ibstat, "SM lid"),
        port_guid: guid("Port GUID"),
        node_guid: guid("Node GUID"),
        description,
    };
    let ibstatus = ask(vm, "ibstatus");
    let in_hex = |lid: &str| format!("0x{:x}", lid.parse::<u16>().unwrap());
    assert_eq!(field(&ibstatus, "base lid"), in_hex(&end.lid));
    assert_eq!(field(&ibstatus, "sm lid"), in_hex(&end.sm_lid));
    assert_eq!(field(&ibstatus, "state"), "4: ACTIVE");
    assert_eq!(field(&ibstatus, "rate"), "56 Gb/sec (4X FDR)");
    let gid = field(&ibstatus, "default gid").replace(':', "");
    assert_eq!(gid, format!("fe80000000000000{}", end.port_guid));
    lines_have(&ask(vm, "ibaddr -l"), &["LID start", &in_hex(&end.lid)]);
    end
}

/// What directed-route discovery finds is the two guests at the switch, by the same LIDs and GUIDs.
fn topology(vm: &Vm, ends: &[End; 2]) {
    let discovered = ask(vm, "ibnetdiscover");
    let links = ask(vm, "iblinkinfo -l");
    let hosts = ask(vm, "ibhosts");
    for (index, end) in ends.iter().enumerate() {
        let at_switch = format!("[{}]", index + 1);
        lines_have(
            &discovered,
            &[&at_switch, &format!("H-{}", end.node_guid), &format!("lid {} 4xFDR", end.lid)],
        );
        lines_have(&discovered, &["[1]", &at_switch, &format!("lid {} lmc 0", end.lid), "S-", "4xFDR"]);
        lines_have(&links, &[&end.port_guid, &end.description, "4X", "14.0625 Gbps Active/  LinkUp"]);
        lines_have(&hosts, &[&end.node_guid, "ports 1", &end.description]);
    }
    let switch = field(&ask(vm, &format!("smpquery nodeinfo {}", ends[0].sm_lid)), "Guid");
    lines_have(&ask(vm, "ibswitches"), &[&switch, "ports 36", &format!("lid {}", ends[0].sm_lid)]);
    assert_eq!(ask(vm, "ibrouters"), "");
    lines_have(&ask(vm, "ibnodes"), &[&switch]);
    passed("ibnetdiscover, iblinkinfo, ibhosts, ibswitches, ibnodes, ibrouters");
}

/// Subnet management by LID says of each guest's port what the guest's own sysfs says.
fn subnet_management(vm: &Vm, ends: &[End; 2]) {
    for end in ends {
        let lid = &end.lid;
        let node = ask(vm, &format!("smpquery nodeinfo {lid}"));
        assert_eq!(field(&node, "NodeType"), "Channel Adapter");
        assert_eq!(field(&node, "Guid"), format!("0x{}", end.node_guid));
        assert_eq!(field(&node, "PortGuid"), format!("0x{}", end.port_guid));
        assert_eq!(field(&ask(vm, &format!("smpquery nodedesc {lid}")), "Node Description"), end.description);
        let port = ask(vm, &format!("smpquery portinfo {lid} 1"));
        assert_eq!(field(&port, "Lid"), *lid);
        assert_eq!(field(&port, "SMLid"), end.sm_lid);
        assert_eq!(field(&port, "LinkState"), "Active");
        assert_eq!(field(&port, "LinkWidthActive"), "4X");
        assert_eq!(field(&port, "LinkSpeedExtActive"), "14.0625 Gbps");
        let state = ask(vm, &format!("ibportstate {lid} 1 query"));
        for key in ["LinkState", "PhysLinkState", "Lid", "SMLid", "LinkWidthActive", "LinkSpeedExtActive"] {
            assert_eq!(field(&state, key), field(&port, key), "{key}");
        }
        let keys = ask(vm, &format!("smpquery pkeys {lid}"));
        assert_eq!(number(&node, "PartCap"), 128);
        lines_have(&keys, &["   0: 0xffff 0x0000"]);
        lines_have(&keys, &["128 pkeys capacity"]);
        let guids = ask(vm, &format!("smpquery GUIDInfo {lid}"));
        lines_have(&guids, &[&format!("   0: 0x{} 0x0000000000000000", end.port_guid)]);
        lines_have(&guids, &[&format!("{} guids capacity", field(&port, "GuidCap"))]);
    }
    let by_route = ask(vm, "smpquery -D nodeinfo 0,1");
    let by_lid = ask(vm, &format!("smpquery nodeinfo {}", ends[0].sm_lid));
    for key in ["NodeType", "NumPorts", "Guid", "DevId", "LocalPort"] {
        assert_eq!(field(&by_route, key), field(&by_lid, key), "{key}");
    }
    let last = ends.iter().map(|end| end.lid.parse::<u64>().unwrap()).max().unwrap();
    let switch = ask(vm, &format!("smpquery switchinfo {}", ends[0].sm_lid));
    assert_eq!(number(&switch, "LinearFdbTop"), last);
    passed("smpquery nodeinfo, nodedesc, portinfo, pkeys, GUIDInfo, switchinfo; ibportstate");
}

/// The switch's tables lead where discovery found the ports to be.
fn routes(vm: &Vm, ends: &[End; 2]) {
    let table = ask(vm, &format!("ibroute {}", ends[0].sm_lid));
    for (index, end) in ends.iter().enumerate() {
        let lid: u16 = end.lid.parse().unwrap();
        lines_have(&table, &[&format!("0x{lid:04x} {:03} :", index + 1), &end.port_guid, &end.description]);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let [from, to] = [&ends[from], &ends[to]];
        let path = ask(vm, &format!("ibtracert {} {}", from.lid, to.lid));
        lines_have(&path, &["From ca", &from.node_guid]);
        lines_have(&path, &["-> switch port", &format!("lid {0}-{0}", from.sm_lid)]);
        lines_have(&path, &["-> ca port", &to.port_guid, &format!("lid {0}-{0}", to.lid)]);
    }
    lines_have(&ask(vm, "dump_fts"), &["0x0001 000 : (Switch portguid"]);
    passed("ibroute, ibtracert, dump_fts");
}

/// What the SA knows is what the ports say.
fn subnet_administration(vm: &Vm, ends: &[End; 2]) {
    let sm = ask(vm, "sminfo");
    lines_have(&sm, &[&format!("sm lid {}", ends[0].sm_lid), "SMINFO_MASTER"]);
    let sm_record = ask(vm, "saquery SMIR");
    assert_eq!(field(&sm_record, "LID"), ends[0].sm_lid);
    let sm_guid = field(&sm_record, "GUID").trim_start_matches("0x").trim_start_matches('0').to_owned();
    lines_have(&sm, &[&format!("sm guid 0x{sm_guid}")]);

    let nodes = ask(vm, "saquery");
    let nodes = records(&nodes);
    assert_eq!(nodes.len(), 3);
    for end in ends {
        let node = nodes.iter().find(|node| field(node, "lid") == end.lid).unwrap();
        assert_eq!(field(node, "node_guid"), format!("0x{}", end.node_guid));
        assert_eq!(field(node, "port_guid"), format!("0x{}", end.port_guid));
        assert_eq!(field(node, "NodeDescription"), end.description);
        let name = ask(vm, &format!("saquery -O {}", end.lid));
        assert_eq!(name.trim(), end.description);
        let record = ask(vm, &format!("saquery PIR {}", end.lid));
        let port = ask(vm, &format!("smpquery portinfo {} 1", end.lid));
        for key in ["Lid", "SMLid", "CapMask", "LinkState", "LinkWidthActive", "NeighborMTU", "GuidCap"] {
            assert_eq!(field(&record, key), field(&port, key), "{key}");
        }
    }
    // Every port to every other and to itself, the switch's included.
    assert_eq!(records(&ask(vm, "saquery -p")).len(), 9);
    let path = ask(vm, &format!("saquery --src-to-dst {}:{}", ends[0].lid, ends[1].lid));
    assert_eq!(field(&path, "slid"), ends[0].lid);
    assert_eq!(field(&path, "dlid"), ends[1].lid);
    assert_eq!(field(&path, "pkey"), "0xFFFF");
    // Exactly (2 in the upper bits) 4096 bytes (5), and FDR 4X (12).
    assert_eq!(field(&path, "mtu"), "0x85");
    assert_eq!(field(&path, "rate"), "0x8C");
    // Two cables, each from both ends.
    assert_eq!(records(&ask(vm, "saquery -x")).len(), 4);
    lines_have(&ask(vm, "saquery -c"), &["Class version", "2"]);
    let refused = vm.run("saquery LFTR 1").unwrap();
    assert!(refused.to_string().contains("Method/Attribute combination is not supported"), "{refused}");
    passed("sminfo; saquery of nodes, ports, paths, links, SM, ClassPortInfo");
}

/// The groups that IP over InfiniBand joined are in the SA and in the switch's multicast tables.
fn multicast_groups(vm: &Vm) {
    let groups = ask(vm, "saquery -g");
    let groups: Vec<&str> = groups.split("group dump:").skip(1).collect();
    let broadcast = groups.iter().find(|group| field(group, "MGID") == "ff12:401b:ffff::ffff:ffff").unwrap();
    // Who the members are is told only to who knows the SM_Key (IBTA 15.4.3).
    let members = ask(vm, &format!("saquery -m {}", field(broadcast, "Mlid")));
    assert_eq!(field(&members, "PortGid"), ":: (<unknown>)");
    // Ports 1 and 2 of the switch, after port 0.
    let row = format!("{}        x x  ", field(broadcast, "Mlid").to_lowercase());
    lines_have(&ask(vm, "ibroute -M 1"), &[&row]);
    passed("saquery of multicast groups and members, ibroute -M");
}

fn ib_ping(vms: &[Vm; 2], ends: &[End; 2]) {
    let _server = vms[1].spawn("ibping -S").unwrap();
    let to = &ends[1];
    patience::until("the server answers", || {
        Ok(vms[0].run(&format!("ibping -c 1 {}", to.lid))?.stdout.contains(" 0% packet loss"))
    })
    .unwrap();
    for command in [
        format!("ibping -c 3 {}", to.lid),
        format!("ibping -c 100 -f {}", to.lid),
        format!("ibping -c 2 -G 0x{}", to.port_guid),
    ] {
        let answer = ask(&vms[0], &command);
        assert!(answer.contains(" 0% packet loss"), "{command}: {answer}");
    }
    lines_have(&ask(&vms[0], &format!("ibsysstat {}", to.lid)), &["sysstat ping succeeded"]);
    passed("ibping by LID and by GUID, flooding; ibsysstat");
}

const COUNTED: [&str; 4] = ["PortXmitPkts", "PortRcvPkts", "PortXmitData", "PortRcvData"];

fn extended(vm: &Vm, lid: &str, port: usize) -> [u64; 4] {
    let text = ask(vm, &format!("perfquery -x {lid} {port}"));
    COUNTED.map(|key| number(&text, key))
}

/// A thousand messages of 4096 bytes each way, at an MTU of 1024, with an acknowledgement each, are counted where
/// they pass: at both HCAs and both ports of the switch. What the programs tell each other over IP before and after,
/// and management, adds little.
fn counters(pair: &Pair, ends: &[End; 2]) {
    let vms = &pair.vms;
    const MESSAGES: u64 = 1000;
    /// LRH, BTH, payload, ICRC in words: what PortXmitData counts (IBTA 16.1.3.5 leaves out the VCRC).
    const DATA_PACKET: u64 = (8 + 12 + 1024 + 4) / 4;
    /// LRH, BTH, AETH, ICRC.
    const ACK_PACKET: u64 = (8 + 12 + 4 + 4) / 4;
    let packets: RangeInclusive<u64> = 5 * MESSAGES..=5 * MESSAGES + 200;
    let words = MESSAGES * (4 * DATA_PACKET + ACK_PACKET);
    let words = words..=words + 200 * DATA_PACKET;
    let places = [(&ends[0].lid, 1), (&ends[1].lid, 1), (&ends[0].sm_lid, 1), (&ends[0].sm_lid, 2)];
    let look = || places.map(|(lid, port)| extended(&vms[0], lid, port));

    let before = look();
    let program = format!("ibv_rc_pingpong -d mlx4_0 -n {MESSAGES} -s 4096 -m 1024");
    pair.both(&program, &listens(18515), &format!("{program} {}", ADDRESSES[0])).unwrap();
    let after = look();
    for ((place, before), after) in places.iter().zip(before).zip(after) {
        for (index, key) in COUNTED.iter().enumerate() {
            let counted = after[index] - before[index];
            let right = if index < 2 { &packets } else { &words };
            assert!(right.contains(&counted), "{key} of {place:?} rose by {counted}, which isn't {right:?}");
        }
    }
    passed("perfquery -x: packets and words of a known transfer, at four ports");

    let own = |vm: &Vm| -> u64 {
        let file = "/sys/class/infiniband/mlx4_0/ports/1/counters/port_xmit_packets";
        ask(vm, &format!("cat {file}")).trim().parse().unwrap()
    };
    assert!(packets.contains(&(own(&vms[0]) - before[0][0])), "sysfs and perfquery differ");
    reset(&vms[0], &ends[1].lid);
}

/// The 32-bit counters and the extended ones are reset each by their own command.
fn reset(vm: &Vm, lid: &str) {
    const FEW: RangeInclusive<u64> = 0..=200;
    let classic = |options: &str| number(&ask(vm, &format!("perfquery {options} {lid} 1")), "PortXmitPkts");
    assert!(!FEW.contains(&classic("")));
    ask(vm, &format!("perfquery -R {lid} 1"));
    assert!(FEW.contains(&classic("")));
    assert!(!FEW.contains(&classic("-x")));
    ask(vm, &format!("perfquery -R -x {lid} 1"));
    assert!(FEW.contains(&classic("-x")));
    passed("perfquery -R, of each kind of counters");
}

fn no_errors(vm: &Vm) {
    let errors = ask(vm, "ibqueryerrors");
    lines_have(&errors, &["3 nodes checked, 0 bad nodes found"]);
    lines_have(&errors, &["38 ports checked, 0 ports have errors beyond threshold"]);
    let data = ask(vm, "ibqueryerrors --counters --data");
    assert_eq!(data.matches("Data Counters for").count(), 3, "{data}");
    passed("ibqueryerrors");
}

#[test]
fn diagnostics_agree_about_the_fabric() {
    let rig = Rig::prepare().unwrap();
    let pair = Pair::boot(&rig, &[], |config, _| config).unwrap();
    pair.bring_up().unwrap();
    let vms = &pair.vms;
    let ends = [own_port(&vms[0]), own_port(&vms[1])];
    passed("ibstat, ibstatus, ibaddr");
    topology(&vms[0], &ends);
    subnet_management(&vms[0], &ends);
    routes(&vms[0], &ends);
    subnet_administration(&vms[0], &ends);
    ib_ping(vms, &ends);

    pair.address("ib0", ADDRESSES).unwrap();
    multicast_groups(&vms[0]);
    counters(&pair, &ends);
    no_errors(&vms[0]);
    pair.unload().unwrap();
}
