//! Protection domains, UARs and XRC domains.

use crate::doorbell::DoorbellMode;
use crate::{Reserved, U16, U32, U64};

layout! {
    size = 0;
    /// `ALLOC_PD`: a protection domain.
    pub struct AllocPd {}
}

layout! {
    size = 8;
    /// Reply to `ALLOC_PD`.
    pub struct PdAllocated {
        /// Handle of the PD.
        pub pd: U32,
        /// The HCA's number of it.
        pub pdn: U32,
    }
}

layout! {
    size = 8;
    /// `DEALLOC_PD`.
    pub struct DeallocPd {
        /// The PD.
        pub pd: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 24;
    /// `ALLOC_UAR`: a place for doorbells, which CQs and QPs then name.
    pub struct AllocUar {
        /// How they reach the HCA.
        pub mode: DoorbellMode,
        /// Zero.
        pub reserved: Reserved<3>,
        /// `RELAYED`: number of slots. Else 0: the device's choice.
        pub slots: U32,
        /// `RELAYED`: address of the area in guest memory, zeroed by the driver. Else 0.
        pub area: U64,
        /// Zero.
        pub reserved_end: Reserved<8>,
    }
}

layout! {
    size = 40;
    /// Reply to `ALLOC_UAR`.
    pub struct UarAllocated {
        /// Handle of the UAR.
        pub uar: U32,
        /// The doorbell-kick queue of this area, counted from 0.
        pub kick_queue: U16,
        /// Must be ignored.
        pub reserved: Reserved<2>,
        /// Number of slots; 0 with `REGISTERS`.
        pub slots: U32,
        /// Size in bytes of the area or page.
        pub area_bytes: U32,
        /// `DIRECT`, `REGISTERS`: offset in the shared-memory region, a multiple of 4096.
        pub area_offset: U64,
        /// `DIRECT`, `REGISTERS`: offset of BlueFlame buffers in the shared-memory region.
        pub blueflame_offset: U64,
        /// Size in bytes of the BlueFlame buffers; 0: none.
        pub blueflame_bytes: U32,
        /// Must be ignored.
        pub reserved_end: Reserved<4>,
    }
}

layout! {
    size = 8;
    /// `DEALLOC_UAR`.
    pub struct DeallocUar {
        /// The UAR.
        pub uar: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}

layout! {
    size = 0;
    /// `OPEN_XRCD`: an XRC domain.
    pub struct OpenXrcd {}
}

layout! {
    size = 8;
    /// Reply to `OPEN_XRCD`.
    pub struct XrcdOpened {
        /// Handle of the domain.
        pub xrcd: U32,
        /// The HCA's number of it.
        pub xrcdn: U32,
    }
}

layout! {
    size = 8;
    /// `CLOSE_XRCD`.
    pub struct CloseXrcd {
        /// The domain.
        pub xrcd: U32,
        /// Zero.
        pub reserved: Reserved<4>,
    }
}
