//! The table is whole: each reason, each request and each field has a row, but for these.

use anyhow::{Result, ensure};
use virtio_rdma::{Opcode, Reason};

use super::fields;
use super::stage::Stage;

/// Reasons that no guest can provoke here, and why.
const NOT_PROVOKED: &[(Reason, &str)] = &[
    (Reason::NONE, "it is no refusal"),
    (Reason::READ_ONLY_MEMORY, "vhost-user has no word for memory that can't be written"),
    (Reason::MAPPING_LIMIT, "it takes 2^14 chunks of 2 MiB: this guest has four"),
    (Reason::HCA_LIMIT, "one guest comes there by tens of GiB of scattered pages only, which takes minutes"),
    (Reason::PRIVILEGED_MAD, "this device has no MAD agents: NOT_OFFERED comes first"),
    (Reason::COMMAND_FAILED, "the HCA's doing"),
    (Reason::COMMAND_TIMEOUT, "the HCA's doing"),
    (Reason::STARTING, "the HCA's doing"),
    (Reason::HCA_LOST, "the HCA's doing"),
];

/// Fields that may have any value, and why.
const FREE: &[(Opcode, &str, &str)] = &[
    (Opcode::MODIFY_CQ, "count", "all numbers of 16 bits are within the card's reach"),
    (Opcode::MODIFY_CQ, "period", "all numbers of 16 bits are within the card's reach"),
    (Opcode::MODIFY_QP, "attributes.sq_draining", "of replies only"),
    (Opcode::MODIFY_QP, "attributes.alt_pkey_index", "ALT_PATH is NOT_OFFERED"),
    (Opcode::MODIFY_QP, "attributes.alt_port_num", "ALT_PATH is NOT_OFFERED"),
    (Opcode::MODIFY_QP, "attributes.alt_timeout", "ALT_PATH is NOT_OFFERED"),
    (Opcode::MODIFY_QP, "attributes.ah_attr.dgid", "any address"),
    (Opcode::MODIFY_QP, "attributes.ah_attr.hop_limit", "any byte"),
    (Opcode::MODIFY_QP, "attributes.ah_attr.traffic_class", "any byte"),
    (Opcode::MODIFY_QP, "attributes.ah_attr.dmac", "a path on InfiniBand has no place for it"),
    (Opcode::CREATE_AH, "attributes.dgid", "any address"),
    (Opcode::CREATE_AH, "attributes.hop_limit", "any byte"),
    (Opcode::CREATE_AH, "attributes.traffic_class", "any byte"),
    (Opcode::CREATE_AH, "attributes.dmac", "a path on InfiniBand has no place for it"),
];

fn is_free(opcode: Opcode, path: &str) -> bool {
    let alternate = opcode == Opcode::MODIFY_QP && path.starts_with("attributes.alt_ah_attr.");
    // Nothing of these is looked at: they are NOT_OFFERED.
    let mads = [Opcode::REGISTER_MAD_AGENT, Opcode::UNREGISTER_MAD_AGENT].contains(&opcode);
    alternate || mads || FREE.iter().any(|(free, name, _)| (*free, *name) == (opcode, path))
}

/// Fails if something has no row, or needn't have been left out.
pub(crate) fn check(stage: &Stage<'_>) -> Result<()> {
    let exempt = |reason: Reason| NOT_PROVOKED.iter().any(|(other, _)| *other == reason);
    let known = Reason::KNOWN.iter();
    let missing: Vec<_> =
        known.clone().filter(|reason| !stage.has_seen(**reason) && !exempt(**reason)).collect();
    ensure!(missing.is_empty(), "reasons without a row: {missing:?}");
    let provoked: Vec<_> = known.filter(|reason| stage.has_seen(**reason) && exempt(**reason)).collect();
    ensure!(provoked.is_empty(), "reasons that a guest can provoke after all: {provoked:?}");
    for opcode in Opcode::KNOWN {
        for leaf in fields::of(*opcode)?.iter().filter(|leaf| !leaf.is_reserved()) {
            let tried = stage.has_tried(*opcode, &leaf.path);
            ensure!(tried || is_free(*opcode, &leaf.path), "{opcode}: {} has no row", leaf.path);
        }
    }
    let needless = FREE.iter().find(|(opcode, path, _)| stage.has_tried(*opcode, path));
    ensure!(needless.is_none(), "a field that has a row: {needless:?}");
    Ok(())
}
