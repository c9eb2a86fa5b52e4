//! One image of this host: what format it has, how large its content is, and whether it changed. An edge.
//!
//! qemu-img is asked about everything that has a format, under the options by which qemu-nbd will serve it, so both see
//! the same image. Called by [`super::files`] and [`super::ova`].

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::local::{self, ImageFormat};
use crate::export::argv::image_options;
use crate::export::{Export, Window};
use crate::json::one_line;
use crate::process::capture::{CaptureError, capture};
use crate::process::{Exit, Tool};

/// Opening an image reads its tables. A chain on a slow network store takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// What qemu-img may say of a chain: 1 KiB for each image, and for each piece of a split one.
const MOST_SAID: usize = 16 << 20;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is not there, or not for us.
    #[error("cannot read {path}")]
    Read {
        /// The image, or a file it stands on.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory, a pipe.
    #[error("{path} is not a file or a block device")]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// qemu-img was of no help.
    #[error("cannot ask {program} about {path}")]
    Ask {
        /// qemu-img.
        program: PathBuf,
        /// The image.
        path: PathBuf,
        /// Why.
        source: CaptureError,
    },
    /// qemu-img cannot open it.
    #[error("{path} cannot be opened: {said}")]
    Refused {
        /// The image.
        path: PathBuf,
        /// qemu-img's words.
        said: String,
    },
    /// Not the JSON that qemu-img prints.
    #[error("{program} said nothing sensible about {path}")]
    Answer {
        /// qemu-img.
        program: PathBuf,
        /// The image.
        path: PathBuf,
        /// Where it makes no sense.
        source: serde_json::Error,
    },
}

/// Whom to ask, and for which job.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// qemu-img.
    pub qemu_img: &'a Path,
    /// The job's tag.
    pub tag: &'a str,
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// Bytes of its content.
    pub size: u64,
    /// Size, time, device and inode of every file it is made of; `None` when one of them is no file, because then its
    /// content can change without a trace.
    pub mark: Option<String>,
    /// The image it stands on, as it names it.
    pub stands_on: Option<String>,
}

/// The format of an image that is a whole file or device.
pub fn sniff(path: &Path) -> Result<ImageFormat, ImageError> {
    beginning(path, None).map(|first| local::sniff(&first))
}

/// The first [`local::SNIFF_BYTES`] of an image.
pub fn beginning(path: &Path, window: Option<Window>) -> Result<Vec<u8>, ImageError> {
    let error = |source| ImageError::Read { path: path.to_owned(), source };
    let mut file = open(path)?.0;
    let (offset, size) = window.map_or((0, u64::MAX), |window| (window.offset, window.size));
    let mut first = Vec::new();
    file.seek(SeekFrom::Start(offset)).map_err(error)?;
    file.take(size.min(local::SNIFF_BYTES as u64)).read_to_end(&mut first).map_err(error)?;
    Ok(first)
}

/// By what an image is served.
pub fn export(path: &Path, format: ImageFormat, window: Option<Window>) -> Export {
    match (format, window) {
        (ImageFormat::Raw, None) => Export::File { path: path.to_owned() },
        _ => Export::Image { path: path.to_owned(), format, window },
    }
}

/// What an image may stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Whatever it names: its maker is trusted as its owner is ([`Export::Image`]).
    Followed,
    /// Nothing is opened but the image; [`Looked::stands_on`] tells whether it names something.
    Alone,
}

/// Looks at an image.
pub async fn look(
    asker: Asker<'_>,
    path: &Path,
    format: ImageFormat,
    window: Option<Window>,
    chain: Chain,
) -> Result<Looked, ImageError> {
    // Before qemu-img, which would wait for ever for a pipe's writer.
    let (mut file, data) = open(path)?;
    if let (ImageFormat::Raw, None) = (format, window) {
        let size = if data.is_file() { Ok(data.len()) } else { file.seek(SeekFrom::End(0)) };
        let size = size.map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
        return Ok(Looked { size, mark: mark(&data), stands_on: None });
    }
    drop(file);
    let images = ask(asker, path, image_options(path, format, window), chain).await?;
    let stands_on = images.first().and_then(|top| top.backing_filename.as_deref());
    Ok(Looked {
        size: images.first().map_or(0, |top| top.virtual_size),
        mark: chain_mark(path, window, &images),
        stands_on: stands_on.map(|name| one_line(name, 200)),
    })
}

async fn ask(
    asker: Asker<'_>,
    path: &Path,
    options: OsString,
    chain: Chain,
) -> Result<Vec<Info>, ImageError> {
    let program = || asker.qemu_img.to_owned();
    let mut tool = Tool::new(asker.qemu_img, asker.tag);
    tool.command().args(["info", "--output=json"]).env("LC_ALL", "C.UTF-8");
    if chain == Chain::Followed {
        tool.command().arg("--backing-chain");
    }
    tool.command().arg("--image-opts").arg(options);
    let captured = capture(tool, MOST_SAID, PATIENCE).await.map_err(|source| ImageError::Ask {
        program: program(),
        path: path.to_owned(),
        source,
    })?;
    if captured.exit != Exit::Code(0) {
        let said = captured.complaint();
        let said = said.strip_prefix("qemu-img: ").unwrap_or(&said).to_owned();
        return Err(ImageError::Refused { path: path.to_owned(), said });
    }
    let images = match chain {
        Chain::Followed => serde_json::from_slice(&captured.stdout),
        Chain::Alone => serde_json::from_slice(&captured.stdout).map(|image| vec![image]),
    };
    images.map_err(|source| ImageError::Answer { program: program(), path: path.to_owned(), source })
}

/// What `qemu-img info` says, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    filename: String,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Data {
    /// Of a vmdk.
    #[serde(default)]
    extents: Vec<Extent>,
    /// Of a qcow2 with its data outside.
    data_file: Option<String>,
}

#[derive(Deserialize)]
struct Extent {
    filename: String,
}

fn chain_mark(path: &Path, window: Option<Window>, chain: &[Info]) -> Option<String> {
    let mut files = vec![path.to_owned()];
    for (index, info) in chain.iter().enumerate() {
        // A window's own name is a `json:` of the file that is in the list already.
        if window.is_some() && index == 0 {
            continue;
        }
        let data = info.format_specific.as_ref().and_then(|specific| specific.data.as_ref());
        let extents = data.map(|data| data.extents.as_slice()).unwrap_or_default();
        files.push(PathBuf::from(&info.filename));
        files.extend(extents.iter().map(|extent| PathBuf::from(&extent.filename)));
        if let Some(outside) = data.and_then(|data| data.data_file.as_ref()) {
            // As the image names it: relative to the image.
            files.push(Path::new(&info.filename).with_file_name(outside));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    let marks = files.into_iter().filter(|file| seen.insert(file.clone()));
    // What is no path here (`json:`, `nbd:`) has no metadata, and no mark.
    let marks = marks.map(|file| mark(&std::fs::metadata(file).ok()?));
    marks.collect::<Option<Vec<String>>>().map(|marks| marks.join(", "))
}

fn mark(data: &Metadata) -> Option<String> {
    data.is_file().then(|| {
        format!("{} {}.{:09} {}:{}", data.len(), data.mtime(), data.mtime_nsec(), data.dev(), data.ino())
    })
}

/// Opens a file or a block device, and nothing that would wait.
fn open(path: &Path) -> Result<(File, Metadata), ImageError> {
    let error = |source| ImageError::Read { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(error)?;
    let data = file.metadata().map_err(error)?;
    let kind = data.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok((file, data))
    } else {
        Err(ImageError::Kind { path: path.to_owned() })
    }
}
