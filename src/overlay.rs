//! Overlays: a qcow2 image over each copied disk, so that a conversion which fails or is killed leaves the copies as
//! they were (peers.md 6.3, rows 16-18). An edge: it runs qemu-img.
//!
//! [`create`] makes them, virt-v2v-in-place writes into them, [`commit`] writes what it wrote into the copies. A commit
//! takes nothing out of the overlay (`-d`), so that it can be repeated from the start after a kill at any moment, with
//! the same result: that is what makes the end of a two-phase job replayable, and [`adopt`] is how a later start takes
//! the overlays over. When each of these happens, and what the journal says of it, is [`crate::in_place`]'s.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::Placed;
use crate::plan::{DiskFormat, TwoPhasePrograms};
use crate::process::Exit;
use crate::qemu_img::{self, Ended, Health};

mod percents;

use percents::Percents;

/// Bytes by which an overlay grows at a time: some clusters and what counts them.
const MOST_GROWTH: u64 = 1 << 20;

/// An overlay over a copied disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The disk, from 0, in the order of the guest.
    pub disk: usize,
    /// The qcow2 file.
    pub path: PathBuf,
    /// The copy under it.
    pub base: Placed,
}

impl Overlay {
    /// Named by number: names of guests may hold anything.
    pub fn new(disk: usize, base: &Placed, directory: &Path) -> Self {
        Self { disk, path: directory.join(format!("disk-{}.qcow2", disk + 1)), base: base.clone() }
    }

    /// Arguments of the qemu-img that makes it.
    pub fn create_args(&self) -> Vec<OsString> {
        let mut args = words(&["create", "-q", "-f", "qcow2", "-F", self.base.format.as_str(), "-b"]);
        args.extend([self.base.path.clone().into(), self.path.clone().into()]);
        args
    }

    /// Arguments of the qemu-img that commits it.
    pub fn commit_args(&self) -> Vec<OsString> {
        let mut args = words(&["commit", "-d", "-p", "-f", "qcow2"]);
        args.push(self.path.clone().into());
        args
    }

    /// As virt-v2v-in-place sees it.
    pub fn placed(&self) -> Placed {
        Placed { path: self.path.clone(), format: DiskFormat::Qcow2 }
    }
}

/// What went wrong with an overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// qemu reads other names as URLs, options or JSON, and virt-v2v reads the overlay's name in XML.
    #[error(
        "{path} cannot be the name of a disk image here: it must be absolute, and text without control characters"
    )]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// The directory of the overlays, or one of them.
    #[error(
        "cannot make the overlay directory {path}; set tmp_dir in the site configuration to a directory with room"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// qemu-img did not start.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// qemu-img failed.
    #[error("qemu-img could not {what} {path}: {said}")]
    Tool {
        /// `create`, `commit`, ...
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// How it ended.
        exit: Exit,
        /// Its last words, or how it ended.
        said: String,
    },
    /// An overlay of an earlier start is not the one that is missing.
    #[error(
        "the overlay {path} lies over {found}, not over {base}: without its own copies the conversion cannot be \
         finished; start the job without resume"
    )]
    OtherBase {
        /// The overlay.
        path: PathBuf,
        /// What it is over, as it says itself.
        found: String,
        /// What was expected.
        base: PathBuf,
    },
    /// A copy cannot be trusted any more.
    #[error("the copied disk {path} is damaged, copy it again: {said}")]
    Damaged {
        /// The copy.
        path: PathBuf,
        /// What `qemu-img check` said.
        said: String,
    },
    /// Data that must be on disk before the job goes on are not.
    #[error("cannot write {path} to disk")]
    Sync {
        /// The overlay, its directory or the copy.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes `directory`, which must not be there, and in it one overlay for each of `bases`. These are only read until
/// [`commit`].
pub async fn create(
    programs: &TwoPhasePrograms,
    tag: &str,
    bases: &[Placed],
    directory: &Path,
) -> Result<Vec<Overlay>, OverlayError> {
    bases.iter().map(|base| base.path.as_path()).chain([directory]).try_for_each(check_name)?;
    DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(|source| OverlayError::Directory { path: directory.to_owned(), source })?;
    let mut overlays = Vec::with_capacity(bases.len());
    for (disk, base) in bases.iter().enumerate() {
        let overlay = Overlay::new(disk, base, directory);
        let ended = run(programs, tag, overlay.create_args(), |_| ()).await?;
        succeeded("create", &overlay.path, ended)?;
        overlays.push(overlay);
    }
    Ok(overlays)
}

/// Takes over the overlays that an earlier start left in `directory`, after looking at each that they lie over these
/// `bases`, and that a kill in the middle of a commit did not damage the copy's own format. `committed` says of which
/// disks neither matters any more.
pub async fn adopt(
    programs: &TwoPhasePrograms,
    tag: &str,
    bases: &[Placed],
    directory: &Path,
    committed: impl Fn(usize) -> bool,
) -> Result<Vec<Overlay>, OverlayError> {
    let mut overlays = Vec::with_capacity(bases.len());
    for (disk, base) in bases.iter().enumerate() {
        let overlay = Overlay::new(disk, base, directory);
        if !committed(disk) {
            check_base(programs, tag, &overlay).await?;
            check_copy(programs, tag, base).await?;
        }
        overlays.push(overlay);
    }
    Ok(overlays)
}

/// Puts overlays and their directory on disk: from then on a crash of the host loses none of the conversion.
pub async fn sync(overlays: &[Overlay]) -> Result<(), OverlayError> {
    for overlay in overlays {
        sync_file(&overlay.path).await?;
    }
    match overlays.first().and_then(|overlay| overlay.path.parent()) {
        Some(directory) => sync_file(directory).await,
        None => Ok(()),
    }
}

/// Writes what an overlay holds into its base, and waits until that is on disk. `progress` is told percentages, 0 to 100,
/// never falling. May be repeated, also after it was killed. Dropped, it kills qemu-img.
pub async fn commit(
    programs: &TwoPhasePrograms,
    tag: &str,
    overlay: &Overlay,
    mut progress: impl FnMut(f64),
) -> Result<(), OverlayError> {
    let mut percents = Percents::default();
    let ended =
        run(programs, tag, overlay.commit_args(), |bytes| percents.feed(bytes, &mut progress)).await?;
    succeeded("commit", &overlay.path, ended)?;
    sync_file(&overlay.base.path).await
}

/// Is there no room for an overlay to grow?
pub fn is_full(directory: &Path) -> bool {
    nix::sys::statvfs::statvfs(directory).is_ok_and(|disk| {
        let root = nix::unistd::geteuid().is_root();
        let blocks = if root { disk.blocks_free() } else { disk.blocks_available() };
        blocks.saturating_mul(disk.fragment_size()) < MOST_GROWTH
    })
}

/// Removes a directory of overlays, whatever is in it.
pub fn remove(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An absolute name is a file to qemu, whatever is in it: only before the first slash could stand `nbd:` or `json:`.
fn check_name(path: &Path) -> Result<(), OverlayError> {
    let text = path.to_str().is_some_and(|text| !text.chars().any(char::is_control));
    if path.is_absolute() && text { Ok(()) } else { Err(OverlayError::Name { path: path.to_owned() }) }
}

/// What `qemu-img info --output=json` says of an overlay.
#[derive(Deserialize)]
struct Info {
    #[serde(rename = "full-backing-filename")]
    backing: Option<String>,
    #[serde(rename = "backing-filename-format")]
    format: Option<String>,
}

async fn check_base(programs: &TwoPhasePrograms, tag: &str, overlay: &Overlay) -> Result<(), OverlayError> {
    let mut args = words(&["info", "--output=json", "-f", "qcow2"]);
    args.push(overlay.path.clone().into());
    let mut json = Vec::new();
    let ended = run(programs, tag, args, |bytes| json.extend_from_slice(bytes)).await?;
    succeeded("read", &overlay.path, ended)?;
    let info: Option<Info> = serde_json::from_slice(&json).ok();
    let other = |found: String| OverlayError::OtherBase {
        path: overlay.path.clone(),
        found,
        base: overlay.base.path.clone(),
    };
    let Some(Info { backing: Some(backing), format }) = info else {
        return Err(other("nothing".to_owned()));
    };
    let same_file = match (Path::new(&backing).canonicalize(), overlay.base.path.canonicalize()) {
        (Ok(one), Ok(two)) => one == two,
        _ => false,
    };
    if same_file && format.as_deref() == Some(overlay.base.format.as_str()) {
        return Ok(());
    }
    Err(other(format!("{backing} ({})", format.as_deref().unwrap_or("of unknown format"))))
}

/// A commit that was killed may have damaged the copy's own format.
async fn check_copy(programs: &TwoPhasePrograms, tag: &str, base: &Placed) -> Result<(), OverlayError> {
    let checked = qemu_img::check(&programs.qemu_img, tag, &base.path, base.format).await;
    match checked.map_err(|source| start_error(programs, source))? {
        Health::Sound => Ok(()),
        Health::Damaged(said) => Err(OverlayError::Damaged { path: base.path.clone(), said }),
        Health::Unknown(ended) => succeeded("check", &base.path, ended),
    }
}

async fn run(
    programs: &TwoPhasePrograms,
    tag: &str,
    args: Vec<OsString>,
    stdout: impl FnMut(&[u8]),
) -> Result<Ended, OverlayError> {
    let ended = qemu_img::run(&programs.qemu_img, tag, args, stdout).await;
    ended.map_err(|source| start_error(programs, source))
}

fn start_error(programs: &TwoPhasePrograms, source: std::io::Error) -> OverlayError {
    OverlayError::Start { program: programs.qemu_img.clone(), source }
}

fn succeeded(what: &'static str, path: &Path, ended: Ended) -> Result<(), OverlayError> {
    match ended {
        Ended { exit: Exit::Code(0), .. } => Ok(()),
        Ended { exit, said } => Err(OverlayError::Tool { what, path: path.to_owned(), exit, said }),
    }
}

/// On a thread of its own: it may take as long as the disk likes, and the job must go on hearing signals.
async fn sync_file(path: &Path) -> Result<(), OverlayError> {
    let owned = path.to_owned();
    let synced = tokio::task::spawn_blocking(move || File::open(owned)?.sync_all()).await;
    let error = |source| OverlayError::Sync { path: path.to_owned(), source };
    synced.map_err(|join| error(std::io::Error::other(join)))?.map_err(error)
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests;
