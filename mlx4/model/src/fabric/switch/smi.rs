//! Directed routes: where an SMP of class 81 goes at the switch (IBTA vol. 1, 14.2.2).
//!
//! Pure: it moves the hop pointer and records the way back, and says what to do next.

use mlx4_wire::mad::LID_PERMISSIVE;
use mlx4_wire::mad::smp::Smp;

/// What to do with an SMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It has arrived: for the switch's own agent or the manager at port 0.
    Local,
    /// Send it out of an external port, with permissive LIDs.
    Out(u8),
    /// The directed part is over: send it on to this LID.
    Lid(u16),
    /// Drop it.
    Discard,
}

/// Takes an SMP that arrived at `ingress`, or that the manager at port 0 sent, one hop further.
pub(super) fn route(smp: &mut Smp, ingress: u8, num_ports: u8) -> Step {
    if smp.hop_count() > Smp::MAX_HOPS {
        return Step::Discard;
    }
    if smp.is_returning() { back(smp, ingress, num_ports) } else { forth(smp, ingress, num_ports) }
}

/// Starts the way back of an answer that was made here.
pub(super) fn answer(smp: &mut Smp, num_ports: u8) -> Step {
    smp.set_returning(true);
    let pointer = smp.hop_pointer();
    if smp.hop_count().checked_add(1) != Some(pointer) {
        return Step::Discard;
    }
    smp.set_hop_pointer(pointer - 1);
    if pointer == 1 {
        return end_of_return(smp);
    }
    external(smp.return_path[usize::from(pointer - 1)], num_ports)
}

fn forth(smp: &mut Smp, ingress: u8, num_ports: u8) -> Step {
    let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
    match pointer {
        0 if count == 0 => {
            smp.set_hop_pointer(1);
            end_of_route(smp)
        }
        0 => {
            smp.set_hop_pointer(1);
            external(smp.initial_path[1], num_ports)
        }
        _ if ingress == 0 && pointer <= count => Step::Discard,
        _ if pointer < count => {
            smp.return_path[usize::from(pointer)] = ingress;
            smp.set_hop_pointer(pointer + 1);
            external(smp.initial_path[usize::from(pointer) + 1], num_ports)
        }
        _ if pointer == count => {
            smp.return_path[usize::from(pointer)] = ingress;
            smp.set_hop_pointer(pointer + 1);
            end_of_route(smp)
        }
        _ if pointer == count + 1 => Step::Local,
        _ => Step::Discard,
    }
}

fn back(smp: &mut Smp, ingress: u8, num_ports: u8) -> Step {
    let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
    match pointer {
        _ if ingress == 0 => answer(smp, num_ports),
        0 => Step::Local,
        1 if count > 0 => {
            smp.set_hop_pointer(0);
            end_of_return(smp)
        }
        _ if pointer <= count => {
            smp.set_hop_pointer(pointer - 1);
            external(smp.return_path[usize::from(pointer) - 1], num_ports)
        }
        _ => Step::Discard,
    }
}

fn end_of_route(smp: &Smp) -> Step {
    match smp.dr_dlid.get() {
        LID_PERMISSIVE => Step::Local,
        lid => Step::Lid(lid),
    }
}

fn end_of_return(smp: &Smp) -> Step {
    match smp.dr_slid.get() {
        LID_PERMISSIVE => Step::Local,
        lid => Step::Lid(lid),
    }
}

fn external(port: u8, num_ports: u8) -> Step {
    if (1..=num_ports).contains(&port) { Step::Out(port) } else { Step::Discard }
}

#[cfg(test)]
mod tests {
    use mlx4_wire::U16;
    use mlx4_wire::mad::header::MgmtClass;
    use zerocopy::FromZeros;

    use super::*;

    fn smp(path: &[u8]) -> Smp {
        let mut smp = Smp::new_zeroed();
        smp.header.mgmt_class = MgmtClass::SUBN_DIRECTED_ROUTE;
        smp.dr_slid = U16::new(LID_PERMISSIVE);
        smp.dr_dlid = U16::new(LID_PERMISSIVE);
        smp.set_hop_count(u8::try_from(path.len()).unwrap());
        smp.initial_path[1..=path.len()].copy_from_slice(path);
        smp
    }

    #[test]
    fn manager_to_own_switch_and_back() {
        let mut smp = smp(&[]);
        assert_eq!(route(&mut smp, 0, 8), Step::Local);
        assert_eq!(smp.hop_pointer(), 1);
        assert_eq!(answer(&mut smp, 8), Step::Local);
        assert_eq!((smp.hop_pointer(), smp.is_returning()), (0, true));
    }

    #[test]
    fn manager_to_node_and_back() {
        let mut smp = smp(&[5]);
        assert_eq!(route(&mut smp, 0, 8), Step::Out(5));
        assert_eq!(smp.hop_pointer(), 1);
        smp.return_path[1] = 1;
        smp.set_returning(true);
        assert_eq!(route(&mut smp, 5, 8), Step::Local);
        assert_eq!(smp.hop_pointer(), 0);
    }

    #[test]
    fn node_through_switch_to_node_and_back() {
        let mut smp = smp(&[1, 5]);
        smp.set_hop_pointer(1);
        assert_eq!(route(&mut smp, 3, 8), Step::Out(5));
        assert_eq!((smp.hop_pointer(), smp.return_path[1]), (2, 3));
        smp.return_path[2] = 1;
        smp.set_returning(true);
        assert_eq!(route(&mut smp, 5, 8), Step::Out(3));
        assert_eq!(smp.hop_pointer(), 1);
    }

    #[test]
    fn node_to_switch_and_back() {
        let mut smp = smp(&[1]);
        smp.set_hop_pointer(1);
        assert_eq!(route(&mut smp, 3, 8), Step::Local);
        assert_eq!((smp.hop_pointer(), smp.return_path[1]), (2, 3));
        assert_eq!(answer(&mut smp, 8), Step::Out(3));
        assert_eq!((smp.hop_pointer(), smp.is_returning()), (1, true));
    }

    #[test]
    fn routed_start_ends_at_the_lid_of_the_requester() {
        let mut smp = smp(&[4]);
        smp.dr_slid = U16::new(7);
        assert_eq!(route(&mut smp, 2, 8), Step::Out(4));
        smp.set_returning(true);
        assert_eq!(route(&mut smp, 4, 8), Step::Lid(7));
        assert_eq!(smp.hop_pointer(), 0);
    }

    #[test]
    fn routed_end_leaves_by_its_lid() {
        let mut smp = smp(&[1]);
        smp.dr_dlid = U16::new(9);
        smp.set_hop_pointer(1);
        assert_eq!(route(&mut smp, 2, 8), Step::Lid(9));
    }

    #[test]
    fn any_hop_fields_are_survived() {
        for count in 0..=255 {
            for pointer in 0..=255 {
                for (returning, ingress) in [(false, 0), (false, 3), (true, 0), (true, 3)] {
                    let mut smp = smp(&[]);
                    smp.set_hop_count(count);
                    smp.set_hop_pointer(pointer);
                    smp.set_returning(returning);
                    smp.initial_path = [9; 64];
                    smp.return_path = [9; 64];
                    let step = route(&mut smp, ingress, 8);
                    assert!(matches!(step, Step::Local | Step::Discard));
                }
            }
        }
    }
}
