//! Directed-route SMPs at a channel adapter (IBTA vol. 1, 14.2.2): only ends of routes are here.

use mlx4_wire::mad::LID_PERMISSIVE;
use mlx4_wire::mad::smp::Smp;

/// What to do with a directed-route SMP that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    /// It is for this node.
    Here,
    /// It is an answer that has come back to where its route began.
    Back,
    /// It doesn't belong here.
    Discard,
}

/// Takes a directed-route SMP in that came through `port`: notes the port in its route.
pub(super) fn inbound(smp: &mut Smp, port: u8) -> Inbound {
    let (pointer, count) = (smp.hop_pointer(), smp.hop_count());
    if count > Smp::MAX_HOPS {
        return Inbound::Discard;
    }
    if smp.is_returning() {
        return match pointer {
            0 => Inbound::Back,
            1 if smp.dr_slid.get() == LID_PERMISSIVE => {
                smp.set_hop_pointer(0);
                Inbound::Back
            }
            _ => Inbound::Discard,
        };
    }
    if pointer == count && count != 0 {
        if smp.dr_dlid.get() != LID_PERMISSIVE {
            return Inbound::Discard;
        }
        smp.return_path[usize::from(pointer)] = port;
        smp.set_hop_pointer(pointer + 1);
        return Inbound::Here;
    }
    if count != 0 && pointer == count + 1 { Inbound::Here } else { Inbound::Discard }
}

/// Turns the agent's answer to a request, as [`inbound`] has left it, round.
pub(super) fn answer(request: &Smp, answer: &mut Smp) {
    answer.header.mgmt_class = request.header.mgmt_class;
    answer.dr_slid = request.dr_slid;
    answer.dr_dlid = request.dr_dlid;
    answer.initial_path = request.initial_path;
    answer.return_path = request.return_path;
    answer.set_returning(true);
    answer.set_hop_count(request.hop_count());
    answer.set_hop_pointer(request.hop_pointer().saturating_sub(1));
}

#[cfg(test)]
mod tests {
    use mlx4_wire::U16;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;

    fn smp(pointer: u8, count: u8) -> Smp {
        let mut smp = Smp::new_zeroed();
        smp.dr_slid = U16::new(LID_PERMISSIVE);
        smp.dr_dlid = U16::new(LID_PERMISSIVE);
        smp.set_hop_pointer(pointer);
        smp.set_hop_count(count);
        smp
    }

    #[test]
    fn request_at_its_end_is_taken_and_answered_with_the_hop_count_as_pointer() {
        let mut request = smp(2, 2);
        assert_eq!(inbound(&mut request, 1), Inbound::Here);
        assert_eq!((request.return_path[2], request.hop_pointer()), (1, 3));
        let mut reply = Smp::new_zeroed();
        answer(&request, &mut reply);
        assert_eq!((reply.hop_pointer(), reply.hop_count(), reply.is_returning()), (2, 2, true));
        assert_eq!(reply.return_path[2], 1);
    }

    #[test]
    fn request_that_is_not_at_its_end_is_discarded() {
        for (pointer, count) in [(0, 0), (1, 2), (0, 2), (4, 2), (64, 64), (255, 255), (0, 255)] {
            assert_eq!(inbound(&mut smp(pointer, count), 1), Inbound::Discard, "{pointer} of {count}");
        }
        let mut onward = smp(2, 2);
        onward.dr_dlid = U16::new(5);
        assert_eq!(inbound(&mut onward, 1), Inbound::Discard);
    }

    #[test]
    fn answer_is_back_where_its_route_began() {
        let mut back = smp(1, 2);
        back.set_returning(true);
        assert_eq!(inbound(&mut back, 1), Inbound::Back);
        assert_eq!(back.hop_pointer(), 0);
        let mut between = smp(2, 2);
        between.set_returning(true);
        assert_eq!(inbound(&mut between, 1), Inbound::Discard);
    }

    proptest! {
        #[test]
        fn any_packet_is_taken_or_discarded(bytes in prop::collection::vec(any::<u8>(), 256), port in 1u8..3) {
            let mut mad = [0; 256];
            mad.copy_from_slice(&bytes);
            let mut smp = Smp::from_mad(&mad);
            if inbound(&mut smp, port) == Inbound::Here {
                let mut reply = Smp::from_mad(&mad);
                answer(&smp, &mut reply);
                prop_assert_eq!(reply.hop_pointer(), reply.hop_count());
            }
        }
    }
}
