//! Where packets go: the address of a queue pair's path, and of a datagram.

use mlx4_wire::ctx::path::{
    AddressPath, PathSource, PathTimeout, STATIC_RATE_BASE, SchedQueue, TrafficClass,
};
use mlx4_wire::mad::LID_MULTICAST_FIRST;
use mlx4_wire::wqe::{Av, AvPort};
use mlx4_wire::{Number24, U16};
use zerocopy::FromZeros;

use crate::error::{Error, Result};
use crate::object::Pd;

/// Counter index that counts nothing.
pub(crate) const NO_COUNTER: u8 = 0xff;

/// The global part of an address, for packets with a GRH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalRoute {
    /// Destination GID.
    pub dgid: [u8; 16],
    /// Index of the source GID in the port's table.
    pub sgid_index: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
}

/// An address in the subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Port that packets leave through, from 1.
    pub port: u8,
    /// Destination LID.
    pub dlid: u16,
    /// Service level, 0 to 15.
    pub sl: u8,
    /// Low bits of the source LID.
    pub path_bits: u8,
    /// Greatest rate, a verbs rate code; 0 is the port's.
    pub static_rate: u8,
    /// The GRH, if packets have one.
    pub grh: Option<GlobalRoute>,
}

impl Path {
    /// A path within the subnet, without a GRH.
    pub const fn local(port: u8, dlid: u16, sl: u8) -> Self {
        Self { port, dlid, sl, path_bits: 0, static_rate: 0, grh: None }
    }

    pub(crate) fn check(&self, ports: u8) -> Result<()> {
        let multicast = self.dlid >= LID_MULTICAST_FIRST;
        let wrong = [
            (self.port == 0 || self.port > ports, "port", u64::from(self.port)),
            (self.dlid == 0, "destination LID", self.dlid.into()),
            (multicast && self.grh.is_none(), "destination LID without a GRH", self.dlid.into()),
            (self.sl > 15, "service level", self.sl.into()),
            (self.path_bits > 0x7f, "source path bits", self.path_bits.into()),
            (self.static_rate > 0xf - STATIC_RATE_BASE, "static rate", self.static_rate.into()),
        ];
        let grh = self.grh.map(|grh| {
            [
                (grh.sgid_index > 0x7f, "source GID index", u64::from(grh.sgid_index)),
                (grh.flow_label > 0xf_ffff, "flow label", grh.flow_label.into()),
            ]
        });
        match wrong.into_iter().chain(grh.into_iter().flatten()).find(|(wrong, ..)| *wrong) {
            Some((_, what, value)) => Err(Error::argument(what, value)),
            None => Ok(()),
        }
    }

    fn rate(&self) -> u8 {
        if self.static_rate == 0 { 0 } else { self.static_rate + STATIC_RATE_BASE }
    }

    fn source(&self) -> PathSource {
        PathSource::new().with_grh(self.grh.is_some()).with_path_bits(self.path_bits)
    }

    /// The address vector of datagrams that go here, from queue pairs of a domain.
    ///
    /// # Errors
    /// A field is out of range; `ports` is how many the device has.
    pub(crate) fn vector(&self, pd: &Pd, ports: u8) -> Result<Av> {
        self.check(ports)?;
        let mut av = Av::new_zeroed();
        av.port = AvPort::new().with_port(self.port).with_pd(pd.number() & Number24::MAX);
        av.source = self.source();
        av.remote_lid = U16::new(self.dlid);
        av.static_rate = self.rate();
        av.traffic_class = TrafficClass::new().with_sl(self.sl);
        if let Some(grh) = self.grh {
            av.sgid_index = grh.sgid_index;
            av.hop_limit = grh.hop_limit;
            av.traffic_class.set_traffic_class(grh.traffic_class);
            av.traffic_class.set_flow_label(grh.flow_label);
            av.remote_gid = grh.dgid;
        }
        Ok(av)
    }

    /// The path of a queue pair, less P_Key index and timeout.
    ///
    /// # Errors
    /// As for [`Path::vector`]; a queue pair's path leads to one port, so a multicast LID isn't one.
    pub(crate) fn address(&self, ports: u8) -> Result<AddressPath> {
        self.check(ports)?;
        if self.dlid >= LID_MULTICAST_FIRST {
            return Err(Error::argument("destination LID", self.dlid));
        }
        let mut path = AddressPath::new_zeroed();
        path.counter_index = NO_COUNTER;
        path.source = self.source();
        path.remote_lid = U16::new(self.dlid);
        path.static_rate = self.rate();
        path.sched_queue = sched_queue(self.port, self.sl);
        if let Some(grh) = self.grh {
            path.sgid_index = grh.sgid_index;
            path.hop_limit = grh.hop_limit;
            path.traffic_class =
                TrafficClass::new().with_traffic_class(grh.traffic_class).with_flow_label(grh.flow_label);
            path.remote_gid = grh.dgid;
        }
        Ok(path)
    }

    /// What a path's fields in a context say.
    pub(crate) fn read(path: &AddressPath) -> Self {
        Self {
            port: path.sched_queue.port(),
            dlid: path.remote_lid.get(),
            sl: path.sched_queue.sl(),
            path_bits: path.source.path_bits(),
            static_rate: path.static_rate.saturating_sub(STATIC_RATE_BASE),
            grh: path.source.grh().then(|| GlobalRoute {
                dgid: path.remote_gid,
                sgid_index: path.sgid_index & 0x7f,
                hop_limit: path.hop_limit,
                traffic_class: path.traffic_class.traffic_class(),
                flow_label: path.traffic_class.flow_label(),
            }),
        }
    }
}

/// The schedule queue of a port and a service level.
pub(crate) fn sched_queue(port: u8, sl: u8) -> SchedQueue {
    SchedQueue::BASE.with_port_index(port.saturating_sub(1) & 1).with_sl(sl & 0xf)
}

/// The local ACK timeout of a path.
pub(crate) fn path_timeout(timeout: u8) -> Result<PathTimeout> {
    PathTimeout::new()
        .with_ack_timeout_checked(timeout)
        .map_err(|()| Error::argument("local ACK timeout", timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_reads_back_as_it_was_written() {
        let grh = GlobalRoute {
            dgid: *b"0123456789abcdef",
            sgid_index: 3,
            hop_limit: 64,
            traffic_class: 7,
            flow_label: 0xa_bcde,
        };
        let path = Path { port: 2, dlid: 9, sl: 5, path_bits: 1, static_rate: 3, grh: Some(grh) };
        assert_eq!(Path::read(&path.address(2).unwrap()), path);
        let local = Path::local(1, 0xbfff, 0);
        assert_eq!(Path::read(&local.address(1).unwrap()), local);
    }

    #[test]
    fn path_out_of_range_is_refused_with_the_field() {
        let wrong = |path: Path| path.address(1).unwrap_err().to_string();
        let path = Path::local(1, 1, 0);
        assert_eq!(wrong(Path { port: 2, ..path }), "port of 0x2 is out of range");
        assert_eq!(wrong(Path { dlid: 0, ..path }), "destination LID of 0x0 is out of range");
        assert_eq!(wrong(Path { sl: 16, ..path }), "service level of 0x10 is out of range");
        assert_eq!(wrong(Path { static_rate: 11, ..path }), "static rate of 0xb is out of range");
        assert!(wrong(Path { dlid: 0xc000, ..path }).contains("without a GRH"));
        assert!(path_timeout(32).is_err());
    }
}
