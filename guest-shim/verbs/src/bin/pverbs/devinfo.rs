//! `pverbs devinfo`: devices and ports, in the form of `ibv_devinfo`, so that scripts can read either.

use std::io::Write;
use std::path::{Path, PathBuf};

use paraverbs_verbs::{AtomicCap, Context, DeviceAttr, Gid, PortAttr};

use crate::{Failure, open, socket};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Socket of the daemon, a device each (default: the environment's PARAVERBS_SOCKET)
    #[arg(long = "socket", value_name = "PATH")]
    sockets: Vec<PathBuf>,
    /// Show this port only
    #[arg(short = 'i', long, value_name = "PORT")]
    ib_port: Option<u8>,
    /// Show all that there is
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn run(args: Args, output: &mut dyn Write) -> Result<(), Failure> {
    let sockets = if args.sockets.is_empty() { vec![socket(None)?] } else { args.sockets };
    for (number, path) in sockets.iter().enumerate() {
        let device = open(path)?;
        let ports = device.query_device()?.phys_port_cnt;
        if let Some(port) = args.ib_port.filter(|port| !(1..=ports).contains(port)) {
            return Err(Failure::Error(format!("{} has no port {port}, but 1 to {ports}", path.display())));
        }
        let listing = &mut Listing { output: &mut *output, depth: 1 };
        show_device(listing, number, path, &device.query_device()?, args.verbose)?;
        for port in (1..=ports).filter(|port| args.ib_port.is_none_or(|wanted| wanted == *port)) {
            show_port(listing, &device, port, args.verbose)?;
        }
        writeln!(output)?;
    }
    Ok(())
}

/// Lines of a key and a value, in columns made by tabs.
struct Listing<'a> {
    output: &'a mut dyn Write,
    /// Tabs before the key.
    depth: usize,
}

impl Listing<'_> {
    /// Columns of a tab.
    const TAB: usize = 8;

    fn line(&mut self, key: &str, value: impl std::fmt::Display) -> Result<(), Failure> {
        let column = if self.depth == 1 { 40 } else { 48 };
        let end = Self::TAB * self.depth + key.len() + 1;
        let tabs = column.max(end + 1).div_ceil(Self::TAB) - end / Self::TAB;
        writeln!(self.output, "{}{key}:{}{value}", "\t".repeat(self.depth), "\t".repeat(tabs))?;
        Ok(())
    }
}

fn guid(bytes: [u8; 8]) -> String {
    groups(&bytes)
}

/// Bytes as groups of four hexadecimal digits.
fn groups(bytes: &[u8]) -> String {
    let pairs = bytes.chunks(2).map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect());
    pairs.collect::<Vec<String>>().join(":")
}

fn show_device(
    to: &mut Listing<'_>,
    number: usize,
    path: &Path,
    device: &DeviceAttr,
    verbose: bool,
) -> Result<(), Failure> {
    writeln!(to.output, "hca_id:\tparaverbs{number}")?;
    to.depth = 1;
    to.line("socket", path.display())?;
    to.line("transport", "InfiniBand (0)")?;
    to.line("fw_ver", &device.fw_ver)?;
    to.line("node_guid", guid(device.node_guid))?;
    to.line("sys_image_guid", guid(device.sys_image_guid))?;
    to.line("vendor_id", format_args!("{:#06x}", device.vendor_id))?;
    to.line("vendor_part_id", device.vendor_part_id)?;
    to.line("hw_ver", format_args!("{:#X}", device.hw_ver))?;
    to.line("board_id", &device.board_id)?;
    to.line("phys_port_cnt", device.phys_port_cnt)?;
    if verbose { show_limits(to, device) } else { Ok(()) }
}

fn show_limits(to: &mut Listing<'_>, device: &DeviceAttr) -> Result<(), Failure> {
    to.line("max_mr_size", format_args!("{:#x}", device.max_mr_size))?;
    to.line("page_size_cap", format_args!("{:#x}", device.page_size_cap))?;
    for (key, value) in [("max_qp", device.max_qp), ("max_qp_wr", device.max_qp_wr)] {
        to.line(key, value)?;
    }
    to.line("device_cap_flags", format_args!("{:#010x}", device.device_cap_flags))?;
    for (key, value) in [
        ("max_sge", device.max_sge),
        ("max_sge_rd", device.max_sge_rd),
        ("max_cq", device.max_cq),
        ("max_cqe", device.max_cqe),
        ("max_mr", device.max_mr),
        ("max_pd", device.max_pd),
        ("max_qp_rd_atom", device.max_qp_rd_atom),
        ("max_res_rd_atom", device.max_res_rd_atom),
        ("max_qp_init_rd_atom", device.max_qp_init_rd_atom),
    ] {
        to.line(key, value)?;
    }
    let atomics = match device.atomic_cap {
        AtomicCap::None => "ATOMIC_NONE",
        AtomicCap::Hca => "ATOMIC_HCA",
        AtomicCap::Glob => "ATOMIC_GLOB",
    };
    to.line("atomic_cap", format_args!("{atomics} ({})", device.atomic_cap.number()))?;
    for (key, value) in [
        ("max_mw", device.max_mw),
        ("max_mcast_grp", device.max_mcast_grp),
        ("max_mcast_qp_attach", device.max_mcast_qp_attach),
        ("max_total_mcast_qp_attach", device.max_total_mcast_qp_attach),
        ("max_ah", device.max_ah),
        ("max_srq", device.max_srq),
        ("max_srq_wr", device.max_srq_wr),
        ("max_srq_sge", device.max_srq_sge),
        ("max_pkeys", device.max_pkeys.into()),
        ("max_inline_data", device.max_inline_data),
        ("local_ca_ack_delay", device.local_ca_ack_delay.into()),
    ] {
        to.line(key, value)?;
    }
    Ok(())
}

fn show_port(to: &mut Listing<'_>, device: &Context, number: u8, verbose: bool) -> Result<(), Failure> {
    let port = device.query_port(number)?;
    writeln!(to.output, "\t\tport:\t{number}")?;
    to.depth = 3;
    to.line("state", format_args!("{} ({})", port.state, port.state.number()))?;
    to.line("max_mtu", format_args!("{} ({})", port.max_mtu.bytes(), port.max_mtu.number()))?;
    to.line("active_mtu", format_args!("{} ({})", port.active_mtu.bytes(), port.active_mtu.number()))?;
    to.line("sm_lid", port.sm_lid)?;
    to.line("port_lid", port.lid)?;
    to.line("port_lmc", format_args!("{:#04x}", port.lmc))?;
    to.line("link_layer", port.link_layer)?;
    if verbose {
        show_port_limits(to, &port)?;
    }
    to.line("active_width", format_args!("{} ({})", width(port.active_width), port.active_width))?;
    to.line("active_speed", format_args!("{} ({})", speed(port.active_speed), port.active_speed))?;
    to.line("phys_state", format_args!("{} ({})", physical_state(port.phys_state), port.phys_state))?;
    let gids = if verbose { port.gid_tbl_len } else { port.gid_tbl_len.min(1) };
    for index in 0..gids {
        let gid = device.query_gid(number, index)?;
        if gid != Gid::default() {
            to.line(&format!("GID[{index:3}]"), groups(&gid.0))?;
        }
    }
    Ok(())
}

fn show_port_limits(to: &mut Listing<'_>, port: &PortAttr) -> Result<(), Failure> {
    to.line("max_msg_sz", format_args!("{:#x}", port.max_msg_sz))?;
    to.line("port_cap_flags", format_args!("{:#010x}", port.port_cap_flags))?;
    to.line("port_cap_flags2", format_args!("{:#06x}", port.port_cap_flags2))?;
    to.line("max_vl_num", format_args!("{} ({})", lanes(port.max_vl_num), port.max_vl_num))?;
    to.line("bad_pkey_cntr", format_args!("{:#x}", port.bad_pkey_cntr))?;
    to.line("qkey_viol_cntr", format_args!("{:#x}", port.qkey_viol_cntr))?;
    to.line("sm_sl", port.sm_sl)?;
    to.line("pkey_tbl_len", port.pkey_tbl_len)?;
    to.line("gid_tbl_len", port.gid_tbl_len)?;
    to.line("subnet_timeout", port.subnet_timeout)?;
    to.line("init_type_reply", port.init_type_reply)
}

/// The width of a link (IBTA 14.2.5.6).
fn width(code: u8) -> &'static str {
    match code {
        1 => "1X",
        2 => "4X",
        4 => "8X",
        8 => "12X",
        _ => "unknown width",
    }
}

/// The speed of a lane.
fn speed(code: u8) -> &'static str {
    match code {
        1 => "2.5 Gbps",
        2 => "5.0 Gbps",
        4 | 8 => "10.0 Gbps",
        16 => "14.0 Gbps",
        _ => "unknown speed",
    }
}

/// Number of virtual lanes (IBTA 14.2.5.6, VLCap).
fn lanes(code: u8) -> &'static str {
    match code {
        1 => "1",
        2 => "2",
        3 => "4",
        4 => "8",
        5 => "15",
        _ => "unknown number",
    }
}

/// Physical state (IBTA 14.2.5.6, PortPhysicalState).
fn physical_state(code: u8) -> &'static str {
    match code {
        1 => "SLEEP",
        2 => "POLLING",
        3 => "DISABLED",
        4 => "PORT_CONFIGURATION_TRAINING",
        5 => "LINK_UP",
        6 => "LINK_ERROR_RECOVERY",
        7 => "PHY_TEST",
        _ => "unknown state",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_in_the_columns_of_ibv_devinfo() {
        let mut output = Vec::new();
        let mut listing = Listing { output: &mut output, depth: 1 };
        listing.line("fw_ver", "2.42").unwrap();
        listing.line("transport", "InfiniBand (0)").unwrap();
        listing.line("max_total_mcast_qp_attach_and_more", 1).unwrap();
        listing.depth = 3;
        listing.line("state", "PORT_ACTIVE (4)").unwrap();
        listing.line("max_mtu", 1).unwrap();
        listing.line("link_layer", "InfiniBand").unwrap();
        let text = String::from_utf8(output).unwrap();
        let lines = [
            "\tfw_ver:\t\t\t\t2.42",
            "\ttransport:\t\t\tInfiniBand (0)",
            "\tmax_total_mcast_qp_attach_and_more:\t1",
            "\t\t\tstate:\t\t\tPORT_ACTIVE (4)",
            "\t\t\tmax_mtu:\t\t1",
            "\t\t\tlink_layer:\t\tInfiniBand",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn guids_are_groups_of_four_digits() {
        assert_eq!(guid([0, 2, 0xc9, 3, 0, 0xb0, 0, 1]), "0002:c903:00b0:0001");
    }
}
