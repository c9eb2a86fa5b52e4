//! Exports: each source disk served read-only over NBD on a unix socket, so that the copy engine knows one way to read.
//!
//! * this file and [`argv`] are pure: what is served, and by which command line (contract.md 6.4)
//! * [`filters`] asks nbdkit which of its filters exist
//! * [`server`] starts, watches and stops the process; `greeting` asks it over its socket whether it serves
//!
//! Not here: reading the export (the NBD client), which disks a guest has (the sources), restarting what died (the
//! copy engine, which knows what was copied).

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use crate::plan::TwoPhasePrograms;
use crate::source::local::ImageFormat;
use crate::source::ssh::client::Host;

pub mod argv;
pub mod filters;
mod greeting;
pub mod server;

/// What one source disk is served from.
#[derive(Debug, Clone)]
pub enum Export {
    /// A disk of a VMware guest, by nbdkit's vddk plugin.
    Vddk {
        /// vCenter or ESXi host.
        server: String,
        /// Its port, if not 443.
        port: Option<u16>,
        /// Its user.
        user: String,
        /// The user's password.
        password: SecretString,
        /// Managed object id of the guest, e.g. `vm-62`.
        moref: String,
        /// SHA-1 thumbprint of the server's certificate.
        thumbprint: String,
        /// Directory of the VDDK library.
        libdir: PathBuf,
        /// `[datastore] folder/disk.vmdk`.
        file: String,
        /// Managed object id of the snapshot that is read. Without it and `transports` a guest that has snapshots
        /// cannot be opened (error 13; peers.md 6.3, row 26), so both are passed whenever they are known.
        snapshot: Option<String>,
        /// VDDK's transport modes, e.g. `nbdssl:nbd`.
        transports: Option<String>,
    },
    /// A flat disk on an ESXi host, by nbdkit's ssh plugin.
    Ssh {
        /// The host.
        host: String,
        /// Its port, if not 22.
        port: Option<u16>,
        /// Who logs in.
        user: String,
        /// Absolute path of the disk's descriptor, as the vmx file names it: `/vmfs/volumes/ds/vm/vm.vmdk`. Its
        /// data are read from `vm-flat.vmdk`; a snapshot's delta cannot be read this way.
        path: String,
        /// How the user logs in.
        login: Login,
        /// File with the host's key, if not the account's own `~/.ssh/known_hosts`.
        known_hosts: Option<PathBuf>,
    },
    /// A raw file or a block device of this host, by nbdkit's file plugin.
    File {
        /// The file or device.
        path: PathBuf,
    },
    /// A disk that another host serves over NBD on its own loopback, by a tunnel of ssh.
    Tunnel {
        /// The host.
        host: Host,
        /// The port there.
        port: u16,
        /// The disk as its owner knows it.
        disk: String,
    },
    /// An image of this host that has a format, by qemu-nbd. Backing files and the extents of a split vmdk are
    /// opened as the image names them.
    ///
    /// Whoever made the image chose those names: `/etc/shadow` is one, and a backing file may even be a URL. An
    /// image is therefore only as trustworthy as its maker, and what is served is whatever the caller's account can
    /// read.
    Image {
        /// The image.
        path: PathBuf,
        /// Its format: never probed by qemu, because a raw guest disk could pretend to be a qcow2.
        format: ImageFormat,
        /// The part of the file that is the image, if it is not the whole: a member of an archive.
        window: Option<Window>,
    },
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// How an ssh user proves who he is.
#[derive(Debug, Clone)]
pub enum Login {
    /// By the keys of the agent behind this socket.
    Agent(PathBuf),
    /// By this password.
    Password(SecretString),
}

/// Filters of nbdkit that are used where they exist (contract.md 6.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filters {
    /// Remembers what the slow QueryAllocatedBlocks said.
    pub cacheextents: bool,
    /// Reads again after an error, with a connection of its own.
    pub retry: bool,
    /// Notes each request in the server's log.
    pub log: bool,
}

/// The program that serves an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// nbdkit.
    Nbdkit,
    /// qemu-nbd.
    QemuNbd,
    /// The openssh client.
    Ssh,
}

/// Where a server puts what it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The socket it listens on.
    pub socket: PathBuf,
    /// Where it writes its pid.
    pub pid: PathBuf,
    /// All that it says.
    pub log: PathBuf,
}

impl Files {
    /// The names of contract.md 6.4 in the job's private directory. `key` is the disk's.
    pub fn new(private: &Path, program: Program, key: u32) -> Self {
        let name = match program {
            Program::Nbdkit => "nbdkit",
            Program::QemuNbd => "qemu-nbd",
            Program::Ssh => "ssh",
        };
        let file = |end| private.join(format!("{name}-{key}.{end}"));
        Self { socket: file("sock"), pid: file("pid"), log: file("log") }
    }

    /// Those of the qemu-nbd that writes a copy: no source disk has such a number.
    pub fn of_target(private: &Path, disk: usize) -> Self {
        Self::new(private, Program::QemuNbd, 500_000 + disk as u32)
    }
}

impl Program {
    /// Where it is.
    pub fn path(self, programs: &TwoPhasePrograms) -> &Path {
        match self {
            Program::Nbdkit => &programs.nbdkit,
            Program::QemuNbd => &programs.qemu_nbd,
            Program::Ssh => Path::new("ssh"),
        }
    }
}

impl Export {
    /// Which program serves it.
    pub fn program(&self) -> Program {
        match self {
            Export::Vddk { .. } | Export::Ssh { .. } | Export::File { .. } => Program::Nbdkit,
            Export::Image { .. } => Program::QemuNbd,
            Export::Tunnel { .. } => Program::Ssh,
        }
    }

    /// The disk as its owner knows it, for sentences.
    pub fn disk(&self) -> String {
        match self {
            Export::Vddk { file, .. } => file.clone(),
            Export::Tunnel { disk, .. } => disk.clone(),
            Export::Ssh { path, .. } => path.clone(),
            Export::File { path } | Export::Image { path, .. } => path.display().to_string(),
        }
    }
}
