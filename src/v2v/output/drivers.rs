//! What the log of virt-v2v-in-place tells about the guest it converted: its system, and what it has drivers for. Pure.
//!
//! virt-v2v-in-place writes no machine (virt-v2v-output.md 9), so whoever makes one must know which devices the
//! converted guest can use. With `-v` two blocks of lines say it, in 2.2 as in 2.10: `i_...` after inspection,
//! `gcaps_...` after conversion.
//!
//! A guest's own programs print into the log too, before that last block: the last line of a key counts, and no value
//! is taken that is not one of those the tool prints.

use serde::{Deserialize, Serialize};

use super::lines::{Lines, line_at};

/// What disks can hang on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockBus {
    /// virtio-blk.
    VirtioBlk,
    /// virtio-scsi.
    VirtioScsi,
    /// No virtio driver: IDE, or SATA on q35.
    Ide,
}

/// What network card the guest can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetModel {
    /// virtio-net.
    Virtio,
    /// Intel.
    E1000,
    /// Realtek.
    Rtl8139,
}

/// Machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Machine {
    /// The old PC.
    I440fx,
    /// The PC with PCI Express.
    Q35,
    /// Of architectures other than x86.
    Virt,
}

impl Machine {
    /// The word of libvirt XML.
    pub fn as_str(self) -> &'static str {
        match self {
            Machine::I440fx => "pc",
            Machine::Q35 => "q35",
            Machine::Virt => "virt",
        }
    }
}

/// What was told, `None` where nothing was. The methods say what to do then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drivers {
    /// `gcaps_block_bus`.
    pub block: Option<BlockBus>,
    /// `gcaps_net_bus`.
    pub net: Option<NetModel>,
    /// `gcaps_machine`.
    pub machine: Option<Machine>,
    /// `gcaps_arch`, or `i_arch`.
    pub arch: Option<String>,
    /// `gcaps_virtio_rng`.
    pub rng: Option<bool>,
    /// `gcaps_virtio_balloon`.
    pub balloon: Option<bool>,
    /// `gcaps_isa_pvpanic`.
    pub pvpanic: Option<bool>,
    /// `gcaps_virtio_socket`.
    pub vsock: Option<bool>,
    /// `gcaps_acpi` (2.2; later versions take it for granted).
    pub acpi: Option<bool>,
    /// `gcaps_virtio_1_0`: drivers for the devices of today; without them q35 needs transitional ones.
    pub virtio_1_0: Option<bool>,
    /// `gcaps_default_cpu` (2.2): qemu's default processor is enough.
    pub default_cpu: Option<bool>,
    /// `gcaps_arch_min_version` (2.10): level of x86-64 that the guest needs, 0 to 4.
    pub arch_level: Option<u32>,
    /// `gcaps_rtc_utc` (2.10): the hardware clock has UTC, not local time.
    pub rtc_utc: Option<bool>,
    /// Told at the end: the guest needs UEFI to boot.
    pub uefi: bool,
    /// `i_type`: `linux`, `windows`.
    pub os_type: Option<String>,
    /// `i_distro`.
    pub distro: Option<String>,
    /// `i_major_version`.
    pub major: Option<u32>,
    /// `i_minor_version`.
    pub minor: Option<u32>,
    /// `i_product_name`.
    pub product_name: Option<String>,
    /// `i_product_variant`.
    pub product_variant: Option<String>,
}

impl Drivers {
    /// Every Linux that virt-v2v converts has virtio; a Windows that nothing was told of has what Windows brings.
    fn brings_virtio(&self) -> bool {
        self.os_type.as_deref() != Some("windows")
    }

    /// For disks.
    pub fn block(&self) -> BlockBus {
        self.block.unwrap_or(if self.brings_virtio() { BlockBus::VirtioBlk } else { BlockBus::Ide })
    }

    /// For network interfaces.
    pub fn net(&self) -> NetModel {
        self.net.unwrap_or(if self.brings_virtio() { NetModel::Virtio } else { NetModel::E1000 })
    }

    /// The machine type.
    pub fn machine(&self) -> Machine {
        let x86 = matches!(self.arch(), "x86_64" | "i386" | "i486" | "i586" | "i686");
        self.machine.unwrap_or(if x86 { Machine::Q35 } else { Machine::Virt })
    }

    /// The architecture.
    pub fn arch(&self) -> &str {
        self.arch.as_deref().unwrap_or("x86_64")
    }

    /// A random number generator?
    pub fn rng(&self) -> bool {
        self.rng.unwrap_or(self.brings_virtio())
    }

    /// A balloon?
    pub fn balloon(&self) -> bool {
        self.balloon.unwrap_or(self.brings_virtio())
    }

    /// Is qemu's default processor too old for the guest?
    pub fn needs_host_cpu(&self) -> bool {
        self.default_cpu == Some(false) || self.arch_level.is_some_and(|level| level > 1)
    }

    /// Whether the hardware clock has UTC; `None` where the host's default will do. Windows takes it for local time,
    /// and 2.2 does not say so.
    pub fn rtc_utc(&self) -> Option<bool> {
        self.rtc_utc.or_else(|| (self.os_type.as_deref() == Some("windows")).then_some(false))
    }

    fn line(&mut self, line: &[u8]) {
        if let Some(said) = line.strip_prefix(b"virt-v2v-in-place: ") {
            self.uefi |= said.starts_with(b"This guest requires UEFI on the target");
            return;
        }
        // 2.10, after the message.
        self.uefi |= line == b"target firmware: uefi";
        if !line.starts_with(b"gcaps_") && !line.starts_with(b"i_") {
            return;
        }
        let Ok(line) = std::str::from_utf8(line) else { return };
        if let Some((key, value)) = line.split_once(" = ") {
            self.set(key, value.trim());
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            "gcaps_block_bus" => told(&mut self.block, block_bus(value)),
            "gcaps_net_bus" => told(&mut self.net, net_model(value)),
            "gcaps_machine" => told(&mut self.machine, machine(value)),
            "gcaps_arch" | "i_arch" => told(&mut self.arch, word(value)),
            "gcaps_virtio_rng" => told(&mut self.rng, value.parse().ok()),
            "gcaps_virtio_balloon" => told(&mut self.balloon, value.parse().ok()),
            "gcaps_isa_pvpanic" => told(&mut self.pvpanic, value.parse().ok()),
            "gcaps_virtio_socket" => told(&mut self.vsock, value.parse().ok()),
            "gcaps_acpi" => told(&mut self.acpi, value.parse().ok()),
            "gcaps_virtio_1_0" => told(&mut self.virtio_1_0, value.parse().ok()),
            "gcaps_default_cpu" => told(&mut self.default_cpu, value.parse().ok()),
            "gcaps_arch_min_version" => told(&mut self.arch_level, value.parse().ok()),
            "gcaps_rtc_utc" => told(&mut self.rtc_utc, value.parse().ok()),
            "i_type" => told(&mut self.os_type, word(value)),
            "i_distro" => told(&mut self.distro, word(value)),
            "i_major_version" => told(&mut self.major, value.parse().ok()),
            "i_minor_version" => told(&mut self.minor, value.parse().ok()),
            "i_product_name" => told(&mut self.product_name, text(value)),
            "i_product_variant" => told(&mut self.product_variant, text(value)),
            _ => {}
        }
    }
}

/// The last value that is one.
fn told<T>(known: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *known = value;
    }
}

fn block_bus(value: &str) -> Option<BlockBus> {
    match value {
        "virtio-blk" => Some(BlockBus::VirtioBlk),
        "virtio-scsi" => Some(BlockBus::VirtioScsi),
        "ide" => Some(BlockBus::Ide),
        _ => None,
    }
}

fn net_model(value: &str) -> Option<NetModel> {
    match value {
        "virtio-net" => Some(NetModel::Virtio),
        "e1000" => Some(NetModel::E1000),
        "rtl8139" => Some(NetModel::Rtl8139),
        _ => None,
    }
}

fn machine(value: &str) -> Option<Machine> {
    match value {
        "i440fx" => Some(Machine::I440fx),
        "q35" => Some(Machine::Q35),
        "virt" => Some(Machine::Virt),
        _ => None,
    }
}

/// Names of systems and architectures.
fn word(value: &str) -> Option<String> {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.');
    (!value.is_empty() && value.len() <= 32 && value.bytes().all(plain)).then(|| value.to_owned())
}

/// Names that people gave.
fn text(value: &str) -> Option<String> {
    let printable = !value.chars().any(char::is_control);
    (!value.is_empty() && value.len() <= 256 && printable).then(|| value.to_owned())
}

/// Reads [`Drivers`] from the log as it grows.
#[derive(Debug, Default)]
pub struct DriversParser {
    lines: Lines,
    found: Drivers,
}

impl DriversParser {
    /// A parser at the beginning of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the log, however they are cut.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.lines.feed(bytes, |block| read(block, &mut self.found));
    }

    /// The log ended: all that it told.
    pub fn finish(mut self) -> Drivers {
        self.lines.finish(|block| read(block, &mut self.found));
        self.found
    }
}

fn read(block: &[u8], found: &mut Drivers) {
    let mut from = 0;
    while from < block.len() {
        let (line, next) = line_at(block, from, from);
        found.line(line);
        from = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drivers(log: &str, chunk: usize) -> Drivers {
        let mut parser = DriversParser::new();
        log.as_bytes().chunks(chunk).for_each(|bytes| parser.feed(bytes));
        parser.finish()
    }

    #[test]
    fn the_last_line_of_a_key_counts_and_only_known_values_do() {
        let log = "gcaps_block_bus = virtio-scsi\ngcaps_block_bus = <evil/>\nx gcaps_block_bus = ide\n\
                   gcaps_net_bus = e1000\r\ngcaps_net_bus = rtl8139\ngcaps_arch = x86_64\ngcaps_arch = ../x\n\
                   gcaps_virtio_rng = maybe\ni_type = windows\ni_product_name = Windows Server 2019\n\
                   i_major_version = 10\ni_minor_version = -3\ni_distro = \ngcaps_machine = i440fx";
        for chunk in [1, 7, log.len()] {
            let found = drivers(log, chunk);
            assert_eq!(found.block, Some(BlockBus::VirtioScsi));
            assert_eq!(found.net, Some(NetModel::Rtl8139));
            assert_eq!(found.arch.as_deref(), Some("x86_64"));
            assert_eq!((found.rng, found.machine), (None, Some(Machine::I440fx)));
            assert_eq!((found.major, found.minor), (Some(10), None));
            assert_eq!(found.product_name.as_deref(), Some("Windows Server 2019"));
            assert_eq!((found.distro, found.uefi), (None, false));
        }
    }

    #[test]
    fn without_a_word_linux_has_virtio_and_windows_has_not() {
        let (linux, windows) = (Drivers::default(), drivers("i_type = windows\n", 99));
        assert_eq!(
            (linux.block(), linux.net(), linux.machine(), linux.rng(), linux.rtc_utc()),
            (BlockBus::VirtioBlk, NetModel::Virtio, Machine::Q35, true, None)
        );
        assert_eq!(
            (windows.block(), windows.net(), windows.rng(), windows.rtc_utc()),
            (BlockBus::Ide, NetModel::E1000, false, Some(false))
        );
        assert_eq!(drivers("gcaps_arch = aarch64\n", 99).machine(), Machine::Virt);
    }

    #[test]
    fn uefi_is_told_by_the_tool_itself() {
        assert!(drivers("virt-v2v-in-place: This guest requires UEFI on the target to boot.\n", 5).uefi);
        assert!(!drivers("guest says This guest requires UEFI on the target to boot.\n", 5).uefi);
    }
}
