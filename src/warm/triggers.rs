//! What clients ask of a warm job by files beside its state file: `cutover`, `copy_trigger`, `pause_operations`
//! (contract.md 6.3, 9.5).
//!
//! An edge: looked at by [`super::wait`], cleared by [`crate::start`], made by the verbs ([`crate::cli`]) and by any
//! client with `touch`. Only plain files count. A link, a pipe or a directory of such a name is left alone.

use std::cell::Cell;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::job::JobFiles;

/// Content of a cutover file that also ends a pause.
const NOW: &str = "now";
/// Nobody needs more to say that.
const MOST: u64 = 64;

/// The files of one job.
#[derive(Debug)]
pub struct Triggers {
    cutover: Trigger,
    copy: Trigger,
    pause: Trigger,
}

/// What clients ask for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// No round is to begin.
    pub pause: bool,
    /// The last round is to begin.
    pub cutover: Option<Cutover>,
    /// A round is to begin.
    pub copy: bool,
}

/// How urgently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cutover {
    /// As soon as there is no pause.
    Asked,
    /// Also in a pause, which it ends.
    Now,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// It is made.
    Made,
    /// It was made before.
    Already,
}

impl Triggers {
    /// Of this job.
    pub fn of(files: &JobFiles) -> Self {
        Self {
            cutover: Trigger::new(files.cutover()),
            copy: Trigger::new(files.copy_trigger()),
            pause: Trigger::new(files.pause_operations()),
        }
    }

    /// Of the job whose state file this is.
    pub fn beside(state_file: &Path) -> Self {
        let directory = state_file.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new(".")).to_owned();
        Self::of(&JobFiles { tag: String::new(), log_directory: directory.clone(), directory })
    }

    /// Removes those of an earlier job in the same place (layout uci). For whoever holds the job's lock, before a client
    /// is told that the job runs.
    pub fn remove_stale(&self) -> std::io::Result<()> {
        for trigger in [&self.cutover, &self.copy, &self.pause] {
            let is_directory = trigger.path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            // A directory asks for nothing, and is not ours.
            if !is_directory {
                trigger.remove().map_err(|error| {
                    let path = trigger.path.display();
                    let text =
                        format!("cannot remove what a client asked of an earlier job: {path}: {error}");
                    std::io::Error::new(error.kind(), text)
                })?;
            }
        }
        Ok(())
    }

    /// What is asked for now.
    pub fn asked(&self) -> Asked {
        let cutover = self.cutover.is_there().then(|| match self.cutover.content().trim() {
            NOW => Cutover::Now,
            _ => Cutover::Asked,
        });
        Asked { pause: self.pause.is_there(), cutover, copy: self.copy.is_there() }
    }

    /// The cutover that was asked for begins.
    pub fn consume_cutover(&self) {
        self.cutover.consume();
    }

    /// The round that was asked for begins.
    pub fn consume_copy(&self) {
        self.copy.consume();
    }

    /// The pause is over although nobody ended it.
    pub fn consume_pause(&self) {
        self.pause.consume();
    }

    /// Asks for the last round. A request that is there is made more urgent, never less.
    pub fn request_cutover(&self, cutover: Cutover) -> std::io::Result<Requested> {
        match (self.asked().cutover, cutover) {
            (Some(Cutover::Now), _) | (Some(Cutover::Asked), Cutover::Asked) => Ok(Requested::Already),
            (_, Cutover::Now) => self.cutover.make(NOW),
            (None, Cutover::Asked) => self.cutover.make(""),
        }
    }

    /// Asks for a round.
    pub fn request_copy(&self) -> std::io::Result<Requested> {
        if self.copy.is_there() { Ok(Requested::Already) } else { self.copy.make("") }
    }

    /// Asks for a pause.
    pub fn request_pause(&self) -> std::io::Result<Requested> {
        if self.pause.is_there() { Ok(Requested::Already) } else { self.pause.make("") }
    }

    /// Ends a pause; [`Requested::Already`] when there is none.
    pub fn end_pause(&self) -> std::io::Result<Requested> {
        if !self.pause.is_there() {
            return Ok(Requested::Already);
        }
        self.pause.remove().map(|()| Requested::Made)
    }
}

/// One file.
#[derive(Debug)]
struct Trigger {
    path: PathBuf,
    /// One that was consumed and could not be removed: it counts once.
    spent: Cell<Option<Stamp>>,
}

/// Tells one request from another: a `touch` of the same file is a new one.
type Stamp = (u64, u64, u64, i64, i64);

impl Trigger {
    fn new(path: PathBuf) -> Self {
        Self { path, spent: Cell::new(None) }
    }

    fn stamp(&self) -> Option<Stamp> {
        let meta = self.path.symlink_metadata().ok().filter(|meta| meta.is_file())?;
        Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    fn is_there(&self) -> bool {
        self.stamp().is_some_and(|stamp| self.spent.get() != Some(stamp))
    }

    /// Of a file that cannot be read it is as good as empty.
    fn content(&self) -> String {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut bytes = Vec::new();
        let read = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&self.path)
            .and_then(|file: File| file.take(MOST).read_to_end(&mut bytes));
        if let Err(error) = read {
            tracing::warn!("{} cannot be read ({error}): taken for an empty file", self.path.display());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn consume(&self) {
        let stamp = self.stamp();
        if let Err(error) = self.remove() {
            tracing::warn!("{} was obeyed and could not be removed: {error}", self.path.display());
            self.spent.set(stamp);
        }
    }

    /// Unlinking follows no link.
    fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// In one step: whoever sees the file sees all of it. A link of that name is replaced, not followed.
    fn make(&self, content: &str) -> std::io::Result<Requested> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".trigger.").tempfile_in(directory)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(content.as_bytes())?;
        file.persist(&self.path).map_err(|persist| persist.error)?;
        Ok(Requested::Made)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const NAMES: [&str; 3] = ["cutover", "copy_trigger", "pause_operations"];

    fn place() -> (tempfile::TempDir, Triggers) {
        let directory = tempfile::tempdir().unwrap();
        let triggers = Triggers::beside(&directory.path().join("state.json"));
        (directory, triggers)
    }

    const NOTHING: Asked = Asked { pause: false, cutover: None, copy: false };

    #[test]
    fn each_file_asks_for_one_thing_and_is_consumed_once() {
        let (directory, triggers) = place();
        let path = |name: &str| directory.path().join(name);
        assert_eq!(triggers.asked(), NOTHING);
        let consume: [fn(&Triggers); 3] =
            [Triggers::consume_cutover, Triggers::consume_copy, Triggers::consume_pause];
        for (name, content, asked, consume) in [
            ("cutover", "", Asked { cutover: Some(Cutover::Asked), ..NOTHING }, consume[0]),
            ("cutover", "now", Asked { cutover: Some(Cutover::Now), ..NOTHING }, consume[0]),
            ("cutover", " now\n", Asked { cutover: Some(Cutover::Now), ..NOTHING }, consume[0]),
            ("cutover", "nowhere", Asked { cutover: Some(Cutover::Asked), ..NOTHING }, consume[0]),
            ("cutover", "\u{0}\u{7f}", Asked { cutover: Some(Cutover::Asked), ..NOTHING }, consume[0]),
            ("copy_trigger", "now", Asked { copy: true, ..NOTHING }, consume[1]),
            ("pause_operations", "", Asked { pause: true, ..NOTHING }, consume[2]),
        ] {
            fs::write(path(name), content).unwrap();
            assert_eq!(triggers.asked(), asked, "{name} {content:?}");
            consume(&triggers);
            assert_eq!(triggers.asked(), NOTHING, "{name} {content:?}");
            assert!(!path(name).exists(), "{name}");
            // Asked again, it counts again; consumed without having been asked for, nothing happens.
            consume(&triggers);
            fs::write(path(name), content).unwrap();
            assert_eq!(triggers.asked(), asked, "{name} {content:?}, again");
            consume(&triggers);
        }
    }

    #[test]
    fn what_an_earlier_job_was_asked_for_is_gone_and_what_it_points_to_is_not() {
        let (directory, triggers) = place();
        let path = |name: &str| directory.path().join(name);
        triggers.remove_stale().unwrap();
        fs::write(path("target"), "kept").unwrap();
        fs::write(path("cutover"), "now").unwrap();
        symlink(path("target"), path("copy_trigger")).unwrap();
        symlink(path("nowhere"), path("pause_operations")).unwrap();
        triggers.remove_stale().unwrap();
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["target"]);
        assert_eq!(fs::read_to_string(path("target")).unwrap(), "kept");
    }

    #[test]
    fn what_is_no_plain_file_asks_for_nothing_and_breaks_nothing() {
        let (directory, triggers) = place();
        for name in NAMES {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("kept"), "").unwrap();
        }
        triggers.remove_stale().unwrap();
        assert_eq!(triggers.asked(), NOTHING);
        triggers.consume_cutover();
        triggers.consume_copy();
        triggers.consume_pause();
        for name in NAMES {
            let path = directory.path().join(name);
            assert!(path.join("kept").exists(), "{name}");
            fs::remove_dir_all(&path).unwrap();
            fs::write(directory.path().join("target"), "now").unwrap();
            symlink(directory.path().join("target"), &path).unwrap();
            assert_eq!(triggers.asked(), NOTHING, "{name}");
        }
    }

    /// Otherwise one `copy_trigger` would make rounds for ever.
    #[test]
    fn one_that_cannot_be_removed_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        // A directory in the place of the file makes removing fail for root as well; the stamp stands for the file's.
        let trigger = Trigger::new(directory.path().join("copy_trigger"));
        fs::write(&trigger.path, "").unwrap();
        assert!(trigger.is_there());
        trigger.spent.set(trigger.stamp());
        assert!(!trigger.is_there());
        fs::write(&trigger.path, "again").unwrap();
        assert!(trigger.is_there(), "a new request");
    }

    #[test]
    fn requests_are_made_once_whole_and_readable() {
        let (directory, triggers) = place();
        let path = |name: &str| directory.path().join(name);
        for (cutover, made, content) in [
            (Cutover::Asked, Requested::Made, ""),
            (Cutover::Asked, Requested::Already, ""),
            (Cutover::Now, Requested::Made, "now"),
            (Cutover::Now, Requested::Already, "now"),
            (Cutover::Asked, Requested::Already, "now"),
        ] {
            assert_eq!(triggers.request_cutover(cutover).unwrap(), made, "{cutover:?}");
            assert_eq!(fs::read_to_string(path("cutover")).unwrap(), content);
        }
        for expected in [Requested::Made, Requested::Already] {
            assert_eq!(triggers.request_pause().unwrap(), expected);
            assert_eq!(triggers.request_copy().unwrap(), expected);
        }
        for name in NAMES {
            assert_eq!(fs::metadata(path(name)).unwrap().permissions().mode() & 0o777, 0o644, "{name}");
        }
        for expected in [Requested::Made, Requested::Already] {
            assert_eq!(triggers.end_pause().unwrap(), expected);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file stays");
        // A link is replaced by the request.
        fs::write(path("target"), "kept").unwrap();
        symlink(path("target"), path("pause_operations")).unwrap();
        assert_eq!(triggers.request_pause().unwrap(), Requested::Made);
        assert!(triggers.asked().pause);
        assert_eq!(fs::read_to_string(path("target")).unwrap(), "kept");
        // A directory is in the way.
        fs::remove_file(path("copy_trigger")).unwrap();
        fs::create_dir(path("copy_trigger")).unwrap();
        assert!(triggers.request_copy().is_err());
    }
}
