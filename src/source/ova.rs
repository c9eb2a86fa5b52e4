//! OVAs, opened for the copy engine: an archive whose disks are served from where they lie, or its directory. An edge.
//!
//! Nothing is unpacked: an OVA has the size of its disks, and qemu reads a member of an uncompressed archive in place.
//! An OVA comes from somebody else. Its names stay inside it, and an image in it may stand on no other file: `/etc/shadow`
//! would make a fine base. Its manifest is not checked; what is read is compared with what was written, not with what
//! was exported.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::files::source_disk;
use super::image::{self, Asker, Chain, ImageError};
use super::local::ImageFormat;
use super::{Opened, SourceDisk};
use crate::export::Window;
use crate::guest::Disk;
use crate::json::one_line;
use crate::ovf::{self, Appliance, OvfError};
use crate::tar::{self, Member, TarError};
use crate::uri::percent_decode;
use crate::xml;

/// An OVA that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OvaError {
    /// The file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The OVA, or a file of its directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The archive.
    #[error("cannot use the OVA {path}")]
    Tar {
        /// The OVA.
        path: PathBuf,
        /// Why.
        source: TarError,
    },
    /// No descriptor, or several.
    #[error("{path} is no OVA of one virtual machine: {count} files in it end in .ovf")]
    Descriptors {
        /// The OVA.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// Its descriptor.
    #[error("cannot use {name} of the OVA {path}")]
    Ovf {
        /// The OVA.
        path: PathBuf,
        /// The descriptor.
        name: String,
        /// Why.
        source: OvfError,
    },
    /// A descriptor that no exporter wrote.
    #[error("{name} of the OVA {path} is larger than {} MiB", xml::MAX_BYTES >> 20)]
    TooLarge {
        /// The OVA.
        path: PathBuf,
        /// The descriptor.
        name: String,
    },
    /// A disk that is not there.
    #[error("the disk {name} is not in the OVA {path}: it was not exported or copied completely")]
    Missing {
        /// The OVA.
        path: PathBuf,
        /// The file that the descriptor names.
        name: String,
    },
    /// A disk that is there, but of no use.
    #[error("the disk {name} of the OVA {path} cannot be used: {why}")]
    Disk {
        /// The OVA.
        path: PathBuf,
        /// The file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A disk that qemu does not open.
    #[error("the disk {name} of the OVA {path} cannot be used")]
    Image {
        /// The OVA.
        path: PathBuf,
        /// The file.
        name: String,
        /// Why.
        source: ImageError,
    },
}

/// Opens an OVA under the name `vm_name`.
pub async fn open(path: &Path, vm_name: &str, asker: Asker<'_>) -> Result<Opened, OvaError> {
    let contents = Contents::of(path)?;
    let (descriptor, place) = contents.descriptor()?;
    let error = |source| OvaError::Ovf { path: path.to_owned(), name: descriptor.clone(), source };
    let text = xml::decode(&contents.read(&descriptor, place)?).map_err(|source| error(source.into()))?;
    let Appliance { mut guest, files } = ovf::read(&text, vm_name).map_err(error)?;
    let mut disks = Vec::new();
    for (disk, href) in guest.disks.iter_mut().zip(&files) {
        disks.push(contents.disk(disk, &descriptor, href, asker).await?);
    }
    Ok(Opened { guest, disks, domain: None, warnings: Vec::new() })
}

/// The files of an OVA by their names in it.
struct Contents {
    path: PathBuf,
    files: Vec<(String, Place)>,
}

/// Where a file of an OVA is.
#[derive(Clone, Copy)]
enum Place {
    /// In the archive.
    Member(Window),
    /// In the directory, under its name.
    File,
}

impl Contents {
    fn of(path: &Path) -> Result<Self, OvaError> {
        let error = |source| OvaError::Read { path: path.to_owned(), source };
        let files = if path.is_dir() {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(path).map_err(error)? {
                names.push(entry.map_err(error)?.file_name());
            }
            names.into_iter().filter_map(|name| Some((name.into_string().ok()?, Place::File))).collect()
        } else {
            let mut archive = File::open(path).map_err(error)?;
            let members = tar::members(&mut archive)
                .map_err(|source| OvaError::Tar { path: path.to_owned(), source })?;
            let place = |Member { name, offset, size }| (name, Place::Member(Window { offset, size }));
            members.into_iter().map(place).collect()
        };
        Ok(Self { path: path.to_owned(), files })
    }

    fn descriptor(&self) -> Result<(String, Place), OvaError> {
        let is_ovf = |name: &str| name.to_ascii_lowercase().ends_with(".ovf");
        let found: Vec<_> = self.files.iter().filter(|(name, _)| is_ovf(name)).collect();
        match found.as_slice() {
            [(name, place)] => Ok((name.clone(), *place)),
            _ => Err(OvaError::Descriptors { path: self.path.clone(), count: found.len() }),
        }
    }

    /// The file in which a place is.
    fn file(&self, name: &str, place: Place) -> (PathBuf, Option<Window>) {
        match place {
            Place::Member(window) => (self.path.clone(), Some(window)),
            Place::File => (self.path.join(name), None),
        }
    }

    fn read(&self, name: &str, place: Place) -> Result<Vec<u8>, OvaError> {
        let (path, window) = self.file(name, place);
        let error = |source| OvaError::Read { path: path.clone(), source };
        let mut file = File::open(&path).map_err(error)?;
        let size = window.map_or(u64::MAX, |window| window.size);
        file.seek(SeekFrom::Start(window.map_or(0, |window| window.offset))).map_err(error)?;
        let mut bytes = Vec::new();
        file.take(size.min(xml::MAX_BYTES + 1)).read_to_end(&mut bytes).map_err(error)?;
        if bytes.len() as u64 > xml::MAX_BYTES {
            return Err(OvaError::TooLarge { path: self.path.clone(), name: one_line(name, 200) });
        }
        Ok(bytes)
    }

    /// Finds the file that the descriptor names: beside the descriptor, as it stands there or without its escapes.
    fn find(&self, descriptor: &str, href: &str) -> Option<(String, Place)> {
        let directory = descriptor.rfind('/').map_or("", |slash| &descriptor[..=slash]);
        [Some(href.to_owned()), percent_decode(href)].into_iter().flatten().find_map(|name| {
            let name = format!("{directory}{}", name.strip_prefix("./").unwrap_or(&name));
            let listed = self.files.iter().find(|(listed, _)| *listed == name).cloned();
            listed.or_else(|| self.below(&name))
        })
    }

    /// A file of a directory further down, or nothing when the name or a link leads out of the directory.
    fn below(&self, name: &str) -> Option<(String, Place)> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let is_directory = self.path.is_dir();
        (inside && is_directory && self.path.join(name).is_file()).then(|| (name.to_owned(), Place::File))
    }

    async fn disk(
        &self,
        disk: &mut Disk,
        descriptor: &str,
        href: &str,
        asker: Asker<'_>,
    ) -> Result<SourceDisk, OvaError> {
        let (path, name) = (self.path.clone(), one_line(href, 200));
        let Some((found, place)) = self.find(descriptor, href) else {
            return Err(OvaError::Missing { path, name });
        };
        let (file, window) = self.file(&found, place);
        if window.is_none() && !is_inside(&file, &self.path) {
            let why = "it is a link to a file outside".to_owned();
            return Err(OvaError::Disk { path, name, why });
        }
        let image = |source| OvaError::Image { path: self.path.clone(), name: name.clone(), source };
        let format = self.format(&file, window, &found).map_err(image)?;
        let format = format.map_err(|why| OvaError::Disk { path: path.clone(), name: name.clone(), why })?;
        let window = match window.map(|window| whole_sectors(window, format)) {
            None => None,
            Some(Some(window)) => Some(window),
            Some(None) => {
                let why = "its size is not a multiple of 512 bytes: the export is damaged".to_owned();
                return Err(OvaError::Disk { path, name, why });
            }
        };
        let looked = image::look(asker, &file, format, window, Chain::Alone).await.map_err(image)?;
        if let Some(base) = looked.stands_on {
            let why = format!(
                "it stands on {base}, which is outside; export the virtual machine without snapshots"
            );
            return Err(OvaError::Disk { path, name, why });
        }
        disk.size = Some(looked.size);
        disk.path = self.path.join(&found).display().to_string();
        Ok(source_disk(image::export(&file, format, window), &self.path.join(&found), looked.mark))
    }

    /// The format of a disk, or why it is not read.
    fn format(
        &self,
        file: &Path,
        window: Option<Window>,
        name: &str,
    ) -> Result<Result<ImageFormat, String>, ImageError> {
        let first = image::beginning(file, window)?;
        let format = super::local::sniff(&first);
        let is_vmdk = name.to_ascii_lowercase().ends_with(".vmdk");
        Ok(if first.starts_with(&[0x1f, 0x8b]) {
            Err("it is compressed: unpack the OVA and the disk with `tar xf` and `gunzip`, and give the directory (its \
                 name must end in .ova)"
                .to_owned())
        } else if first.starts_with(b"# Disk DescriptorFile") {
            Err("it only describes a disk whose data are in other files; export the virtual machine again"
                .to_owned())
        } else if format == ImageFormat::Raw && is_vmdk {
            Err("it is not a vmdk image: the export is damaged".to_owned())
        } else {
            Ok(format)
        })
    }
}

/// qemu takes only windows of whole sectors. An archive fills the last one with zeros, which no format minds; a raw
/// disk would grow by them.
fn whole_sectors(window: Window, format: ImageFormat) -> Option<Window> {
    let size = window.size.checked_next_multiple_of(512)?;
    (size == window.size || format != ImageFormat::Raw).then_some(Window { size, ..window })
}

fn is_inside(file: &Path, directory: &Path) -> bool {
    let real = |path: &Path| path.canonicalize();
    matches!((real(file), real(directory)), (Ok(file), Ok(directory)) if file.starts_with(&directory))
}
