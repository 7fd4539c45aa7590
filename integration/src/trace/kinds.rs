//! What stands in a field for values that differ from run to run: an address is an address, and the number
//! of a CQ is one of a CQ that was handed over before.

use std::collections::{BTreeMap, BTreeSet};

use mlx4_wire::cmd::Opcode;

/// Objects that have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    Mpt,
    Eq,
    Cq,
    Srq,
    Qp,
}

/// The objects that are the device's at one HCA.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects(BTreeMap<Object, BTreeSet<u32>>);

impl Objects {
    pub(super) fn insert(&mut self, object: Object, number: u32) {
        self.0.entry(object).or_default().insert(number);
    }

    fn name(&self, object: Object, number: u32) -> String {
        let known = self.0.get(&object).is_some_and(|numbers| numbers.contains(&number));
        let word = format!("{object:?}").to_uppercase();
        match (known, number) {
            (true, _) => word,
            (false, 0) => "0".to_owned(),
            (false, _) => format!("no {word} of the device"),
        }
    }
}

/// What a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Compared as it is.
    Exact,
    /// A place in host memory, ICM or the MTT.
    Address,
    /// A number that the driver chooses or is told: a PD, PSN, LID, key, count of pages.
    Number,
    /// The number of an object that must be the device's already.
    Of(Object),
    /// The number that the input modifier has too.
    Own,
    /// Differs within one driver, as a page size by what memory it happens to get and the size of a queue
    /// by what its user asks for: not compared.
    Ignored,
}

/// Fields that are not compared as they are, by command (none for every command) and name.
const KINDS: &[(Option<Opcode>, &str, Kind)] = &[
    (None, "pa", Kind::Address),
    (None, "va", Kind::Address),
    (None, "log2_pages", Kind::Ignored),
    (None, "pages.log_page.log2_less_12", Kind::Ignored),
    (None, "context.pages.log_page.log2_less_12", Kind::Ignored),
    (None, "record_address", Kind::Address),
    (None, "context.record_address", Kind::Address),
    (None, "pages.mtt_base_low", Kind::Address),
    (None, "context.pages.mtt_base_low", Kind::Address),
    (None, "size.uar_page", Kind::Number),
    (None, "size.log2_entries", Kind::Ignored),
    (None, "context.rq_size.log2_entries", Kind::Ignored),
    (None, "context.sq_size.log2_entries", Kind::Ignored),
    (None, "context.rq_size.log2_stride_less_4", Kind::Ignored),
    (None, "context.sq_size.log2_stride_less_4", Kind::Ignored),
    (None, "interrupt.vector", Kind::Number),
    (None, "completion_eq.eqn", Kind::Of(Object::Eq)),
    (None, "context.send_cqn.number", Kind::Of(Object::Cq)),
    (None, "context.receive_cqn.number", Kind::Of(Object::Cq)),
    (None, "context.srq.srqn", Kind::Of(Object::Srq)),
    (None, "context.local_qpn.number", Kind::Own),
    (None, "context.pd.number", Kind::Number),
    (None, "context.uar_page.number", Kind::Number),
    (None, "context.remote_qpn.number", Kind::Number),
    (None, "context.next_send_psn.number", Kind::Number),
    (None, "context.rnr_next_psn.next_receive_psn", Kind::Number),
    (None, "context.qkey", Kind::Number),
    (None, "context.primary_path.remote_lid", Kind::Number),
    (None, "context.primary_path.remote_gid", Kind::Number),
    (Some(Opcode::INIT_HCA), "params.qpc.base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.srqc.base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.cqc.base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.eqc.base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.rdmarc.base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.altc_base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.auxc_base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.mc_base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.dmpt_base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.mtt_base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.cmpt_base", Kind::Address),
    (Some(Opcode::INIT_HCA), "params.driver_version", Kind::Number),
    (Some(Opcode::SW2HW_MPT), "key", Kind::Number),
    (Some(Opcode::SW2HW_MPT), "pd.pd", Kind::Number),
    (Some(Opcode::SW2HW_MPT), "start", Kind::Address),
    (Some(Opcode::SW2HW_MPT), "length", Kind::Number),
    (Some(Opcode::SW2HW_MPT), "mtt_address", Kind::Address),
    (Some(Opcode::SW2HW_MPT), "mtt_entries", Kind::Number),
    (Some(Opcode::SW2HW_MPT), "log2_page.number", Kind::Ignored),
    (Some(Opcode::SW2HW_SRQ), "size.srqn", Kind::Own),
    (Some(Opcode::SW2HW_SRQ), "cq.cqn", Kind::Of(Object::Cq)),
    (Some(Opcode::SW2HW_SRQ), "pd.number", Kind::Number),
    (Some(Opcode::WRITE_MCG), "gid", Kind::Number),
    (Some(Opcode::WRITE_MCG), "next.index", Kind::Number),
    (Some(Opcode::WRITE_MCG), "members.count", Kind::Number),
    (Some(Opcode::WRITE_MCG), "member.qpn", Kind::Of(Object::Qp)),
    (Some(Opcode::WRITE_MTT), "entry", Kind::Address),
    (Some(Opcode::MAD_IFC), "transaction_id", Kind::Number),
    (Some(Opcode::MAD_IFC), "attribute_modifier", Kind::Ignored),
    (Some(Opcode::MAD_IFC), "class_specific", Kind::Ignored),
    (Some(Opcode::MAD_IFC), "ext.rqpn.number", Kind::Number),
    (Some(Opcode::MAD_IFC), "ext.grh", Kind::Number),
];

fn kind(opcode: Opcode, name: &str) -> Kind {
    let rule = KINDS.iter().find(|(of, field, _)| of.is_none_or(|of| of == opcode) && *field == name);
    rule.map_or(Kind::Exact, |(_, _, kind)| *kind)
}

/// The object whose number a field holds.
pub(super) fn object_in(opcode: Opcode, name: &str) -> Option<Object> {
    match kind(opcode, name) {
        Kind::Of(object) => Some(object),
        _ => None,
    }
}

/// The value of a field as it is compared; `None` if it isn't. `own` is the input modifier.
pub(super) fn value(opcode: Opcode, name: &str, value: &str, own: u32, objects: &Objects) -> Option<String> {
    let number = || value.parse::<u64>().ok();
    let small = || number().and_then(|number| u32::try_from(number).ok());
    Some(match kind(opcode, name) {
        Kind::Ignored => return None,
        Kind::Exact => value.to_owned(),
        Kind::Address => named(value, "address"),
        Kind::Number => named(value, "number"),
        Kind::Of(object) => small().map_or_else(|| value.to_owned(), |number| objects.name(object, number)),
        Kind::Own if small() == Some(own & 0xff_ffff) => "own number".to_owned(),
        Kind::Own => value.to_owned(),
    })
}

/// Zero and all ones are told from other values, which are `word`.
fn named(value: &str, word: &str) -> String {
    let ones = [u64::MAX.to_string(), u32::MAX.to_string()];
    match value {
        "0" => "0".to_owned(),
        _ if ones.iter().any(|ones| ones == value) => "all ones".to_owned(),
        _ => word.to_owned(),
    }
}

/// The object that a command is about, and whether the command hands it to the device.
pub(super) fn object(opcode: Opcode) -> Option<(Object, bool)> {
    Some(match opcode {
        Opcode::SW2HW_MPT => (Object::Mpt, true),
        Opcode::HW2SW_MPT | Opcode::QUERY_MPT => (Object::Mpt, false),
        Opcode::SW2HW_EQ => (Object::Eq, true),
        Opcode::HW2SW_EQ | Opcode::QUERY_EQ | Opcode::MAP_EQ => (Object::Eq, false),
        Opcode::SW2HW_CQ => (Object::Cq, true),
        Opcode::HW2SW_CQ | Opcode::QUERY_CQ | Opcode::MODIFY_CQ => (Object::Cq, false),
        Opcode::SW2HW_SRQ => (Object::Srq, true),
        Opcode::HW2SW_SRQ | Opcode::QUERY_SRQ | Opcode::ARM_SRQ => (Object::Srq, false),
        Opcode::RST2INIT_QP => (Object::Qp, true),
        Opcode::TO_ERR_QP | Opcode::TO_RST_QP | Opcode::QUERY_QP | Opcode::RTS2SQD_QP => (Object::Qp, false),
        _ if super::decode::is_transition(opcode) => (Object::Qp, false),
        _ => return None,
    })
}

/// The input modifier as it is compared.
pub(super) fn modifier(opcode: Opcode, modifier: u32, objects: &Objects) -> String {
    if let Some((object, new)) = object(opcode) {
        // Bit 31 is a flag of MAP_EQ and RTS2SQD_QP; numbers of objects have 24 bits.
        let flag = if modifier >> 31 != 0 { "bit 31, " } else { "" };
        let number = modifier & 0xff_ffff;
        return if new { "new".to_owned() } else { format!("{flag}{}", objects.name(object, number)) };
    }
    match opcode {
        Opcode::MAP_FA | Opcode::MAP_ICM | Opcode::MAP_ICM_AUX | Opcode::UNMAP_ICM | Opcode::WRITE_MTT => {
            named(&modifier.to_string(), "count")
        }
        Opcode::READ_MCG | Opcode::WRITE_MCG => "index".to_owned(),
        Opcode::CONF_SPECIAL_QP => named(&modifier.to_string(), "number"),
        // The LID that a received MAD came from is in the upper half.
        Opcode::MAD_IFC if modifier >> 16 != 0 => format!("LID, {:#x}", modifier & 0xffff),
        _ => format!("{modifier:#x}"),
    }
}

/// The immediate input as it is compared.
pub(super) fn immediate(opcode: Opcode, value: u64) -> String {
    match opcode {
        // Linux names the mailbox that QPs have for their transitions to TO_ERR_QP too.
        Opcode::UNMAP_ICM | Opcode::TO_ERR_QP => named(&value.to_string(), "address"),
        Opcode::SET_ICM_SIZE => named(&value.to_string(), "bytes"),
        _ => format!("{value:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_an_object_must_be_known() {
        let mut objects = Objects::default();
        objects.insert(Object::Cq, 0x80);
        let cqn = |text| value(Opcode::RST2INIT_QP, "context.send_cqn.number", text, 0, &objects).unwrap();
        assert_eq!([cqn("128"), cqn("129"), cqn("0")], ["CQ", "no CQ of the device", "0"]);
    }

    #[test]
    fn rules_of_one_command_hold_for_no_other() {
        let objects = Objects::default();
        let start = |opcode| value(opcode, "start", "4096", 0, &objects).unwrap();
        assert_eq!([start(Opcode::SW2HW_MPT), start(Opcode::SW2HW_CQ)], ["address", "4096"]);
        let own = |text| value(Opcode::SW2HW_SRQ, "size.srqn", text, 0x41, &objects).unwrap();
        assert_eq!([own("65"), own("66")], ["own number", "66"]);
        assert_eq!(value(Opcode::MAD_IFC, "attribute_modifier", "7", 0, &objects), None);
    }

    #[test]
    fn modifiers_keep_their_flags() {
        let mut objects = Objects::default();
        objects.insert(Object::Eq, 8);
        assert_eq!(modifier(Opcode::MAP_EQ, 0x8000_0008, &objects), "bit 31, EQ");
        assert_eq!(modifier(Opcode::MAP_EQ, 9, &objects), "no EQ of the device");
        assert_eq!(modifier(Opcode::MAD_IFC, 0x0002_0001, &objects), "LID, 0x1");
        assert_eq!(modifier(Opcode::NOP, 0x1f, &objects), "0x1f");
    }
}
