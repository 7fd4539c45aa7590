//! MTU, rate and packet lifetime: what a port has of them, and what a query's selector accepts.

use mlx4_wire::mad::portinfo::{Mtu, PortInfo, link_speed, link_speed_ext, link_width};
use mlx4_wire::mad::sa::path::{Rate, Selected, Selector};

/// Rate codes from slow to fast.
const RATES: [Rate; 17] = [
    Rate::G2_5,
    Rate::G5,
    Rate::G10,
    Rate::G14,
    Rate::G20,
    Rate::G25,
    Rate::G30,
    Rate::G40,
    Rate::G56,
    Rate::G60,
    Rate::G80,
    Rate::G100,
    Rate::G112,
    Rate::G120,
    Rate::G168,
    Rate::G200,
    Rate::G300,
];

/// The rate of a port's link, from its active width and speed. A port without a link, as the switch's port
/// 0, is as fast as any.
pub(super) fn rate_of(info: &PortInfo) -> Rate {
    if info.link_width_active == 0 {
        return Rate::G300;
    }
    let extended =
        info.capability_mask.extended_speeds().then(|| info.extended_speed.link_speed_ext_active());
    let rates = match (extended, info.link.link_speed_active()) {
        (Some(link_speed_ext::EDR), _) => [Rate::G25, Rate::G100, Rate::G200, Rate::G300],
        (Some(link_speed_ext::FDR), _) => [Rate::G14, Rate::G56, Rate::G112, Rate::G168],
        (_, link_speed::QDR) => [Rate::G10, Rate::G40, Rate::G80, Rate::G120],
        (_, link_speed::DDR) => [Rate::G5, Rate::G20, Rate::G40, Rate::G60],
        _ => [Rate::G2_5, Rate::G10, Rate::G20, Rate::G30],
    };
    rates[match info.link_width_active {
        link_width::X4 => 1,
        link_width::X8 => 2,
        link_width::X12 => 3,
        _ => 0,
    }]
}

/// The slower of two rates.
pub(super) fn slower(a: Rate, b: Rate) -> Rate {
    if rank(a) <= rank(b) { a } else { b }
}

/// The MTU that a port may send.
pub(super) fn mtu_of(info: &PortInfo) -> Mtu {
    let (neighbor, cap) = (info.lanes.neighbor_mtu(), info.limits.mtu_cap());
    if neighbor.bytes().is_some() { neighbor.min(cap) } else { cap }
}

/// What a path that can do up to `best` offers to a query; `None` if it can't satisfy it.
pub(super) fn select_mtu(wanted: Option<Selected>, best: Mtu) -> Option<Mtu> {
    let chosen = select(wanted, best.0, Mtu::B256.0..=Mtu::B4096.0)?;
    Some(Mtu(chosen))
}

/// Likewise for rates.
pub(super) fn select_rate(wanted: Option<Selected>, best: Rate) -> Option<Rate> {
    let wanted = match wanted {
        Some(wanted) if wanted.selector() != Selector::BEST => {
            let rank = u8::try_from(rank(Rate(wanted.value()))?).ok()?;
            Some(wanted.with_value(rank))
        }
        other => other,
    };
    let ranks = u8::try_from(RATES.len()).ok()?;
    let chosen = select(wanted, u8::try_from(rank(best)?).ok()?, 0..=ranks - 1)?;
    RATES.get(usize::from(chosen)).copied()
}

/// Whether a fixed value satisfies a query.
pub(super) fn accepts(wanted: Option<Selected>, fixed: u8) -> bool {
    wanted.is_none_or(|wanted| match wanted.selector() {
        Selector::GREATER_THAN => fixed > wanted.value(),
        Selector::LESS_THAN => fixed < wanted.value(),
        Selector::EXACTLY => fixed == wanted.value(),
        _ => true,
    })
}

/// Whether a fixed rate satisfies a query.
pub(super) fn accepts_rate(wanted: Option<Selected>, fixed: Rate) -> bool {
    let rank_of = |rate| rank(rate).and_then(|rank| u8::try_from(rank).ok());
    match wanted {
        Some(wanted) if wanted.selector() != Selector::BEST => {
            let ranks = rank_of(Rate(wanted.value())).zip(rank_of(fixed));
            ranks.is_some_and(|(value, fixed)| accepts(Some(wanted.with_value(value)), fixed))
        }
        _ => true,
    }
}

/// A value as answers give it.
pub(super) fn exactly(value: u8) -> Selected {
    Selected::new().with_selector(Selector::EXACTLY).with_value(value & 0x3f)
}

fn rank(rate: Rate) -> Option<usize> {
    RATES.iter().position(|known| *known == rate)
}

fn select(wanted: Option<Selected>, best: u8, range: std::ops::RangeInclusive<u8>) -> Option<u8> {
    let Some(wanted) = wanted else { return Some(best) };
    let value = wanted.value();
    let chosen = match wanted.selector() {
        Selector::GREATER_THAN => (best > value).then_some(best)?,
        Selector::LESS_THAN => best.min(value.checked_sub(1)?),
        Selector::EXACTLY => (value <= best).then_some(value)?,
        _ => best,
    };
    range.contains(&chosen).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn wanted(selector: Selector, value: u8) -> Option<Selected> {
        Some(Selected::new().with_selector(selector).with_value(value))
    }

    #[test]
    fn rate_comes_from_width_and_speed() {
        let mut info = PortInfo::new_zeroed();
        info.link_width_active = link_width::X4;
        info.link.set_link_speed_active(link_speed::QDR);
        assert_eq!(rate_of(&info), Rate::G40);
        info.extended_speed.set_link_speed_ext_active(link_speed_ext::FDR);
        assert_eq!(rate_of(&info), Rate::G40);
        info.capability_mask.set_extended_speeds(true);
        assert_eq!(rate_of(&info), Rate::G56);
    }

    #[test]
    fn rates_compare_by_speed_and_not_by_code() {
        assert_eq!(slower(Rate::G5, Rate::G10), Rate::G5);
        assert_eq!(select_rate(wanted(Selector::LESS_THAN, Rate::G10.0), Rate::G56), Some(Rate::G5));
        assert_eq!(select_rate(wanted(Selector::GREATER_THAN, Rate::G40.0), Rate::G56), Some(Rate::G56));
        assert_eq!(select_rate(wanted(Selector::GREATER_THAN, Rate::G56.0), Rate::G56), None);
        assert_eq!(select_rate(wanted(Selector::EXACTLY, 63), Rate::G56), None);
        assert!(accepts_rate(wanted(Selector::GREATER_THAN, Rate::G5.0), Rate::G10));
        assert!(!accepts_rate(wanted(Selector::EXACTLY, Rate::G40.0), Rate::G10));
    }

    #[test]
    fn smaller_mtu_than_the_path_can_do_is_offered() {
        assert_eq!(select_mtu(None, Mtu::B4096), Some(Mtu::B4096));
        assert_eq!(select_mtu(wanted(Selector::EXACTLY, 4), Mtu::B4096), Some(Mtu::B2048));
        assert_eq!(select_mtu(wanted(Selector::EXACTLY, 5), Mtu::B2048), None);
        assert_eq!(select_mtu(wanted(Selector::EXACTLY, 0), Mtu::B2048), None);
        assert_eq!(select_mtu(wanted(Selector::LESS_THAN, 0), Mtu::B2048), None);
        assert_eq!(select_mtu(wanted(Selector::LESS_THAN, 9), Mtu::B2048), Some(Mtu::B2048));
        assert_eq!(select_mtu(wanted(Selector::BEST, 63), Mtu::B2048), Some(Mtu::B2048));
    }

    #[test]
    fn neighbor_mtu_counts_once_it_is_set() {
        let mut info = PortInfo::new_zeroed();
        info.limits.set_mtu_cap(Mtu::B4096);
        assert_eq!(mtu_of(&info), Mtu::B4096);
        info.lanes.set_neighbor_mtu(Mtu::B2048);
        assert_eq!(mtu_of(&info), Mtu::B2048);
    }
}
