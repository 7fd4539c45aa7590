//! `pverbs ping`: a message goes to and fro over a reliable connection. The options, the exchange of addresses
//! and the result are those of rdma-core's `ibv_rc_pingpong`, which may be the other end.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use paraverbs_verbs::{
    Access, AhAttr, CompChannel, Context, Cq, Gid, Grh, Mr, Mtu, Pd, PortAttr, Qp, QpCap, QpInit, RecvWr,
    RtrAttr, RtsAttr, SendData, SendFlags, SendOp, SendWr, Wc, WcStatus,
};

use crate::exchange::{Address, Server, with_server};
use crate::{Failure, open, socket};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Host of the server; without it, this is the server and waits for a client
    host: Option<String>,
    /// Socket of the daemon (default: the environment's PARAVERBS_SOCKET)
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// TCP port for the exchange of addresses
    #[arg(short, long, default_value_t = 18515)]
    port: u16,
    /// Port of the device
    #[arg(short, long, default_value_t = 1, value_name = "PORT")]
    ib_port: u8,
    /// Size of the message in bytes
    #[arg(short, long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    size: u32,
    /// Path MTU in bytes
    #[arg(short, long, default_value = "1024", value_parser = mtu)]
    mtu: Mtu,
    /// Receives to post at a time
    #[arg(short, long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=16000))]
    rx_depth: u32,
    /// Number of exchanges
    #[arg(short = 'n', long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,
    /// Service level
    #[arg(short = 'l', long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..16))]
    sl: u8,
    /// Sleep until there are completions, instead of polling
    #[arg(short, long)]
    events: bool,
    /// Index of this port's GID: packets have a GRH
    #[arg(short, long, value_name = "INDEX")]
    gid_idx: Option<u8>,
    /// Check the data that came; the other end must do so too
    #[arg(short = 'c', long)]
    chk: bool,
}

fn mtu(text: &str) -> Result<Mtu, String> {
    let mtu = text.parse().ok().and_then(Mtu::of_bytes);
    mtu.ok_or_else(|| "the MTU is one of 256, 512, 1024, 2048, 4096".into())
}

/// What messages are filled with.
const FILL: u8 = 0x7b;
/// Where data are checked, each first byte of a page is 0 instead.
const CHECKED: u8 = 0;
const PAGE: usize = 4096;

const RECEIVED: u64 = 1;
const SENT: u64 = 2;

/// Polls without a completion after which others may run.
const PATIENT_POLLS: u32 = 2000;

/// One end. Fields in the order in which they go.
struct End {
    qp: Qp,
    mr: Mr,
    cq: Cq,
    _pd: Pd,
    channel: Option<CompChannel>,
    device: Context,
    args: Args,
}

/// How far the ping-pong has come.
#[derive(Debug, Default)]
struct Progress {
    sent: u32,
    received: u32,
    /// Receives that are posted.
    posted: u32,
    awaits_send: bool,
    awaits_receive: bool,
}

pub(crate) fn run(args: Args, output: &mut dyn Write) -> Result<(), Failure> {
    // Before the device is opened: the client may be there already.
    let server = args.host.is_none().then(|| Server::listen(args.port)).transpose()?;
    let end = End::new(args)?;
    let mut progress = Progress { awaits_receive: true, ..Progress::default() };
    end.refill(&mut progress)?;
    if end.args.events {
        end.cq.req_notify(false)?;
    }
    let own = end.address()?;
    writeln!(output, "  local address:  {own}")?;
    output.flush()?;
    let other = match (&end.args.host, server) {
        (Some(host), _) => {
            let other = with_server(host, end.args.port, &own)?;
            end.connect(&own, &other)?;
            other
        }
        (None, Some(server)) => server.with_client(&own, |other| end.connect(&own, other))?,
        (None, None) => return Err(Failure::Error("neither host nor server".into())),
    };
    writeln!(output, "  remote address: {other}")?;
    output.flush()?;
    let start = Instant::now();
    if end.args.host.is_some() {
        end.send(&mut progress)?;
    }
    end.play(&mut progress)?;
    let took = start.elapsed();
    if end.args.chk {
        end.check()?;
    }
    report(&end.args, took, output)
}

fn report(args: &Args, took: Duration, output: &mut dyn Write) -> Result<(), Failure> {
    let (seconds, iters) = (took.as_secs_f64(), f64::from(args.iters));
    let bytes = u64::from(args.size) * u64::from(args.iters) * 2;
    let megabits = f64::from(args.size) * iters * 2. * 8. / 1e6 / seconds;
    writeln!(output, "{bytes} bytes in {seconds:.2} seconds = {megabits:.2} Mbit/sec")?;
    let each = seconds * 1e6 / iters;
    writeln!(output, "{} iters in {seconds:.2} seconds = {each:.2} usec/iter", args.iters)?;
    Ok(())
}

impl End {
    fn new(args: Args) -> Result<Self, Failure> {
        let device = open(&socket(args.socket.clone())?)?;
        let (port, ports) = (args.ib_port, device.query_device()?.phys_port_cnt);
        if !(1..=ports).contains(&port) {
            return Err(Failure::Error(format!(
                "the device has no port {port}, but 1 to {ports}; see --ib-port"
            )));
        }
        let channel = args.events.then(|| device.create_comp_channel(0)).transpose()?;
        let cq = device.create_cq(args.rx_depth + 1, channel.as_ref())?;
        let pd = device.alloc_pd()?;
        let mr = pd.alloc_mr(args.size as usize, Access::LOCAL_WRITE)?;
        mr.fill(0, mr.len(), FILL)?;
        if args.chk && args.host.is_some() {
            for page in (0..mr.len()).step_by(PAGE) {
                mr.fill(page, 1, CHECKED)?;
            }
        }
        let cap = QpCap {
            max_send_wr: 1,
            max_recv_wr: args.rx_depth,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let qp = pd.create_qp(&QpInit { cap, ..QpInit::new(&cq) })?;
        qp.to_init(args.ib_port, Access::NONE)?;
        Ok(Self { qp, mr, cq, _pd: pd, channel, device, args })
    }

    fn address(&self) -> Result<Address, Failure> {
        let port = self.args.ib_port;
        let PortAttr { lid, gid_tbl_len: entries, .. } = self.device.query_port(port)?;
        if lid == 0 {
            return Err(Failure::Error(format!("port {port} has no LID; is there a subnet manager?")));
        }
        let gid = match self.args.gid_idx {
            Some(index) if u32::from(index) >= entries => {
                let last = entries.saturating_sub(1);
                let text = format!("port {port} has no GID {index}, but 0 to {last}; see --gid-idx");
                return Err(Failure::Error(text));
            }
            Some(index) => self.device.query_gid(port, index.into())?,
            None => Gid::default(),
        };
        let [low, middle, high, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
        let psn = u32::from_le_bytes([low, middle, high, 0]);
        Ok(Address { lid, qpn: self.qp.qpn(), psn, gid })
    }

    fn connect(&self, own: &Address, other: &Address) -> Result<(), Failure> {
        let grh = Grh {
            dgid: other.gid,
            sgid_index: self.args.gid_idx.unwrap_or(0),
            hop_limit: 1,
            ..Grh::default()
        };
        let has_gid = other.gid.0[8..] != [0; 8];
        let path = AhAttr { sl: self.args.sl, ..AhAttr::to_lid(other.lid, self.args.ib_port) };
        let path = AhAttr { grh: has_gid.then_some(grh), ..path };
        self.qp.to_rtr(RtrAttr::new(path, other.qpn, other.psn, self.args.mtu))?;
        self.qp.to_rts(RtsAttr::new(own.psn))?;
        Ok(())
    }

    /// Posts receives up to the depth.
    fn refill(&self, progress: &mut Progress) -> Result<(), Failure> {
        let sges = [self.mr.sge(0, self.args.size)];
        while progress.posted < self.args.rx_depth {
            self.qp.post_recv(&RecvWr { wr_id: RECEIVED, sges: &sges })?;
            progress.posted += 1;
        }
        Ok(())
    }

    fn send(&self, progress: &mut Progress) -> Result<(), Failure> {
        let sges = [self.mr.sge(0, self.args.size)];
        let data = SendData::Sges(&sges);
        self.qp.post_send(&SendWr { wr_id: SENT, op: SendOp::Send, data, flags: SendFlags::SIGNALED })?;
        progress.awaits_send = true;
        Ok(())
    }

    fn play(&self, progress: &mut Progress) -> Result<(), Failure> {
        let iters = self.args.iters;
        let mut idle = 0;
        while progress.received < iters || progress.sent < iters {
            if let Some(channel) = &self.channel {
                channel.wait(None)?;
                self.cq.req_notify(false)?;
            }
            let mut wcs = [Wc::default(); 4];
            let count = self.cq.poll(&mut wcs)?;
            for wc in &wcs[..count] {
                self.completed(wc, progress)?;
            }
            idle = if count == 0 { idle + 1 } else { 0 };
            if idle > PATIENT_POLLS {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn completed(&self, wc: &Wc, progress: &mut Progress) -> Result<(), Failure> {
        if wc.status != WcStatus::Success {
            let what = if wc.wr_id == SENT { "send" } else { "receive" };
            let code = wc.vendor_err;
            return Err(Failure::Error(format!("a {what} failed: {} (vendor code {code:#x})", wc.status)));
        }
        if wc.wr_id == SENT {
            progress.sent += 1;
            progress.awaits_send = false;
        } else {
            progress.received += 1;
            progress.awaits_receive = false;
            progress.posted -= 1;
            if progress.posted <= 1 {
                self.refill(progress)?;
            }
        }
        if progress.sent < self.args.iters && !progress.awaits_send && !progress.awaits_receive {
            self.send(progress)?;
            progress.awaits_receive = true;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        let mut page = [0; PAGE];
        for start in (0..self.mr.len()).step_by(PAGE) {
            let page = &mut page[..PAGE.min(self.mr.len() - start)];
            self.mr.read(start, page)?;
            let wanted = |at: usize| if at == 0 { CHECKED } else { FILL };
            if let Some((at, found)) = page.iter().enumerate().find(|(at, found)| **found != wanted(*at)) {
                let (at, wanted) = (start + at, wanted(at));
                let text = format!("byte {at} of the message is {found:#04x}, not {wanted:#04x}");
                return Err(Failure::Error(text));
            }
        }
        Ok(())
    }
}
