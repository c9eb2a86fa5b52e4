//! A guest on a host that is reached by ssh, opened for the copy engine: its vmx file fetched, its disks looked at.
//!
//! nbdkit's ssh plugin reads one file as it is, so a disk must be one flat file: what else a vmx may name (a snapshot's
//! delta, a raw device, a disk in pieces) is refused here, before anything is copied, because read as a flat file it
//! would be a wrong disk that looks right.

use super::client::{ClientError, Host, quote};
use super::running::{self, Power};
use crate::export::argv::flat_path;
use crate::export::{Export, Login};
use crate::guest::Disk;
use crate::source::{Opened, SourceDisk};
use crate::v2v::output::datastore_path;
use crate::vmdk::{self, Flat, VmdkError};
use crate::vmx::{self, Vmx, VmxError};

/// As through a vCenter (peers.md 6.3, row 23): sftp has at most 256 KiB in one message, so more gains nothing.
const READ_SIZE: u32 = 2 << 20;
/// Each is a login of its own, and an ESXi host admits few.
const CONNECTIONS: usize = 2;
/// Two numbers for each disk.
const MOST_STAT: usize = 64 << 10;

/// A guest of a host that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The host does not answer as wanted.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The vmx file.
    #[error("cannot use {path} of {host}")]
    Vmx {
        /// The host.
        host: String,
        /// The file.
        path: String,
        /// Why.
        source: VmxError,
    },
    /// A vmx file without disks.
    #[error("{path} of {host} names no disk that is present")]
    NoDisk {
        /// The host.
        host: String,
        /// The file.
        path: String,
    },
    /// A disk that is not one flat file. The source is part of the sentence.
    #[error("cannot copy {disk} of {host}")]
    Disk {
        /// The host.
        host: String,
        /// The disk.
        disk: String,
        /// Why.
        source: VmdkError,
    },
    /// A flat file that is not what its descriptor says.
    #[error(
        "{flat} of {host} has {found} bytes, but its descriptor says {expected}: the disk is damaged or being changed"
    )]
    Size {
        /// The host.
        host: String,
        /// The file.
        flat: String,
        /// Its bytes.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// Words where numbers should be.
    #[error("{host} answered stat for {flat} with \"{said}\"")]
    Stat {
        /// The host.
        host: String,
        /// The file.
        flat: String,
        /// Its answer.
        said: String,
    },
    /// The machine runs (contract.md 6.3).
    #[error(
        "Cannot perform final copy for running VM: {vmx} of {host} is powered on; shut it down and start again"
    )]
    Running {
        /// The host.
        host: String,
        /// The file.
        vmx: String,
    },
    /// The machine seems to run.
    #[error(
        "Cannot perform final copy for running VM: {vmx}.lck on {host} says that it is powered on; shut it down and start \
         again. If it is off (its host died), remove that file"
    )]
    Locked {
        /// The host.
        host: String,
        /// The file.
        vmx: String,
    },
}

/// Opens the guest of the vmx file `vmx` under the name `vm_name`.
pub async fn open(host: &Host, vmx: &str, vm_name: &str, tag: &str) -> Result<Opened, GuestError> {
    let named = || (host.host.clone(), vmx.to_owned());
    let bytes = host.run(tag, &format!("cat {}", quote(vmx)), &format!("read {vmx}"), vmx::MAX_BYTES).await?;
    let guest = Vmx::parse(&bytes).and_then(|vmx| vmx.guest(vm_name));
    let mut guest = guest.map_err(|source| GuestError::Vmx { host: named().0, path: named().1, source })?;
    if guest.disks.is_empty() {
        return Err(GuestError::NoDisk { host: named().0, path: named().1 });
    }
    let mut warnings = Vec::new();
    match running::ask(host, tag, vmx).await? {
        Power::Off => {}
        Power::On => return Err(GuestError::Running { host: named().0, vmx: named().1 }),
        Power::Locked => return Err(GuestError::Locked { host: named().0, vmx: named().1 }),
        Power::Unknown => warnings.push(format!(
            "{} cannot tell whether the virtual machine is powered off: a disk that is written to while it is copied \
             arrives damaged",
            host.host
        )),
    }
    let mut disks = Vec::new();
    for disk in &mut guest.disks {
        disks.push(open_disk(host, vmx, disk, tag).await?);
    }
    Ok(Opened { guest, disks, domain: None, warnings })
}

async fn open_disk(host: &Host, vmx: &str, disk: &mut Disk, tag: &str) -> Result<SourceDisk, GuestError> {
    let path = absolute(vmx, &disk.path);
    let command = format!("dd if={} bs={} count=1", quote(&path), vmdk::HEAD_BYTES);
    let head = host.run(tag, &command, &format!("read {path}"), vmdk::HEAD_BYTES).await?;
    let flat = flat_path(&path);
    let flat_name = flat.rsplit('/').next().unwrap_or(&flat);
    let Flat { size, uuid } = vmdk::flat(&head, flat_name).map_err(|source| GuestError::Disk {
        host: host.host.clone(),
        disk: datastore_path(&path),
        source,
    })?;
    let (found, mark) = stat(host, tag, &flat).await?;
    if found != size {
        return Err(GuestError::Size { host: host.host.clone(), flat, found, expected: size });
    }
    disk.path = datastore_path(&path);
    (disk.size, disk.uuid) = (Some(size), uuid);
    Ok(SourceDisk {
        export: Export::Ssh {
            host: host.host.clone(),
            port: host.port,
            user: host.user.clone(),
            path: path.clone(),
            login: Login::Agent(host.agent.clone()),
            known_hosts: host.known_hosts.clone(),
        },
        absolute_path: Some(path),
        mark: Some(mark),
        read_size: READ_SIZE,
        connections: CONNECTIONS,
    })
}

/// Size and time of the flat file of the disk whose descriptor is `path`.
pub async fn mark(host: &Host, tag: &str, path: &str) -> Result<String, GuestError> {
    Ok(stat(host, tag, &flat_path(path)).await?.1)
}

/// Size in bytes, and the mark.
async fn stat(host: &Host, tag: &str, flat: &str) -> Result<(u64, String), GuestError> {
    // GNU's and busybox's alike.
    let command = format!("stat -L -c '%s %Y' {}", quote(flat));
    let output = host.run(tag, &command, &format!("look at {flat}"), MOST_STAT).await?;
    let said = String::from_utf8_lossy(&output).trim().to_owned();
    let numbers = said.split_once(' ').and_then(|(size, time)| {
        time.parse::<i64>().ok()?;
        size.parse::<u64>().ok()
    });
    let said = crate::json::one_line(&said, 200);
    match numbers {
        Some(size) => Ok((size, said)),
        None => Err(GuestError::Stat { host: host.host.clone(), flat: flat.to_owned(), said }),
    }
}

/// A vmx names its disks relative to itself, or absolutely.
fn absolute(vmx: &str, name: &str) -> String {
    let directory = vmx.rfind('/').map_or("/", |slash| &vmx[..=slash]);
    if name.starts_with('/') { name.to_owned() } else { format!("{directory}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_lies_beside_its_vmx_or_where_it_says() {
        for (name, path) in [
            ("a b.vmdk", "/vmfs/volumes/ds/vm/a b.vmdk"),
            ("/vmfs/volumes/5d-1/x/y.vmdk", "/vmfs/volumes/5d-1/x/y.vmdk"),
            ("sub/y.vmdk", "/vmfs/volumes/ds/vm/sub/y.vmdk"),
        ] {
            assert_eq!(absolute("/vmfs/volumes/ds/vm/vm.vmx", name), path);
        }
    }
}
