//! The forwarding tables that the switch shall have, and which blocks of them it doesn't have yet.

use mlx4_wire::U16;
use mlx4_wire::mad::LID_MULTICAST_FIRST;
use mlx4_wire::mad::attr::{LinearForwardingTable, MulticastForwardingTable};
use mlx4_wire::mad::smp::SmpAttribute;
use zerocopy::IntoBytes;

use super::requests::Question;

/// LIDs of a block of the linear forwarding table.
const LINEAR_BLOCK: usize = 64;
/// LIDs of a block of the multicast forwarding table.
const MULTICAST_BLOCK: usize = 32;
/// Ports of a position of the multicast forwarding table.
const PORTS_PER_MASK: usize = 16;

/// A block of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Of the linear forwarding table.
    Linear(u16),
    /// Of the multicast forwarding table.
    Multicast {
        /// Block of 32 LIDs.
        block: u16,
        /// Block of 16 ports.
        position: u8,
    },
}

/// How far a block has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sync {
    /// The switch has it.
    #[default]
    Clean,
    /// The switch doesn't have it.
    Dirty,
    /// It is on its way; changed again since, if so.
    UnderWay { again: bool },
    /// The switch didn't take it; next try at the next sweep.
    Refused,
}

impl Sync {
    fn touch(&mut self) {
        *self = match self {
            Self::UnderWay { .. } => Self::UnderWay { again: true },
            _ => Self::Dirty,
        };
    }

    fn finish(&mut self, accepted: bool) {
        *self = match self {
            Self::UnderWay { again: true } => Self::Dirty,
            _ if accepted => Self::Clean,
            _ => Self::Refused,
        };
    }
}

/// The tables of one switch.
#[derive(Default)]
pub(super) struct Tables {
    linear: Vec<u8>,
    linear_sync: Vec<Sync>,
    top: u16,
    positions: usize,
    masks: Vec<[u16; MULTICAST_BLOCK]>,
    mask_sync: Vec<Sync>,
}

impl Tables {
    /// Empty tables: every LID leads nowhere. The linear table grows with the LIDs in use; the multicast
    /// table has `multicast_capacity` LIDs and external ports 1 to `num_ports`.
    pub(super) fn new(multicast_capacity: u16, num_ports: u8) -> Self {
        let positions = usize::from(num_ports) / PORTS_PER_MASK + 1;
        let blocks = usize::from(multicast_capacity).div_ceil(MULTICAST_BLOCK) * positions;
        Self {
            positions,
            masks: vec![[0; MULTICAST_BLOCK]; blocks],
            mask_sync: vec![Sync::Clean; blocks],
            ..Self::default()
        }
    }

    /// The highest LID that leads somewhere.
    pub(super) fn top(&self) -> u16 {
        self.top
    }

    /// Makes a unicast LID lead to a port; `None` for nowhere.
    pub(super) fn set_unicast(&mut self, lid: u16, port: Option<u8>) {
        let at = usize::from(lid);
        if at >= self.linear.len() {
            let blocks = at / LINEAR_BLOCK + 1;
            self.linear.resize(blocks * LINEAR_BLOCK, LinearForwardingTable::DROP);
            self.linear_sync.resize(blocks, Sync::Dirty);
        }
        let port = port.unwrap_or(LinearForwardingTable::DROP);
        if self.linear[at] != port {
            self.linear[at] = port;
            self.linear_sync[at / LINEAR_BLOCK].touch();
        }
        self.top = self.top.max(lid);
    }

    /// Whether the switch routes the LID as it shall.
    pub(super) fn routes(&self, lid: u16) -> bool {
        self.linear_sync.get(usize::from(lid) / LINEAR_BLOCK) == Some(&Sync::Clean)
    }

    /// Makes a multicast LID lead to these ports.
    pub(super) fn set_multicast(&mut self, mlid: u16, ports: impl IntoIterator<Item = u8>) {
        let Some(index) = mlid.checked_sub(LID_MULTICAST_FIRST).map(usize::from) else { return };
        let (block, entry) = (index / MULTICAST_BLOCK, index % MULTICAST_BLOCK);
        let mut wanted = vec![0; self.positions];
        for port in ports.into_iter().map(usize::from) {
            if let Some(mask) = wanted.get_mut(port / PORTS_PER_MASK) {
                *mask |= 1 << (port % PORTS_PER_MASK);
            }
        }
        for (position, wanted) in wanted.into_iter().enumerate() {
            let at = block * self.positions + position;
            let Some(mask) = self.masks.get_mut(at).and_then(|masks| masks.get_mut(entry)) else { return };
            if *mask != wanted {
                *mask = wanted;
                self.mask_sync[at].touch();
            }
        }
    }

    /// The blocks that the switch shall be given now; they are under way from here on.
    pub(super) fn take_dirty(&mut self) -> Vec<(Block, Question)> {
        let mut questions = Vec::new();
        for at in take(&mut self.linear_sync) {
            let Ok(block) = u16::try_from(at) else { continue };
            questions.push((Block::Linear(block), self.linear_question(block)));
        }
        for at in take(&mut self.mask_sync) {
            let (block, position) = (at / self.positions, at % self.positions);
            let (Ok(block), Ok(position)) = (u16::try_from(block), u8::try_from(position)) else { continue };
            questions.push((Block::Multicast { block, position }, self.multicast_question(block, position)));
        }
        questions
    }

    /// Takes in whether the switch took a block.
    pub(super) fn finish(&mut self, block: Block, accepted: bool) {
        let sync = match block {
            Block::Linear(block) => self.linear_sync.get_mut(usize::from(block)),
            Block::Multicast { block, position } => {
                self.mask_sync.get_mut(usize::from(block) * self.positions + usize::from(position))
            }
        };
        if let Some(sync) = sync {
            sync.finish(accepted);
        }
    }

    /// Lets refused blocks be tried again.
    pub(super) fn retry(&mut self) {
        for sync in self.linear_sync.iter_mut().chain(&mut self.mask_sync) {
            if *sync == Sync::Refused {
                *sync = Sync::Dirty;
            }
        }
    }

    fn linear_question(&self, block: u16) -> Question {
        let from = usize::from(block) * LINEAR_BLOCK;
        let mut data = [LinearForwardingTable::DROP; LINEAR_BLOCK];
        data.copy_from_slice(&self.linear[from..from + LINEAR_BLOCK]);
        Question::set(SmpAttribute::LINEAR_FORWARDING_TABLE, u32::from(block), data)
    }

    fn multicast_question(&self, block: u16, position: u8) -> Question {
        let masks = self.masks[usize::from(block) * self.positions + usize::from(position)];
        let table = MulticastForwardingTable { port_masks: masks.map(U16::new) };
        let mut data = [0; 64];
        data.copy_from_slice(table.as_bytes());
        let modifier = u32::from(position) << 28 | u32::from(block);
        Question::set(SmpAttribute::MULTICAST_FORWARDING_TABLE, modifier, data)
    }
}

fn take(syncs: &mut [Sync]) -> Vec<usize> {
    let mut dirty = Vec::new();
    for (at, sync) in syncs.iter_mut().enumerate() {
        if *sync == Sync::Dirty {
            *sync = Sync::UnderWay { again: false };
            dirty.push(at);
        }
    }
    dirty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unicast_block_is_routed_once_the_switch_took_it() {
        let mut tables = Tables::new(64, 36);
        tables.set_unicast(65, Some(3));
        assert_eq!(tables.top(), 65);
        let dirty = tables.take_dirty();
        assert_eq!(
            dirty.iter().map(|(block, _)| *block).collect::<Vec<_>>(),
            [Block::Linear(0), Block::Linear(1)]
        );
        assert_eq!(dirty[1].1.data[..2], [LinearForwardingTable::DROP, 3]);
        assert!(!tables.routes(65) && tables.take_dirty().is_empty());
        tables.finish(Block::Linear(1), true);
        assert!(tables.routes(65) && !tables.routes(1));
    }

    #[test]
    fn change_under_way_is_sent_again() {
        let mut tables = Tables::new(64, 8);
        tables.set_unicast(1, Some(0));
        assert_eq!(tables.take_dirty().len(), 1);
        tables.set_unicast(2, Some(4));
        tables.finish(Block::Linear(0), true);
        assert!(!tables.routes(2));
        assert_eq!(tables.take_dirty()[0].1.data[1..3], [0, 4]);
    }

    #[test]
    fn refused_block_waits_for_the_next_sweep() {
        let mut tables = Tables::new(64, 8);
        tables.set_unicast(1, Some(0));
        tables.take_dirty();
        tables.finish(Block::Linear(0), false);
        assert!(tables.take_dirty().is_empty());
        tables.retry();
        assert_eq!(tables.take_dirty().len(), 1);
    }

    #[test]
    fn multicast_masks_lie_by_position() {
        let mut tables = Tables::new(64, 36);
        tables.set_multicast(0xc021, [2, 17, 36]);
        let dirty = tables.take_dirty();
        let modifiers: Vec<_> = dirty.iter().map(|(_, question)| question.modifier).collect();
        assert_eq!(modifiers, [1, 0x1000_0001, 0x2000_0001]);
        assert_eq!(dirty[0].1.data[2..4], [0, 4]);
        assert_eq!(dirty[1].1.data[2..4], [0, 2]);
        assert_eq!(dirty[2].1.data[2..4], [0, 0x10]);
        tables.set_multicast(0xc040, [1]);
        assert!(tables.take_dirty().is_empty());
    }
}
