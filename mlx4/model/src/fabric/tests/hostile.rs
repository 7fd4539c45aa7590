//! MADs that no honest node sends: the manager and the administrator survive them, and keep serving others.

use std::time::Duration;

use mlx4_wire::mad::header::{Method, MgmtClass, Status};
use mlx4_wire::mad::portinfo::PortState;
use mlx4_wire::mad::sa::SaAttribute;
use mlx4_wire::mad::sa::path::PathRecord;

use super::{Adapter, Lab};
use crate::fabric::datagram::Datagram;

/// Numbers by a linear congruential generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[0]
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}

/// Random bytes with enough sense in the header to get past the first checks.
fn mad(random: &mut Random, from: &Adapter) -> Datagram {
    let mut mad = [0; 256];
    mad.iter_mut().for_each(|byte| *byte = random.byte());
    let subnet_management = [MgmtClass::SUBN_LID_ROUTED, MgmtClass::SUBN_DIRECTED_ROUTE];
    let class =
        random.pick(&[subnet_management[0], subnet_management[1], MgmtClass::SUBN_ADM, MgmtClass::SUBN_ADM]);
    let methods = [
        Method::GET,
        Method::SET,
        Method::DELETE,
        Method::GET_TABLE,
        Method::TRAP,
        Method::GET_RESP,
        Method::REPORT_RESP,
        Method::TRAP_REPRESS,
    ];
    let vl15 = subnet_management.contains(&class);
    (mad[0], mad[1], mad[2], mad[3]) = (1, class.0, if vl15 { 1 } else { 2 }, random.pick(&methods).0);
    if !vl15 {
        sense_for_the_administrator(random, &mut mad, from);
        return Datagram { headers: from.gmp_headers(1), mad };
    }
    let attributes = [0x02, 0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x18, 0x20];
    (mad[0x10], mad[0x11]) = (0, random.pick(&attributes));
    mad[0x18..0x20].fill(0);
    if class == MgmtClass::SUBN_LID_ROUTED {
        return Datagram::lid_routed(from.lid(), 1, mad);
    }
    mad[6..8].copy_from_slice(&[random.byte() % 3, random.byte() % 3]);
    mad[0x20..0x24].fill(0xff);
    Datagram::directed(mad)
}

fn sense_for_the_administrator(random: &mut Random, mad: &mut [u8; 256], from: &Adapter) {
    let attributes = [
        SaAttribute::CLASS_PORT_INFO,
        SaAttribute::INFORM_INFO,
        SaAttribute::NODE_RECORD,
        SaAttribute::PORT_INFO_RECORD,
        SaAttribute::GUID_INFO_RECORD,
        SaAttribute::SERVICE_RECORD,
        SaAttribute::PATH_RECORD,
        SaAttribute::MC_MEMBER_RECORD,
        SaAttribute::INFORM_INFO_RECORD,
        SaAttribute::LINK_RECORD,
    ];
    mad[0x10..0x12].copy_from_slice(&random.pick(&attributes).0.to_be_bytes());
    mad[0x1a] &= random.pick(&[0xfe, 0xfe, 0xff]);
    for byte in &mut mad[0x30..0x38] {
        *byte = random.pick(&[0, 0xff, *byte]);
    }
    let gid_at = random.pick(&[0x38, 0x40, 0x48, 0x50]);
    mad[gid_at..gid_at + 16].copy_from_slice(&from.gid());
    let lid = random.pick(&[from.lid().to_be_bytes(), [mad[0x38], mad[0x39]]]);
    mad[0x38..0x3a].copy_from_slice(&lid);
}

#[test]
fn manager_and_administrator_survive_any_mad() {
    let (mut lab, adapters) = Lab::with_adapters(3);
    let mut random = Random(1);
    for round in 0..20_000 {
        let hostile = mad(&mut random, &adapters[0]);
        adapters[0].send(&hostile);
        lab.collector.receive_directly(&hostile);
        lab.advance(Duration::from_millis(round % 2 * 5));
        adapters.iter().for_each(|adapter| drop(adapter.received()));
    }
    lab.advance(Duration::from_secs(60));
    adapters.iter().for_each(|adapter| drop(adapter.received()));
    let new = lab.plug(9);
    lab.advance(Duration::from_secs(5));
    assert_eq!((new.state(), lab.state(9)), (PortState::ACTIVE, PortState::ACTIVE));
    let record = PathRecord { sgid: new.gid(), dgid: new.gid(), ..zerocopy::FromZeros::new_zeroed() };
    let mask = PathRecord::MASK_SGID | PathRecord::MASK_DGID;
    let answers = new.ask(&mut lab, Method::GET, SaAttribute::PATH_RECORD, mask, &record);
    assert_eq!(mlx4_wire::mad::sa::SaMad::status(&answers[0]), Status::GOOD);
}
