//! Configuration space and capabilities of the card, and its MSI-X table.
//!
//! [`ConfigSpace`] is what a ConnectX-3 VPI card shows on the bus: identity, the two 64-bit BARs, and the
//! capability lists, at the offsets that dumps of a CX354A give (PM, VPD, MSI-X, PCI Express and a vendor's
//! own; ARI, serial number, AER and secondary PCI Express). Each byte has a mask of the bits that software
//! may change. Field names and reset values: PCI Express Base Specification 3.0, chapter 7.
//!
//! [`MsixTable`] is the table and the pending bits in BAR 0.
//!
//! Does not: have an expansion ROM, SR-IOV, or a way to raise the interrupt pin that it announces as the
//! card does. What software writes to the link and error-reporting registers is kept and has no effect.

mod caps;
mod config;
mod msix;
#[cfg(test)]
mod tests;
mod vpd;

pub use config::{ConfigEffects, ConfigError, ConfigParams, ConfigSpace};
pub use msix::MsixTable;
