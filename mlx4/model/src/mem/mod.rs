//! The bus-address space that the HCA reaches by DMA.
