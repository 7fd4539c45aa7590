//! A dump of everything that a driver has left in the HCA: what a test compares before and after a driver
//! was loaded, and what a person looks at.

use std::fmt::Write as _;
use std::sync::Arc;

use super::Hca;
use super::running::Running;

impl Hca {
    /// The resources in use, as JSON text: an object with the node GUID, firmware phase, ICM and DMA
    /// mappings, and each live object of a running HCA by kind.
    ///
    /// Counters are not in it; see [`Hca::counters`].
    pub fn dump(&self) -> String {
        let (area, aux) = self.firmware().pages();
        let mut out = String::from("{");
        // Writing to a string cannot fail.
        let _infallible = write!(
            out,
            "\"node_guid\":\"{:#018x}\",\"firmware_pages\":{area},\"aux_pages\":{aux},\"icm_pages\":{},\
             \"running\":{}",
            self.config.node_guid,
            self.icm.snapshot().pages(),
            self.running.load().is_some(),
        );
        if let Some(running) = self.running.load_full() {
            dump_objects(&mut out, &running);
        }
        out.push('}');
        out
    }

    /// Accesses to memory that the HCA tried and was refused since it was made; those aside that came while bus
    /// mastering was off, which a card doesn't send to the bus.
    pub fn refused_accesses(&self) -> u64 {
        self.dma.refused()
    }

    /// Accesses to memory that came while bus mastering was off, since it was made.
    pub fn held_back_accesses(&self) -> u64 {
        self.dma.held_back()
    }

    /// Bytes of memory that the HCA can reach now, were bus mastering on.
    pub fn mapped_bytes(&self) -> u64 {
        self.dma.mapped_bytes()
    }
}

fn dump_objects(out: &mut String, running: &Arc<Running>) {
    list(
        out,
        "eqs",
        running.eqs.iter().map(|eq| format!("{{\"eqn\":{},\"dropped\":{}}}", eq.eqn, eq.dropped())),
    );
    list(out, "cqs", running.cqs.iter().map(|cq| cq.cqn.to_string()));
    list(out, "srqs", running.srqs.iter().map(|srq| srq.srqn.to_string()));
    list(
        out,
        "qps",
        running.qps.iter().map(|qp| format!("{{\"qpn\":{},\"state\":\"{}\"}}", qp.qpn, qp.state())),
    );
    list(out, "mpts", running.mpts.to_vec().iter().map(u32::to_string));
}

fn list(out: &mut String, name: &str, items: impl Iterator<Item = String>) {
    let items: Vec<_> = items.collect();
    let _infallible = write!(out, ",\"{name}\":[{}]", items.join(","));
}
