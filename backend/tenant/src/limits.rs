//! What one guest may have.

use crate::memory::ChunkSize;

/// Limits of one guest. Where the HCA has less, that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// PDs.
    pub pds: u32,
    /// UARs.
    pub uars: u32,
    /// XRC domains.
    pub xrcds: u32,
    /// Memory regions.
    pub mrs: u32,
    /// Memory windows.
    pub mws: u32,
    /// CQs.
    pub cqs: u32,
    /// SRQs.
    pub srqs: u32,
    /// Queue pairs.
    pub qps: u32,
    /// Attachments to multicast groups.
    pub mcast_attachments: u32,
    /// Queue pairs in one multicast group, where all guests share the places that the HCA has.
    pub mcast_members: u32,
    /// Registered service IDs, however many registrations they are in.
    pub service_ids: u32,
    /// Bytes registered, rings included.
    pub registered_bytes: u64,
    /// Segments of one object's memory.
    pub segments: u32,
    /// Longest request in bytes.
    pub request_bytes: u32,
    /// Slots of a doorbell area.
    pub slots: u32,
    /// Asynchronous events kept for a guest that doesn't take them.
    pub events: u32,
    /// Regions of the memory table.
    pub regions: usize,
    /// Chunks of memory mapped at once.
    pub chunks: usize,
    /// Bytes of chunks that stay mapped though nobody uses them.
    pub idle_bytes: u64,
    /// How much is mapped at once.
    pub chunk: ChunkSize,
    /// Size of the guest's window of bus addresses in bytes: how far its addresses go. A power of two.
    pub window_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pds: 1024,
            uars: 64,
            xrcds: 64,
            mrs: 1 << 16,
            mws: 1 << 12,
            cqs: 1 << 14,
            srqs: 1 << 12,
            qps: 1 << 14,
            mcast_attachments: 1024,
            mcast_members: 32,
            service_ids: 256,
            registered_bytes: 64 << 30,
            segments: 1 << 17,
            request_bytes: 1 << 16,
            slots: 4096,
            events: 1024,
            regions: 509,
            chunks: 1 << 14,
            idle_bytes: 256 << 20,
            chunk: ChunkSize::Log2Bytes(21),
            window_bytes: 1 << 40,
        }
    }
}
