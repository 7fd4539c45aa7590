//! `cargo xtask vm`: a rig of VMs for a person.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use integration::vm::Shell;
use integration::{Kernel, Model, Rig, Vm, VmConfig, stock};

/// The time limit of one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which VMs and devices
    rig: Kind,
    /// Commands to run in the first VM, one after the other, instead of giving a shell
    commands: Vec<String>,
    /// Memory of each VM in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Processors of each VM
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Boot the newest kernel of Debian's backports, not Debian 13's own
    #[arg(long)]
    newest_kernel: bool,
    /// Give the guests Python, with rdma-core's module for it and that module's tests (in /usr/share/pyverbs)
    #[arg(long)]
    python: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// One VM without devices
    Plain,
    /// One VM without devices, with a virtual IOMMU
    Iommu,
    /// One VM whose stock mlx4 driver has an HCA of the model
    Stock,
    /// The same with the HCA behind a virtual IOMMU
    StockIommu,
    /// Two such VMs with an HCA each, on one fabric
    Pair,
}

impl Kind {
    fn hcas(self) -> usize {
        match self {
            Self::Plain | Self::Iommu => 0,
            Self::Stock | Self::StockIommu => 1,
            Self::Pair => 2,
        }
    }

    fn has_iommu(self) -> bool {
        matches!(self, Self::Iommu | Self::StockIommu)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::cargo(&["build", "--quiet", "--package", "integration", "--bin", "rig-agent"], &[])?;
    let rig = Rig::prepare()?;
    let hcas = args.rig.hcas();
    let model = if hcas > 0 { Some(Model::start(&rig, hcas, &[])?) } else { None };
    let mut configs = ["a", "b"][..hcas.max(1)].iter().enumerate().map(|(index, name)| {
        let config = VmConfig::new(name).memory_mib(args.memory).cpus(args.cpus);
        let config = if args.rig.has_iommu() { config.iommu() } else { config };
        let config = if args.newest_kernel { config.kernel(Kernel::Newest) } else { config };
        let config = if args.python { config.python() } else { config };
        match &model {
            Some(model) if args.commands.is_empty() => with_driver(config.hca(model.socket(index))),
            Some(model) => config.hca(model.socket(index)),
            None => config,
        }
    });
    let Some(first) = configs.next() else {
        bail!("a rig without VMs");
    };
    if args.commands.is_empty() {
        let mut others = Vec::new();
        for config in configs {
            let shell = Shell::start(&rig, &config)?;
            let socket = shell.socket().display();
            println!("VM {}: in another terminal, cargo xtask console {socket}", config.name());
            others.push(shell);
        }
        println!("VM {}: its shell follows; leave it to stop, or press Ctrl-A X", first.name());
        return Shell::run_here(&rig, &first);
    }
    let first = rig.boot(first)?;
    let others = configs.map(|config| rig.boot(config)).collect::<Result<Vec<Vm>>>()?;
    if model.is_some() {
        others.iter().chain([&first]).try_for_each(stock::bring_up)?;
    }
    for command in &args.commands {
        let output = first.run_within(COMMAND_LIMIT, command)?;
        print!("{}", output.stdout);
        eprint!("{}", output.stderr);
        if output.status != 0 {
            bail!("`{command}` ended with status {}", output.status);
        }
    }
    first.shutdown()
}

/// A VM that loads the stock driver before it gives a shell.
fn with_driver(config: VmConfig) -> VmConfig {
    config.kernel_args(&format!("rig.load={}", stock::MODULES.join(",")))
}
