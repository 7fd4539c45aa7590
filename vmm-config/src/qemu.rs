//! QEMU's arguments for a [`Machine`].
//!
//! Where QEMU takes JSON it gets JSON; where it takes only its own `key=value,...` form, a comma in a
//! value is doubled.

use std::path::Path;

use crate::{Accelerator, Device, Machine, QEMU_VIRTIO_ID_RDMA, Serial};

impl Machine {
    /// The arguments of `qemu-system-x86_64` (10.1 or later where there is a vfio-user device),
    /// without the program's own name.
    ///
    /// A path that isn't UTF-8 is given with replacement characters.
    pub fn qemu_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.option("-name", &escape(&self.name));
        args.option("-accel", self.accelerator());
        args.option("-machine", "q35,memory-backend=ram");
        args.option(
            "-object",
            &format!(
                r#"{{"qom-type":"memory-backend-memfd","id":"ram","size":{},"share":true}}"#,
                u64::from(self.memory_mib) << 20
            ),
        );
        args.option("-m", &format!("{}M", self.memory_mib));
        args.option("-smp", &self.cpus.to_string());
        args.flag("-nodefaults");
        if !self.reboots {
            args.flag("-no-reboot");
        }
        args.option("-display", "none");
        self.serial(&mut args);
        args.option("-kernel", &plain(&self.boot.kernel));
        if let Some(initrd) = &self.boot.initrd {
            args.option("-initrd", &plain(initrd));
        }
        args.option("-append", &self.boot.cmdline);
        if self.iommu {
            // Comes before every device that it shall translate for.
            args.option("-device", "intel-iommu,intremap=on,caching-mode=on");
        }
        for (index, device) in self.devices.iter().enumerate() {
            device.qemu_args(index, &mut args);
        }
        args.0
    }

    fn accelerator(&self) -> &'static str {
        match (self.accelerator, self.iommu) {
            (Accelerator::Tcg, _) => "tcg",
            (Accelerator::Kvm, false) => "kvm",
            // Interrupt remapping needs the I/O APIC outside the kernel.
            (Accelerator::Kvm, true) => "kvm,kernel-irqchip=split",
        }
    }

    fn serial(&self, args: &mut Args) {
        match &self.serial {
            Serial::None => args.option("-serial", "none"),
            Serial::Stdio => args.option("-serial", "mon:stdio"),
            Serial::Socket(path) => {
                args.option(
                    "-chardev",
                    &format!("socket,id=serial0,path={},server=on,wait=off", escape(&plain(path))),
                );
                args.option("-serial", "chardev:serial0");
            }
            Serial::File(path) => {
                args.option("-chardev", &format!("file,id=serial0,path={}", escape(&plain(path))));
                args.option("-serial", "chardev:serial0");
            }
        }
    }
}

impl Device {
    fn qemu_args(&self, index: usize, args: &mut Args) {
        match self {
            Self::VfioUser { socket } => {
                // Chassis 0 is the root complex's own.
                args.option("-device", &format!("pcie-root-port,id=port{index},chassis={}", index + 1));
                args.option(
                    "-device",
                    &format!(
                        r#"{{"driver":"vfio-user-pci","id":"dev{index}","bus":"port{index}","socket":{{"type":"unix","path":{}}}}}"#,
                        json(&plain(socket))
                    ),
                );
            }
            Self::VhostUserRdma { socket, queues, queue_entries, config_bytes } => {
                args.option("-chardev", &socket_chardev(index, socket));
                args.option(
                    "-device",
                    &format!(
                        "vhost-user-test-device-pci,id=dev{index},chardev=chr{index},\
                         virtio-id={QEMU_VIRTIO_ID_RDMA},num_vqs={queues},vq_size={queue_entries},\
                         config_size={config_bytes},page-per-vq=on"
                    ),
                );
            }
            Self::Ethernet { local, remote, mac } => {
                let [local, remote] = [local, remote].map(|path| escape(&plain(path)));
                args.option(
                    "-netdev",
                    &format!(
                        "dgram,id=net{index},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"
                    ),
                );
                let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                // Without a ROM to boot from.
                args.option(
                    "-device",
                    &format!("virtio-net-pci,id=dev{index},netdev=net{index},mac={mac},romfile="),
                );
            }
            Self::Channel { name, socket } => {
                args.option("-chardev", &socket_chardev(index, socket));
                args.option("-device", &format!("virtio-serial-pci,id=dev{index}"));
                args.option(
                    "-device",
                    &format!("virtserialport,bus=dev{index}.0,chardev=chr{index},name={}", escape(name)),
                );
            }
        }
    }
}

fn socket_chardev(index: usize, socket: &Path) -> String {
    format!("socket,id=chr{index},path={}", escape(&plain(socket)))
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn option(&mut self, flag: &str, value: &str) {
        self.0.push(flag.to_owned());
        self.0.push(value.to_owned());
    }
}

fn plain(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A value in a `key=value,...` list.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// A JSON string.
fn json(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Boot, VIRTIO_ID_RDMA};

    fn machine() -> Machine {
        Machine {
            name: "web1".into(),
            accelerator: Accelerator::Tcg,
            memory_mib: 512,
            cpus: 2,
            boot: Boot {
                kernel: "/k/vmlinuz".into(),
                initrd: Some("/k/initrd".into()),
                cmdline: "console=ttyS0 quiet".into(),
            },
            serial: Serial::Stdio,
            iommu: false,
            reboots: false,
            devices: Vec::new(),
        }
    }

    /// The values of every option called `flag`, in order.
    fn values<'a>(args: &'a [String], flag: &str) -> Vec<&'a str> {
        args.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn machine_without_devices_has_shared_memory_of_its_size() {
        let args = machine().qemu_args();
        assert_eq!(values(&args, "-machine"), ["q35,memory-backend=ram"]);
        assert_eq!(
            values(&args, "-object"),
            [r#"{"qom-type":"memory-backend-memfd","id":"ram","size":536870912,"share":true}"#]
        );
        assert_eq!(values(&args, "-m"), ["512M"]);
        assert_eq!(values(&args, "-smp"), ["2"]);
        assert_eq!(values(&args, "-append"), ["console=ttyS0 quiet"]);
        assert_eq!(values(&args, "-initrd"), ["/k/initrd"]);
        assert!(values(&args, "-device").is_empty());
    }

    #[test]
    fn vfio_user_device_is_behind_a_root_port_of_its_own() {
        let mut machine = machine();
        machine.devices =
            vec![Device::VfioUser { socket: "/run/a".into() }, Device::VfioUser { socket: "/run/b".into() }];
        assert_eq!(
            values(&machine.qemu_args(), "-device"),
            [
                "pcie-root-port,id=port0,chassis=1",
                r#"{"driver":"vfio-user-pci","id":"dev0","bus":"port0","socket":{"type":"unix","path":"/run/a"}}"#,
                "pcie-root-port,id=port1,chassis=2",
                r#"{"driver":"vfio-user-pci","id":"dev1","bus":"port1","socket":{"type":"unix","path":"/run/b"}}"#,
            ]
        );
    }

    #[test]
    fn iommu_comes_before_every_device() {
        let mut machine = machine();
        machine.iommu = true;
        machine.devices = vec![Device::VfioUser { socket: "/run/a".into() }];
        assert_eq!(
            values(&machine.qemu_args(), "-device").first(),
            Some(&"intel-iommu,intremap=on,caching-mode=on")
        );
    }

    #[test]
    fn iommu_with_kvm_splits_the_interrupt_controller() {
        let mut machine = machine();
        machine.accelerator = Accelerator::Kvm;
        assert_eq!(values(&machine.qemu_args(), "-accel"), ["kvm"]);
        machine.iommu = true;
        assert_eq!(values(&machine.qemu_args(), "-accel"), ["kvm,kernel-irqchip=split"]);
    }

    #[test]
    fn virtio_rdma_device_never_has_the_number_that_aborts_qemu() {
        let mut machine = machine();
        machine.devices = vec![Device::VhostUserRdma {
            socket: "/run/x.sock".into(),
            queues: 16,
            queue_entries: 256,
            config_bytes: 64,
        }];
        let args = machine.qemu_args();
        assert_eq!(values(&args, "-chardev"), ["socket,id=chr0,path=/run/x.sock"]);
        assert_eq!(
            values(&args, "-device"),
            ["vhost-user-test-device-pci,id=dev0,chardev=chr0,virtio-id=38,num_vqs=16,vq_size=256,\
              config_size=64,page-per-vq=on"]
        );
        assert_ne!(QEMU_VIRTIO_ID_RDMA, VIRTIO_ID_RDMA);
    }

    #[test]
    fn channel_connects_to_the_hosts_socket() {
        let mut machine = machine();
        machine.devices = vec![Device::Channel { name: "agent".into(), socket: "/run/s".into() }];
        let args = machine.qemu_args();
        assert_eq!(values(&args, "-chardev"), ["socket,id=chr0,path=/run/s"]);
        assert_eq!(
            values(&args, "-device"),
            ["virtio-serial-pci,id=dev0", "virtserialport,bus=dev0.0,chardev=chr0,name=agent"]
        );
    }

    #[test]
    fn ethernet_has_both_ends_and_no_rom() {
        let mut machine = machine();
        let mac = [0x52, 0x54, 0, 0, 0, 1];
        machine.devices = vec![Device::Ethernet { local: "/run/a".into(), remote: "/run/b,c".into(), mac }];
        let args = machine.qemu_args();
        assert_eq!(
            values(&args, "-netdev"),
            ["dgram,id=net0,local.type=unix,local.path=/run/a,remote.type=unix,remote.path=/run/b,,c"]
        );
        assert_eq!(
            values(&args, "-device"),
            ["virtio-net-pci,id=dev0,netdev=net0,mac=52:54:00:00:00:01,romfile="]
        );
    }

    #[test]
    fn serial_leads_where_it_should() {
        let mut machine = machine();
        assert_eq!(values(&machine.qemu_args(), "-serial"), ["mon:stdio"]);
        machine.serial = Serial::Socket("/run/s".into());
        let args = machine.qemu_args();
        assert_eq!(values(&args, "-chardev"), ["socket,id=serial0,path=/run/s,server=on,wait=off"]);
        assert_eq!(values(&args, "-serial"), ["chardev:serial0"]);
        machine.serial = Serial::File("/log/a".into());
        let args = machine.qemu_args();
        assert_eq!(values(&args, "-chardev"), ["file,id=serial0,path=/log/a"]);
        assert_eq!(values(&args, "-serial"), ["chardev:serial0"]);
        machine.serial = Serial::None;
        assert_eq!(values(&machine.qemu_args(), "-serial"), ["none"]);
    }

    #[test]
    fn commas_and_quotes_in_paths_are_escaped() {
        let mut machine = machine();
        machine.serial = Serial::File("/a,b".into());
        machine.devices = vec![Device::VfioUser { socket: "/a,\"\\\n".into() }];
        let args = machine.qemu_args();
        assert_eq!(values(&args, "-chardev"), ["file,id=serial0,path=/a,,b"]);
        assert!(values(&args, "-device")[1].contains(r#""path":"/a,\"\\\u000a""#));
    }
}
