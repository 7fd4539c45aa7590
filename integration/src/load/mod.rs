//! Guests of ours under load: one end of a connection between two of them ([`End`]), data that goes to and fro
//! and is looked at ([`rally`]), and requests that are always outstanding until the other end is gone
//! ([`spar`]).

mod rally;
mod spar;
mod victim;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use paraverbs_verbs::{
    Access, AhAttr, CompChannel, Context, Cq, Mr, Mtu, Qp, QpCap, QpInit, RtrAttr, RtsAttr, Wc,
};

pub use rally::{RALLY_BYTES, Side, rally};
pub use spar::{Ending, SPAR_BYTES, SPAR_DEPTH, spar};
pub use victim::{Victim, serve_as_victim};

use crate::peer::Endpoint;

/// The port that everything goes through.
const PORT: u8 = 1;
/// How long a completion may take.
const COMPLETION: Duration = Duration::from_secs(20);

/// One end of an RC connection: a queue pair in INIT or later, and memory that the other end may read and
/// write.
#[derive(Debug)]
pub struct End {
    qp: Qp,
    cq: Cq,
    channel: CompChannel,
    mr: Mr,
    lid: u16,
}

/// How soon an end gives its other end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// After seconds.
    Long,
    /// After some milliseconds.
    Short,
}

impl End {
    /// An end with `bytes` bytes of memory and room for `depth` requests of each kind.
    ///
    /// # Errors
    /// A verb fails.
    pub fn new(context: &Context, bytes: usize, depth: u32) -> Result<Self> {
        let pd = context.alloc_pd().context("make a PD")?;
        let channel = context.create_comp_channel(0).context("make a channel")?;
        let cq = context.create_cq(2 * depth, Some(&channel)).context("make a CQ")?;
        let mr = pd.alloc_mr(bytes, Access::ALL).context("register memory")?;
        let cap = QpCap { max_send_wr: depth, max_recv_wr: depth, ..QpInit::new(&cq).cap };
        let qp = pd.create_qp(&QpInit { cap, ..QpInit::new(&cq) }).context("make a queue pair")?;
        qp.to_init(PORT, Access::ALL).context("change to INIT")?;
        let lid = context.query_port(PORT).context("query the port")?.lid;
        Ok(Self { qp, cq, channel, mr, lid })
    }

    /// How it is reached.
    pub fn endpoint(&self) -> Endpoint {
        let (address, rkey) = (self.mr.addr(), self.mr.rkey());
        let qpn = self.qp.qpn();
        Endpoint { lid: self.lid, qpn, psn: qpn & 0xfff, address, rkey, requester: qpn, srqn: 0 }
    }

    /// Connects it to another end.
    ///
    /// # Errors
    /// A transition is refused.
    pub fn connect(&self, to: &Endpoint, patience: Patience) -> Result<()> {
        let path = AhAttr::to_lid(to.lid, PORT);
        let rtr = RtrAttr::new(path, to.qpn, to.psn, Mtu::B4096);
        self.qp.to_rtr(RtrAttr { max_dest_rd_atomic: 4, ..rtr }).context("change to RTR")?;
        let rts = RtsAttr { max_rd_atomic: 4, ..RtsAttr::new(self.endpoint().psn) };
        let rts = match patience {
            Patience::Long => rts,
            Patience::Short => RtsAttr { timeout: 10, retry_cnt: 2, ..rts },
        };
        self.qp.to_rts(rts).context("change to RTS")
    }

    /// Waits for completions.
    fn completions<'a>(&self, wcs: &'a mut [Wc]) -> Result<&'a [Wc]> {
        loop {
            let mut count = self.cq.poll(wcs)?;
            if count == 0 {
                self.cq.req_notify(false)?;
                count = self.cq.poll(wcs)?;
            }
            if count != 0 {
                return Ok(wcs.get(..count).unwrap_or_default());
            }
            if self.channel.wait(COMPLETION)?.is_none() {
                bail!("no completion within {COMPLETION:?}");
            }
        }
    }
}
