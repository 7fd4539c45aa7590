//! Whose turn it is: in each round each guest is served once, however many areas it has.

use std::sync::Arc;

use paraverbs_tenant::hca::Hca;

use super::area::Area;

/// Rings after which a guest's turn ends, with the area that they were in. So a turn has at most this many rings
/// and those of one full area.
const TURN: u32 = 64;

/// The areas of one guest.
#[derive(Debug)]
struct Guest {
    areas: Vec<Arc<Area>>,
    /// The area that its next turn begins with.
    next: usize,
}

impl Guest {
    /// Passes on what was rung. Answers whether there was anything.
    fn turn(&mut self, hca: &dyn Hca) -> bool {
        let mut rung = 0;
        for _ in 0..self.areas.len() {
            let Some(area) = self.areas.get(self.next) else { break };
            self.next = (self.next + 1) % self.areas.len();
            rung += area.relay(hca);
            if rung >= TURN {
                break;
            }
        }
        rung != 0
    }
}

/// All areas, by guest.
#[derive(Debug, Default)]
pub(crate) struct Turns(Vec<Guest>);

impl Turns {
    /// The turns of these areas' guests.
    pub(crate) fn of(areas: &[Arc<Area>]) -> Self {
        let mut areas = areas.to_vec();
        areas.sort_by_key(|area| area.guest());
        let same = |one: &Arc<Area>, other: &Arc<Area>| one.guest() == other.guest();
        Self(areas.chunk_by(same).map(|areas| Guest { areas: areas.to_vec(), next: 0 }).collect())
    }

    /// All areas.
    pub(crate) fn areas(&self) -> impl Iterator<Item = &Arc<Area>> {
        self.0.iter().flat_map(|guest| &guest.areas)
    }

    /// Gives each guest a turn. Answers whether anything was rung.
    pub(crate) fn round(&mut self, hca: &dyn Hca) -> bool {
        self.0.iter_mut().fold(false, |worked, guest| guest.turn(hca) | worked)
    }
}
