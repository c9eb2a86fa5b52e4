//! Guests made of files of this host, opened for the copy engine: images, a libvirt XML, a vmx file. An edge.
//!
//! What the guest is comes from the pure parsers; here the images are looked for, and it is decided by what each is
//! served. OVAs are [`super::ova`]'s.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::image::{self, Asker, Chain, ImageError};
use super::local::{self, ImageFormat};
use super::ova::{self, OvaError};
use super::{Opened, SourceDisk};
use crate::export::Export;
use crate::guest::Disk;
use crate::libvirt::{self, LibvirtError};
use crate::plan::LocalSource;
use crate::vmx::{self, Vmx, VmxError};
use crate::xml::{self, XmlError};

/// The page cache makes larger reads no faster, and two of them wait for each other longer.
const READ_SIZE: u32 = 2 << 20;
/// As many as a disk of this host answers at a time with profit.
const CONNECTIONS: usize = 4;

/// A guest that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// An image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image that its owner names.
    #[error("a disk named by {of} cannot be used")]
    ImageOf {
        /// The vmx or XML file.
        of: PathBuf,
        /// Which image, and why.
        source: ImageError,
    },
    /// The file that describes the guest.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no description.
    #[error("{path} is larger than {limit} bytes: that is no description of a virtual machine")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it may have.
        limit: u64,
    },
    /// A libvirt XML.
    #[error("cannot use {path}")]
    Libvirt {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LibvirtError,
    },
    /// A vmx file.
    #[error("cannot use {path}")]
    Vmx {
        /// The file.
        path: PathBuf,
        /// Why.
        source: VmxError,
    },
    /// A vmx file without disks.
    #[error("{path} names no disk that is present")]
    NoDisk {
        /// The file.
        path: PathBuf,
    },
    /// The machine seems to run (contract.md 6.3).
    #[error(
        "Cannot perform final copy for running VM: {lock} says that it is powered on; shut it down and start again. If it \
         is off (its host died), remove that file"
    )]
    Locked {
        /// VMware's lock.
        lock: PathBuf,
    },
    /// A disk of a vmx that is no vmdk.
    #[error("{disk}, named by {of}, is not a vmdk image")]
    NotVmdk {
        /// The image.
        disk: PathBuf,
        /// The vmx file.
        of: PathBuf,
    },
    /// An OVA.
    #[error(transparent)]
    Ova(#[from] OvaError),
}

/// Opens a local guest under the name `vm_name`.
pub async fn open(source: &LocalSource, vm_name: &str, asker: Asker<'_>) -> Result<Opened, FilesError> {
    match source {
        LocalSource::Disk(path) => images(std::slice::from_ref(path), vm_name, asker).await,
        LocalSource::Disks(paths) => images(paths, vm_name, asker).await,
        LocalSource::LibvirtXml(path) => libvirt_xml(path, vm_name, asker).await,
        LocalSource::Vmx(path) => vmx(path, vm_name, asker).await,
        LocalSource::Ova(path) => Ok(ova::open(path, vm_name, asker).await?),
    }
}

/// Images that nobody described: the guest that [`local::libvirt_xml`] words.
async fn images(paths: &[PathBuf], vm_name: &str, asker: Asker<'_>) -> Result<Opened, FilesError> {
    let (mut guest, mut disks) = (local::guest(vm_name), Vec::new());
    for (index, path) in paths.iter().enumerate() {
        let format = image::sniff(path)?;
        let mut disk = Disk {
            path: path.display().to_string(),
            label: format!("Hard disk {}", index + 1),
            ..Disk::default()
        };
        disks.push(serve(&mut disk, path, format, asker).await?);
        guest.disks.push(disk);
    }
    Ok(Opened { guest, disks, domain: None, warnings: Vec::new() })
}

async fn libvirt_xml(path: &Path, vm_name: &str, asker: Asker<'_>) -> Result<Opened, FilesError> {
    let error = |source| FilesError::Libvirt { path: path.to_owned(), source };
    let bytes = read(path, xml::MAX_BYTES)?;
    let text = xml::decode(&bytes).map_err(|source: XmlError| error(source.into()))?;
    let libvirt::Domain { mut guest, images } = libvirt::read(&text, vm_name).map_err(error)?;
    let mut disks = Vec::new();
    for (disk, image) in guest.disks.iter_mut().zip(&images) {
        let file = beside(path, &image.path);
        let of = |source| FilesError::ImageOf { of: path.to_owned(), source };
        let format = match image.format {
            Some(format) => format,
            None => image::sniff(&file).map_err(of)?,
        };
        disks.push(serve(disk, &file, format, asker).await.map_err(of)?);
        disk.path = file.display().to_string();
    }
    Ok(Opened { guest, disks, domain: Some(text), warnings: Vec::new() })
}

async fn vmx(path: &Path, vm_name: &str, asker: Asker<'_>) -> Result<Opened, FilesError> {
    let error = |source| FilesError::Vmx { path: path.to_owned(), source };
    let bytes = read(path, vmx::MAX_BYTES as u64)?;
    // Beside the vmx of a machine that is powered on, wherever it is.
    let lock = PathBuf::from([path.as_os_str(), ".lck".as_ref()].into_iter().collect::<OsString>());
    if lock.symlink_metadata().is_ok() {
        return Err(FilesError::Locked { lock });
    }
    let mut guest = Vmx::parse(&bytes).and_then(|vmx| vmx.guest(vm_name)).map_err(error)?;
    if guest.disks.is_empty() {
        return Err(FilesError::NoDisk { path: path.to_owned() });
    }
    let mut disks = Vec::new();
    for disk in &mut guest.disks {
        let file = beside(path, Path::new(&disk.path));
        let of = |source| FilesError::ImageOf { of: path.to_owned(), source };
        // Never raw: a flat file served as the disk is right by luck only, and a damaged image never.
        if image::sniff(&file).map_err(of)? != ImageFormat::Vmdk {
            return Err(FilesError::NotVmdk { disk: file, of: path.to_owned() });
        }
        disks.push(serve(disk, &file, ImageFormat::Vmdk, asker).await.map_err(of)?);
        disk.path = file.display().to_string();
    }
    Ok(Opened { guest, disks, domain: None, warnings: Vec::new() })
}

/// A name in a file is relative to the file.
fn beside(description: &Path, name: &Path) -> PathBuf {
    description.parent().map_or_else(|| name.to_owned(), |directory| directory.join(name))
}

/// An image made ready to be served; its size goes into `disk`.
async fn serve(
    disk: &mut Disk,
    path: &Path,
    format: ImageFormat,
    asker: Asker<'_>,
) -> Result<SourceDisk, ImageError> {
    let looked = image::look(asker, path, format, None, Chain::Followed).await?;
    disk.size = Some(looked.size);
    Ok(source_disk(image::export(path, format, None), path, looked.mark))
}

/// A disk of this host.
pub(super) fn source_disk(export: Export, path: &Path, mark: Option<String>) -> SourceDisk {
    SourceDisk {
        export,
        absolute_path: Some(path.display().to_string()),
        mark,
        read_size: READ_SIZE,
        connections: CONNECTIONS,
    }
}

/// A whole file, if it is not larger than `limit`.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FilesError> {
    let error = |source| FilesError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(error)?;
    if bytes.len() as u64 > limit {
        return Err(FilesError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
