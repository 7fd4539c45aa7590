//! What an operator needs before the daemon can have a card, and how to mend what is missing.

use anyhow::{Context as _, Result};
use rustix::process::{Resource, getrlimit};

use super::bind::Bus as _;
use super::sysfs::{FAMILY, Sysfs};

/// The kind of an IOMMU group that stands for no IOMMU.
const NO_IOMMU: &str = "vfio-noiommu";
/// Drivers of other devices in a group that leave it to VFIO.
const HARMLESS: [&str; 4] = ["vfio-pci", "pci-stub", "pcieport", "shpchp"];
/// Bytes that the driver locks for itself, at most.
const DRIVER_BYTES: u64 = 256 << 20;
/// The capability with which a process may lock any amount.
const CAP_IPC_LOCK: u32 = 14;

/// What was found of one matter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// As it must be.
    Good(String),
    /// The daemon works without, but less well: what is so, and what to do.
    Advice(String, String),
    /// It doesn't work so: what is so, and what to do.
    Bad(String, String),
    /// It can't be looked at before the rest is mended.
    LeftOut(String),
}

/// All findings.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<(&'static str, Finding)>);

impl Report {
    pub(crate) fn note(&mut self, name: &'static str, finding: Finding) {
        self.0.push((name, finding));
    }

    /// Whether all that is needed is there.
    pub(crate) fn is_good(&self) -> bool {
        self.0.iter().all(|(_, finding)| matches!(finding, Finding::Good(_) | Finding::Advice(..)))
    }

    /// A line for each finding, and one below for what to do.
    pub(crate) fn text(&self) -> String {
        let lines = self.0.iter().map(|(name, finding)| match finding {
            Finding::Good(seen) => format!("ok      {name:<9} {seen}"),
            Finding::Advice(seen, advice) => format!("advice  {name:<9} {seen}\n{:18}{advice}", ""),
            Finding::Bad(seen, mend) => format!("FAILED  {name:<9} {seen}\n{:18}{mend}", ""),
            Finding::LeftOut(why) => format!("-       {name:<9} {why}"),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// What the process that is asked for may do, and must be able to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Bytes that the guests may register, if they are known.
    pub(crate) registered_bytes: Option<u64>,
    /// Bytes that a process may lock; `None` is any number.
    pub(crate) memlock: Option<u64>,
}

impl Needs {
    /// With the limits of this process, which the daemon is taken to have too.
    pub(crate) fn of_this_process(registered_bytes: Option<u64>) -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").context("read this process's status")?;
        let memlock = if may_lock_all(&status) { None } else { getrlimit(Resource::Memlock).current };
        Ok(Self { registered_bytes, memlock })
    }
}

/// Whether a process of this status needs no limit.
fn may_lock_all(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << CAP_IPC_LOCK != 0)
}

/// What is looked at only where there is a card.
const OF_CARD: [(&str, Look); 4] = [("iommu", iommu), ("driver", driver), ("group", group), ("files", files)];

/// Looks at one matter of a card.
type Look = fn(&Sysfs) -> Finding;

/// Looks at everything that shows without opening the card. Says whether the card can be opened.
pub(crate) fn check_host(card: &Sysfs, needs: &Needs, report: &mut Report) -> bool {
    let is_card = card.is_card();
    report.note("card", identity(card));
    let mut usable = is_card;
    for (name, look) in OF_CARD {
        let found = if is_card { look(card) } else { Finding::LeftOut("there is no card".into()) };
        usable &= matches!(found, Finding::Good(_));
        report.note(name, found);
    }
    report.note("memlock", memlock(needs));
    report.note("hugepages", hugepages(card));
    usable
}

fn identity(card: &Sysfs) -> Finding {
    let address = card.address;
    let list = "`lspci -D -d 15b3:` lists the cards of this host".to_owned();
    match card.identity() {
        None => Finding::Bad(format!("no PCI device {address}"), list),
        Some((vendor, device)) if card.is_card() => {
            Finding::Good(format!("{address} is {vendor:04x}:{device:04x}"))
        }
        Some((vendor, device)) => {
            Finding::Bad(format!("{address} is {vendor:04x}:{device:04x}, no {FAMILY}"), list)
        }
    }
}

fn iommu(card: &Sysfs) -> Finding {
    let mend = "enable VT-d or AMD-Vi in the firmware setup, and on Intel boot with intel_iommu=on";
    match card.group() {
        Some(_) if card.group_name().as_deref() == Some(NO_IOMMU) => {
            Finding::Bad("the card's group has no IOMMU behind it".into(), mend.into())
        }
        Some(group) => Finding::Good(format!("on, the card is in group {group}")),
        None => Finding::Bad("the card is in no IOMMU group".into(), mend.into()),
    }
}

fn driver(card: &Sysfs) -> Finding {
    let driver = card.driver();
    if driver.as_deref() == Some("vfio-pci") {
        return Finding::Good("bound to vfio-pci".into());
    }
    let load = if card.has_driver("vfio-pci") { "" } else { "modprobe vfio-pci; " };
    let mut seen = format!("bound to {}, not to vfio-pci", driver.as_deref().unwrap_or("no driver"));
    for user in card.users() {
        seen += &format!("; {user}");
    }
    Finding::Bad(seen, format!("run as root: {load}paraverbs bind {}", card.address))
}

fn group(card: &Sysfs) -> Finding {
    let others: Vec<_> = card
        .companions()
        .into_iter()
        .filter(|(_, driver)| !HARMLESS.contains(&driver.as_str()))
        .map(|(device, driver)| format!("{device} (bound to {driver})"))
        .collect();
    if card.group().is_none() {
        return Finding::LeftOut("there is no IOMMU group".into());
    }
    if others.is_empty() {
        return Finding::Good("viable: no other device of it has a driver of the host".into());
    }
    Finding::Bad(
        format!("not viable, since it also has {}", others.join(", ")),
        "bind all of it to vfio-pci, or move the card to a slot with a group of its own".into(),
    )
}

fn files(card: &Sysfs) -> Finding {
    let Some(group) = card.group() else { return Finding::LeftOut("there is no IOMMU group".into()) };
    for file in ["vfio".to_owned(), group.to_string()] {
        let name = format!("/dev/vfio/{file}");
        let path = card.path(&format!("dev/vfio/{file}"));
        if !path.exists() {
            let mend = "run as root: modprobe vfio-pci, and bind the card (see driver)";
            return Finding::Bad(format!("{name} does not exist"), mend.into());
        }
        let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
        if rustix::fs::access(&path, access).is_err() {
            let mend = format!("run as root, or give it to the user: chown USER {name}");
            return Finding::Bad(format!("no permission to open {name}"), mend);
        }
    }
    let users: Vec<_> = card.users().iter().map(ToString::to_string).collect();
    if !users.is_empty() {
        return Finding::Bad(format!("in use: {}", users.join("; ")), "end that to have the card".into());
    }
    Finding::Good(format!("/dev/vfio/vfio and /dev/vfio/{group} can be opened, and nobody uses the card"))
}

fn memlock(needs: &Needs) -> Finding {
    let wanted = needs.registered_bytes.unwrap_or(0).saturating_add(DRIVER_BYTES);
    let what = match needs.registered_bytes {
        Some(bytes) => format!("the configured guests may register {} MiB", bytes >> 20),
        None => "guests unknown without --config".to_owned(),
    };
    match needs.memlock {
        None => Finding::Good(format!("this user may lock any amount of memory; {what}")),
        Some(limit) if limit >= wanted => Finding::Good(format!("{} MiB; {what}", limit >> 20)),
        Some(limit) => Finding::Bad(
            format!(
                "this user may lock {} MiB; {what}, and the driver needs {}",
                limit >> 20,
                DRIVER_BYTES >> 20
            ),
            "set LimitMEMLOCK=infinity for the service, or `ulimit -l unlimited`; or lower registered_bytes"
                .into(),
        ),
    }
}

fn hugepages(card: &Sysfs) -> Finding {
    let shared = card.text("sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let chosen = shared.split(['[', ']']).nth(1).unwrap_or("never");
    let pool = card.text("proc/meminfo").unwrap_or_default();
    let pool =
        pool.lines().find_map(|line| line.strip_prefix("HugePages_Total:")?.trim().parse::<u64>().ok());
    match (pool.unwrap_or(0), chosen) {
        (0, "never" | "deny") => Finding::Advice(
            "none, for shared memory".into(),
            "mapping large guests takes longer; echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, \
             or set vm.nr_hugepages"
                .into(),
        ),
        (pages, chosen) => Finding::Good(format!("{pages} in the pool, transparent ones for shared memory: {chosen}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::{CARD, Stage};
    use super::*;

    const ROOT: Needs = Needs { registered_bytes: None, memlock: None };

    /// Findings by name, each with its first word.
    fn report(stage: &Stage, needs: &Needs) -> (bool, String) {
        let mut report = Report::default();
        let usable = check_host(&stage.sysfs(), needs, &mut report);
        (usable, report.text())
    }

    fn ready() -> Stage {
        let stage = Stage::card("vfio-pci").file("dev/vfio/vfio", "").file("dev/vfio/12", "");
        stage.file("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size [advise] never")
    }

    #[test]
    fn card_that_is_ready_has_nothing_to_mend() {
        let (usable, text) = report(&ready(), &ROOT);
        assert!(usable && text.lines().all(|line| line.starts_with("ok ")), "{text}");
    }

    #[test]
    fn card_of_the_kernel_s_driver_is_to_be_bound() {
        let (usable, text) = report(&Stage::card("mlx4_core"), &ROOT);
        assert!(!usable);
        assert!(text.contains("FAILED  driver    bound to mlx4_core, not to vfio-pci"), "{text}");
        assert!(text.contains(&format!("run as root: modprobe vfio-pci; paraverbs bind {CARD}")), "{text}");
        assert!(text.contains("FAILED  files     /dev/vfio/vfio does not exist"), "{text}");
        assert!(text.contains("advice  hugepages none"), "{text}");
    }

    #[test]
    fn host_without_iommu_is_told_how_to_turn_it_on() {
        let on = "enable VT-d or AMD-Vi in the firmware setup, and on Intel boot with intel_iommu=on";
        let (usable, text) = report(&Stage::without_iommu("mlx4_core"), &ROOT);
        assert!(!usable && text.contains("FAILED  iommu     the card is in no IOMMU group"), "{text}");
        assert!(text.contains(on) && text.contains("-       group     there is no IOMMU group"), "{text}");
        // VFIO's own stand-in for a group, which lets a card reach all memory.
        let stage = ready().file("sys/kernel/iommu_groups/12/name", "vfio-noiommu\n");
        let (usable, text) = report(&stage, &ROOT);
        assert!(
            !usable && text.contains("FAILED  iommu     the card's group has no IOMMU behind it"),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_card_is_told_how_to_list_cards() {
        let stage = ready().file(&format!("sys/bus/pci/devices/{CARD}/device"), "0x1015\n");
        let (usable, text) = report(&stage, &ROOT);
        assert!(!usable && text.contains("is 15b3:1015, no ConnectX, ConnectX-2 or ConnectX-3"), "{text}");
        assert!(text.contains("-       driver    there is no card"), "it isn't to be bound: {text}");
        let (_, text) = report(&Stage::empty(), &ROOT);
        assert!(
            text.contains("FAILED  card      no PCI device") && text.contains("lspci -D -d 15b3:"),
            "{text}"
        );
    }

    #[test]
    fn pages_for_guests_are_advised_where_there_are_none() {
        let shmem = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
        let stage = |chosen: &str, pool: &str| {
            let meminfo = format!("MemTotal: 1 kB\nHugePages_Total:    {pool}\n");
            Stage::card("vfio-pci").file(shmem, chosen).file("proc/meminfo", &meminfo)
        };
        let found = |chosen, pool| hugepages(&stage(chosen, pool).sysfs());
        assert!(
            matches!(found("always [never]", "0"), Finding::Advice(_, mend) if mend.contains("vm.nr_hugepages"))
        );
        assert_eq!(
            found("always [never]", "64"),
            Finding::Good("64 in the pool, transparent ones for shared memory: never".into())
        );
        assert!(matches!(found("[always] never", "0"), Finding::Good(_)));
    }

    #[test]
    fn group_with_a_device_in_use_is_not_viable() {
        let other = "0000:01:00.1";
        let stage = ready().file(&format!("sys/kernel/iommu_groups/12/devices/{other}/x"), "");
        let (usable, text) = report(&stage.bound(other, "e1000e"), &ROOT);
        assert!(
            !usable && text.contains("not viable, since it also has 0000:01:00.1 (bound to e1000e)"),
            "{text}"
        );
        let stage = ready().file(&format!("sys/kernel/iommu_groups/12/devices/{other}/x"), "");
        assert!(report(&stage.bound(other, "pcieport"), &ROOT).0);
    }

    #[test]
    fn card_in_use_names_who_has_it() {
        let stage = ready().file("proc/14/comm", "paraverbsd\n").link("proc/14/fd/7", "/dev/vfio/12");
        let (usable, text) = report(&stage, &ROOT);
        assert!(!usable && text.contains("in use: paraverbsd (process 14) has /dev/vfio/12 open"), "{text}");
    }

    #[test]
    fn memlock_is_held_against_what_guests_may_register() {
        let needs = |memlock| Needs { registered_bytes: Some(1 << 30), memlock };
        assert!(matches!(memlock(&needs(None)), Finding::Good(_)));
        assert!(matches!(memlock(&needs(Some(DRIVER_BYTES + (1 << 30)))), Finding::Good(_)));
        let Finding::Bad(seen, mend) = memlock(&needs(Some(8 << 20))) else { panic!("8 MiB suffice") };
        assert!(seen.contains("lock 8 MiB; the configured guests may register 1024 MiB"), "{seen}");
        assert!(mend.contains("LimitMEMLOCK=infinity"), "{mend}");
        assert!(may_lock_all("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock_all("CapEff:\t0000000000000000\n") && !may_lock_all(""));
    }

    #[test]
    fn findings_that_could_not_be_made_are_no_success() {
        let mut report = Report::default();
        report.note("card", Finding::Good("there".into()));
        report.note("hugepages", Finding::Advice("none".into(), "have some".into()));
        assert!(report.is_good());
        report.note("firmware", Finding::LeftOut("see above".into()));
        assert!(!report.is_good());
    }
}
