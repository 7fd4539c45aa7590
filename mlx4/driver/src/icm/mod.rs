//! ICM: the memory in which the device keeps its tables, and which the host gives it.
//!
//! What is always there: the firmware's own part of each table, the contexts of event queues, the multicast
//! table. The rest grows and shrinks with the objects.

mod buddy;
mod memory;
mod mtt;
mod table;

use mlx4_pci::DmaSpace;
use mlx4_wire::cmd::Opcode;

pub(crate) use memory::FirmwareMemory;
pub(crate) use mtt::{MttRange, Pages};

use crate::caps::Capabilities;
use crate::cmd::{Command, Commands, Ends, Input};
use crate::error::{Fields, Result};
use crate::profile::{Extent, LOG2_CMPTS, Layout, TableKind};
use mtt::MttTable;
use table::IcmTable;

/// Objects whose contexts are in ICM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Qp,
    Srq,
    Cq,
    Eq,
    Mpt,
}

/// All tables in ICM.
#[derive(Debug)]
pub(crate) struct Icm {
    dma: DmaSpace,
    /// By [`Kind`], the tables that an object of the kind has an entry in.
    kinds: [Vec<IcmTable>; 5],
    mtt: MttTable,
    mcg: IcmTable,
    aux: Option<FirmwareMemory>,
}

impl Icm {
    /// Announces the size of ICM, and gives the device what it needs of it from the start.
    ///
    /// # Errors
    /// No memory, or the device refuses it. The device must be reset then.
    pub(crate) fn open(
        commands: &Commands,
        dma: &DmaSpace,
        layout: &Layout,
        caps: &Capabilities,
    ) -> Result<Self> {
        let input = Input::Immediate(layout.bytes);
        let aux_pages = commands.run(&Command { input, ..Command::new(Opcode::SET_ICM_SIZE, 0) })?;
        let most = layout.bytes / 4096 / 8 + 1024;
        Fields("SET_ICM_SIZE").at_most("aux_pages", aux_pages, most)?;
        let map = (Opcode::MAP_ICM_AUX, Opcode::UNMAP_ICM_AUX);
        let aux = match aux_pages {
            0 => None,
            pages => Some(FirmwareMemory::give(commands, dma, pages, map)?),
        };
        let icm = Self::new(dma.clone(), layout, caps, aux);
        icm.pin(commands, layout, caps)?;
        Ok(icm)
    }

    fn new(dma: DmaSpace, layout: &Layout, caps: &Capabilities, aux: Option<FirmwareMemory>) -> Self {
        let table = |kind| IcmTable::new(layout.extent(kind));
        let cmpt = |number: u64, log2_entries: u8| {
            let all = layout.extent(TableKind::Cmpt);
            let base = all.base + (number << (LOG2_CMPTS + all.log2_entry_bytes));
            IcmTable::new(Extent { base, log2_entries, ..all })
        };
        let profile = &layout.profile;
        let kinds = [
            vec![
                table(TableKind::Qpc),
                table(TableKind::Auxc),
                table(TableKind::Altc),
                table(TableKind::Rdmarc),
                cmpt(0, profile.log2_qps),
            ],
            vec![table(TableKind::Srqc), cmpt(1, profile.log2_srqs)],
            vec![table(TableKind::Cqc), cmpt(2, profile.log2_cqs)],
            vec![table(TableKind::Eqc), cmpt(3, caps.eqs.log2)],
            vec![table(TableKind::Dmpt)],
        ];
        let mtt = MttTable::new(table(TableKind::Mtt), layout.extent(TableKind::Mtt), caps.mtts.reserved);
        Self { dma, kinds, mtt, mcg: table(TableKind::Mcg), aux }
    }

    /// Gives memory to what must always have it.
    fn pin(&self, commands: &Commands, layout: &Layout, caps: &Capabilities) -> Result<()> {
        let pinned = [
            (Kind::Qp, caps.qps.reserved.into()),
            (Kind::Srq, caps.srqs.reserved.into()),
            (Kind::Cq, caps.cqs.reserved.into()),
            (Kind::Eq, 1u64 << caps.eqs.log2),
            (Kind::Mpt, caps.mpts.reserved.into()),
        ];
        for (kind, count) in pinned {
            for table in &self.kinds[kind as usize] {
                table.get(commands, &self.dma, 0, count)?;
            }
        }
        self.mtt.pin(commands, &self.dma, caps.mtts.reserved.into())?;
        self.mcg.get(commands, &self.dma, 0, 1 << layout.profile.log2_mcgs)
    }

    /// Sees to it that an object's entries have memory.
    ///
    /// # Errors
    /// No memory, or the device refuses it; nothing has changed then.
    pub(crate) fn get(&self, commands: &Commands, kind: Kind, index: u32) -> Result<()> {
        let tables = &self.kinds[kind as usize];
        for (done, table) in tables.iter().enumerate() {
            if let Err(error) = table.get(commands, &self.dma, index.into(), 1) {
                for table in &tables[..done] {
                    if let Err(error) = table.put(commands, index.into(), 1) {
                        log::warn!("while taking ICM back: {error}");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets go of an object's entries.
    ///
    /// # Errors
    /// The device doesn't give memory back; it stays mapped until the next reset.
    pub(crate) fn put(&self, commands: &Commands, kind: Kind, index: u32) -> Result<()> {
        let mut ends = Ends::default();
        for table in &self.kinds[kind as usize] {
            ends.note(table.put(commands, index.into(), 1));
        }
        ends.result()
    }

    /// Translation entries for pages, and `spare` entries behind them that are never present.
    ///
    /// # Errors
    /// None left, or no memory for them.
    pub(crate) fn translate(&self, commands: &Commands, pages: &Pages<'_>, spare: u32) -> Result<MttRange> {
        self.mtt.allocate(commands, &self.dma, pages, spare)
    }

    /// Gives translation entries back, which the device doesn't use any more.
    ///
    /// # Errors
    /// As for [`Icm::put`].
    pub(crate) fn forget(&self, commands: &Commands, range: MttRange) -> Result<()> {
        self.mtt.free(commands, range)
    }

    /// Takes everything back, after CLOSE_HCA.
    ///
    /// # Errors
    /// The first failure; all is tried.
    pub(crate) fn close(mut self, commands: &Commands) -> Result<()> {
        let mut ends = Ends::default();
        ends.note(self.mcg.close(commands));
        for table in self.kinds.iter().rev().flatten() {
            ends.note(table.close(commands));
        }
        ends.note(self.mtt.close(commands));
        if let Some(aux) = self.aux.take() {
            ends.note(aux.take_back(commands));
        }
        ends.result()
    }
}
