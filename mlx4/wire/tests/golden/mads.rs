//! MADs that the driver makes itself, and those that it hands to the firmware.

use mlx4_wire::cmd::mad_ifc::{MadIfc, MadIfcModifier, MadIfcOp};
use mlx4_wire::mad::header::{Method, MgmtClass};
use mlx4_wire::mad::smp::{Smp, SmpAttribute};
use mlx4_wire::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros};

use crate::fixture::{all, find, same};

/// Linux `mlx4_ib_init_query_mad` and its users: a Get of subnet management whose keys aren't checked.
#[test]
fn queries_of_linux_have_their_bytes() {
    let op = MadIfcOp::new().with_ignore_mkey(true).with_ignore_bkey(true).into_bits();
    for attribute in [
        SmpAttribute::NODE_INFO,
        SmpAttribute::NODE_DESCRIPTION,
        SmpAttribute::PORT_INFO,
        SmpAttribute::GUID_INFO,
        SmpAttribute::P_KEY_TABLE,
    ] {
        let record = find("MAD_IFC", |record| {
            record.opmod == op && record.bytes[1] == 1 && record.bytes[16..18] == attribute.0.to_be_bytes()
        });
        let port = if attribute == SmpAttribute::PORT_INFO { 1 } else { 0 };
        let mut expected = Smp::new_zeroed();
        expected.header.base_version = 1;
        expected.header.mgmt_class = MgmtClass::SUBN_LID_ROUTED;
        expected.header.class_version = 1;
        expected.header.method = Method::GET;
        expected.header.attribute_id = U16::new(attribute.0);
        expected.header.attribute_modifier = U32::new(port);
        same(&record.bytes, &expected);
        assert_eq!(MadIfcModifier::from_bits(U32::new(record.modifier)).port(), 1);
    }
}

/// Linux `mlx4_ib_process_mad`: the keys are checked and the extended information says where the MAD came
/// from; a directed route begins at the permissive LID.
#[test]
fn received_mads_carry_where_they_came_from() {
    let op = MadIfcOp::new().with_ext_info(true).into_bits();
    let mut directed = 0;
    for record in all("MAD_IFC").into_iter().filter(|record| record.opmod == op) {
        let (taken, rest) = MadIfc::read_from_prefix(&record.bytes).unwrap();
        assert!(rest.is_empty());
        // SMPs come from QP0 to QP0, on P_Key index 0 and without a GRH: nothing is left to say.
        assert_eq!(taken.ext.rqpn.number() | taken.ext.my_qpn.number(), 0);
        assert_eq!((taken.ext.path.grh(), taken.ext.pkey_index), (false, U16::ZERO));
        let modifier = MadIfcModifier::from_bits(U32::new(record.modifier));
        assert_eq!((modifier.port(), modifier.ext_info()), (1, false));
        let smp = Smp::from_mad(&taken.mad);
        if smp.header.mgmt_class == MgmtClass::SUBN_DIRECTED_ROUTE {
            directed += 1;
            assert_eq!((modifier.rlid(), smp.dr_slid.get(), smp.dr_dlid.get()), (0xffff, 0xffff, 0xffff));
            assert_eq!((smp.m_key, smp.is_returning()), (U64::ZERO, false));
        }
    }
    assert!(directed > 0);
}
