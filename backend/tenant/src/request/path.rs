//! Ports, P_Keys and GIDs as the guest sees them, and paths in that view.
//!
//! A guest with partitions of its own has a P_Key table of only those; one with GIDs of its own a GID table of
//! only those. Indexes are translated both ways.

use virtio_rdma::request::queue_pair::AhAttributes;
use virtio_rdma::{Reason, Reserved, U16, U32};

use crate::hca::{Gid, Grh, Path};
use crate::state::State;

/// The first multicast LID (IBTA 4.1.3).
const FIRST_MULTICAST_LID: u16 = 0xc000;
/// The permissive LID, of SMPs only.
const PERMISSIVE_LID: u16 = 0xffff;
/// The last code of a static rate (`ibv_rate`).
const LAST_RATE: u8 = 31;

/// Whether the device has that port.
pub(super) fn check_port(state: &State, port: u8) -> Result<(), Reason> {
    if port == 0 || port > state.info.ports { Err(Reason::BAD_PORT) } else { Ok(()) }
}

/// The indexes of the P_Keys of a port's table that the guest may use, in its order; `None`: all.
fn partition_indexes(state: &State, port: u8) -> Result<Option<Vec<u16>>, Reason> {
    let Some(partitions) = &state.config.partitions else { return Ok(None) };
    let hca = state.hca();
    let length = hca.query_port(port).map_err(|error| error.reason())?.pkeys;
    let mut indexes = Vec::new();
    for index in 0..length {
        let pkey = hca.query_pkey(port, index).map_err(|error| error.reason())?;
        if pkey != 0 && partitions.contains(&pkey) {
            indexes.push(index);
        }
    }
    Ok(Some(indexes))
}

/// The HCA's index of a P_Key that the guest names.
pub(super) fn pkey_index(state: &State, port: u8, index: u16) -> Result<u16, Reason> {
    check_port(state, port)?;
    if let Some(indexes) = partition_indexes(state, port)? {
        return indexes.get(usize::from(index)).copied().ok_or(Reason::BAD_INDEX);
    }
    let length = state.hca().query_port(port).map_err(|error| error.reason())?.pkeys;
    if index < length { Ok(index) } else { Err(Reason::BAD_INDEX) }
}

/// The guest's index of a P_Key that the HCA names; 0 if it has none.
pub(super) fn pkey_index_of_guest(state: &State, port: u8, index: u16) -> u16 {
    if check_port(state, port).is_err() {
        return 0;
    }
    match partition_indexes(state, port) {
        Ok(None) => index,
        Ok(Some(indexes)) => position(&indexes, index),
        Err(_) => 0,
    }
}

fn position(indexes: &[u16], index: u16) -> u16 {
    indexes.iter().position(|found| *found == index).and_then(|place| u16::try_from(place).ok()).unwrap_or(0)
}

/// The HCA's index of a GID that the guest names.
pub(super) fn gid_index(state: &State, port: u8, index: u16) -> Result<u16, Reason> {
    check_port(state, port)?;
    if let Some(own) = &state.config.own_gids {
        return own.get(usize::from(index)).copied().ok_or(Reason::BAD_INDEX);
    }
    let length = state.hca().query_port(port).map_err(|error| error.reason())?.gids;
    if index < length { Ok(index) } else { Err(Reason::BAD_INDEX) }
}

/// A path that the guest names, in the HCA's indexes.
pub(super) fn from_guest(state: &State, attributes: &AhAttributes) -> Result<Path, Reason> {
    check_port(state, attributes.port_num)?;
    let known = attributes.sl <= 15
        && attributes.src_path_bits < 128
        && attributes.static_rate <= LAST_RATE
        && attributes.is_global <= 1
        && attributes.flow_label.get() < 1 << 20
        && attributes.dlid.get() != PERMISSIVE_LID;
    if !known {
        return Err(Reason::BAD_ATTRIBUTE);
    }
    let grh = (attributes.is_global == 1).then(|| grh(state, attributes)).transpose()?;
    Ok(Path {
        port: attributes.port_num,
        dlid: attributes.dlid.get(),
        sl: attributes.sl,
        src_path_bits: attributes.src_path_bits,
        static_rate: attributes.static_rate,
        grh,
        dmac: attributes.dmac,
    })
}

fn grh(state: &State, attributes: &AhAttributes) -> Result<Grh, Reason> {
    Ok(Grh {
        dgid: Gid(attributes.dgid),
        sgid_index: gid_index(state, attributes.port_num, u16::from(attributes.sgid_index))?,
        flow_label: attributes.flow_label.get(),
        hop_limit: attributes.hop_limit,
        traffic_class: attributes.traffic_class,
    })
}

/// A path of a connection: to one port.
pub(super) fn connected_from_guest(state: &State, attributes: &AhAttributes) -> Result<Path, Reason> {
    let path = from_guest(state, attributes)?;
    if path.dlid >= FIRST_MULTICAST_LID { Err(Reason::BAD_ATTRIBUTE) } else { Ok(path) }
}

/// A path of the HCA's, in the guest's indexes.
pub(super) fn to_guest(state: &State, path: &Path) -> AhAttributes {
    let gid_index = path.grh.map_or(0, |grh| match &state.config.own_gids {
        Some(own) => position(own, grh.sgid_index),
        None => grh.sgid_index,
    });
    AhAttributes {
        dgid: path.grh.map_or([0; 16], |grh| grh.dgid.0),
        flow_label: U32::new(path.grh.map_or(0, |grh| grh.flow_label)),
        dlid: U16::new(path.dlid),
        sgid_index: u8::try_from(gid_index).unwrap_or(0),
        hop_limit: path.grh.map_or(0, |grh| grh.hop_limit),
        traffic_class: path.grh.map_or(0, |grh| grh.traffic_class),
        sl: path.sl,
        src_path_bits: path.src_path_bits,
        static_rate: path.static_rate,
        is_global: u8::from(path.grh.is_some()),
        port_num: path.port,
        dmac: path.dmac,
        reserved: Reserved::ZERO,
    }
}
