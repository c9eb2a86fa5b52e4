//! A round of copying: source, target and ledger of every disk opened, then all copied side by side.
//!
//! Called by [`crate::two_phase`] for the one round of a machine that is off, and by [`crate::warm`] for each of a machine
//! that runs; what happens to one disk is [`crate::copy`]'s. It changes nothing but targets and ledgers, and tells what it
//! does through a channel.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc::UnboundedSender;

use super::earlier;
use crate::copy::ledger::{Identity, Ledger, LedgerError};
use crate::copy::reader::{Patience, ReadError, Reader, Serving};
use crate::copy::target::file::{Allocation, FileTarget};
use crate::copy::target::nbd_image::{Image, NbdTarget};
use crate::copy::target::{Target, TargetError};
use crate::copy::{self, CopyError, Shared, Told};
use crate::domain::Placed;
use crate::event::Event;
use crate::export::{Files, Filters};
use crate::job::Job;
use crate::phase::DiskPhase;
use crate::plan::{DiskFormat, TwoPhase};
use crate::source::slots::{self, SlotError, Slots};
use crate::source::{self, Opened, SourceError};

mod one;
mod round;
mod side_by_side;

use one::{One, Room};
pub(crate) use round::{Round, What};

/// Memory for data, over all disks of a job. With it a job stays under 256 MiB whatever the size of its disks.
const MEMORY: usize = 96 << 20;

/// The copies did not all succeed.
#[derive(Debug, thiserror::Error)]
pub enum CopiesError {
    /// One disk.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The copies of the earlier job are of something else.
    #[error("resume: {what}: {copied} was copied, and now there is {found}; start the job without resume")]
    Other {
        /// What differs.
        what: &'static str,
        /// What the copies are of.
        copied: String,
        /// What there is now.
        found: String,
    },
    /// It cannot be asked whether the disks changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The readers of a host cannot be counted.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// A disk changed while it was copied.
    #[error(
        "{disk} changed while it was copied (before: {before}, now: {now}): switch the machine off and start the job \
         again"
    )]
    Changed {
        /// The disk.
        disk: String,
        /// Its mark before.
        before: String,
        /// Its mark now.
        now: String,
    },
}

impl From<ReadError> for CopiesError {
    fn from(error: ReadError) -> Self {
        Self::Copy(error.into())
    }
}

impl From<TargetError> for CopiesError {
    fn from(error: TargetError) -> Self {
        Self::Copy(error.into())
    }
}

impl From<LedgerError> for CopiesError {
    fn from(error: LedgerError) -> Self {
        Self::Copy(error.into())
    }
}

/// A round that is to be copied.
pub(crate) struct Copies<'a> {
    pub(crate) job: &'a Job,
    pub(crate) two_phase: &'a TwoPhase,
    pub(crate) private: &'a Path,
    /// Of the ledgers.
    pub(crate) directory: &'a Path,
    pub(crate) opened: &'a Opened,
    pub(crate) placed: &'a [Placed],
    pub(crate) tell: UnboundedSender<Event>,
    pub(crate) round: &'a Round,
}

impl Copies<'_> {
    /// As many readers as the host of the disks bears, over all jobs.
    async fn take_slots(&self) -> Result<Option<Slots>, CopiesError> {
        let disks = &self.opened.disks;
        let Some(host) = disks.iter().find_map(|disk| slots::host(&disk.export)) else { return Ok(None) };
        let waiting = || {
            let what = format!("{host}: other jobs read as many disks of it as it bears");
            self.say(Event::WaitingFor { what: Some(what) });
        };
        let taken = slots::take(&self.job.files.hosts(), host, disks.len(), waiting).await?;
        self.say(Event::WaitingFor { what: None });
        Ok(Some(taken))
    }

    fn say(&self, event: Event) {
        // The other end is only gone when the stage is over.
        drop(self.tell.send(event));
    }

    fn enter(&self, disk: usize, phase: DiskPhase) {
        self.say(Event::DiskEntered { disk, phase });
    }

    fn reader(&self, filters: Filters, disk: usize, read_size: Rc<Cell<u32>>) -> Reader {
        let source = &self.opened.disks[disk];
        let serving = Serving {
            program: source.export.program().path(&self.two_phase.programs).to_owned(),
            tag: self.job.files.tag.clone(),
            export: source.export.clone(),
            filters,
            library_path: std::env::var_os("LD_LIBRARY_PATH"),
            private: self.private.to_owned(),
            number: disk as u32,
            connections: NonZeroUsize::new(source.connections).unwrap_or(NonZeroUsize::MIN),
        };
        let tools = &self.job.plan.tools;
        Reader::new(serving, Patience::default().times(|usual| tools.patience(usual)), read_size)
    }

    /// Source, target and ledger of one disk whose source is open.
    async fn prepare(
        &self,
        disk: usize,
        reader: Reader,
        size: u64,
        shared: &Shared,
    ) -> Result<Rc<copy::Job>, CopiesError> {
        let placed = &self.placed[disk];
        let identity = Identity {
            source: self.opened.guest.disks[disk].path.clone(),
            size,
            mark: self.opened.disks[disk].mark.clone(),
            target: placed.path.clone(),
            format: placed.format,
        };
        let told = self.opened.guest.disks[disk].size;
        if self.round.warm && told != Some(identity.size) {
            // What changed behind the end that vSphere tells would never be asked for.
            let bytes = |size: u64| format!("{size} bytes");
            return Err(CopiesError::Other {
                what: "the size of the disk differs",
                copied: bytes(told.unwrap_or_default()),
                found: bytes(identity.size),
            });
        }
        self.say(Event::DiskSized { disk, size: identity.size });
        let path = earlier::ledger(self.directory, disk);
        let kept = match path.exists() {
            true => Some(Ledger::open(&path)?).filter(earlier::has_finished),
            false => None,
        };
        let ledger = match kept {
            Some(ledger) => {
                same(ledger.identity(), &identity)?;
                if identity.mark.is_none() && !self.round.warm {
                    let text = format!(
                        "{}: nobody can tell whether it changed since it was copied: the machine must not have run \
                         meanwhile",
                        identity.source
                    );
                    self.say(Event::Warning { text });
                }
                ledger
            }
            None => Ledger::create(&path, identity)?,
        };
        let target = self.target(disk, &ledger).await?;
        let tell = self.tell.clone();
        Ok(Rc::new(copy::Job {
            reader,
            target,
            ledger,
            verify: self.two_phase.verify,
            resumed: !self.round.follows,
            shared: shared.clone(),
            tell: Box::new(move |news| drop(tell.send(event(disk, news)))),
        }))
    }

    /// The target of a disk: a new one, or the one of a ledger with finished chunks.
    async fn target(&self, disk: usize, ledger: &Ledger) -> Result<Target, CopiesError> {
        let Identity { target: path, size, format, .. } = ledger.identity().clone();
        let resumed = earlier::has_finished(ledger);
        let is_device = self.placed[disk].is_device();
        if !resumed && !is_device {
            // Of an interrupted job that had finished nothing: the journal says that the file is this job's.
            remove(&path)?;
        }
        let allocation = Allocation::of(self.job.plan.allocation.as_deref());
        match format {
            DiskFormat::Raw => {
                let made = move || match resumed || is_device {
                    true => FileTarget::open(&path, size, allocation),
                    false => FileTarget::create(&path, size, allocation),
                };
                Ok(Target::File(Arc::new(copy::target::blocking(made).await?)))
            }
            DiskFormat::Qcow2 => {
                let programs = &self.two_phase.programs;
                let image = Image { tag: &self.job.files.tag, path: &path, format };
                match resumed {
                    true => image.check(&programs.qemu_img).await?,
                    false => image.create(&programs.qemu_img, size, allocation).await?,
                }
                let files = Files::of_target(self.private, disk);
                let target = NbdTarget::open(&programs.qemu_nbd, image, files, size, !resumed);
                Ok(Target::Image(Box::new(target.await?)))
            }
        }
    }

    /// A disk that changed under the copy was not switched off.
    pub(crate) async fn compare_marks(&self) -> Result<(), CopiesError> {
        let now = source::marks(self.job, self.opened).await?;
        for ((disk, source), now) in self.opened.guest.disks.iter().zip(&self.opened.disks).zip(now) {
            if source.mark != now {
                let (before, now) = (shown(&source.mark), shown(&now));
                return Err(CopiesError::Changed { disk: disk.path.clone(), before, now });
            }
        }
        Ok(())
    }
}

fn shown(mark: &Option<String>) -> String {
    mark.clone().unwrap_or_else(|| "unknown".to_owned())
}

fn event(disk: usize, news: Told) -> Event {
    match news {
        Told::ToCopy(to_copy) => Event::RoundCounted { disk, to_copy },
        Told::Finished(copied) => Event::RoundAdvanced { disk, copied },
        Told::Waiting(what) => Event::WaitingFor { what },
        Told::Warning(text) => Event::Warning { text },
    }
}

/// Are the copies those of this disk as it is now?
fn same(copied: &Identity, found: &Identity) -> Result<(), CopiesError> {
    let path = |path: &PathBuf| path.display().to_string();
    let checks = [
        ("the disk is another one", copied.source.clone(), found.source.clone()),
        ("the size of the disk differs", copied.size.to_string(), found.size.to_string()),
        ("the disk changed since", shown(&copied.mark), shown(&found.mark)),
        ("the copy is to be elsewhere", path(&copied.target), path(&found.target)),
        ("the format differs", copied.format.as_str().to_owned(), found.format.as_str().to_owned()),
    ];
    match checks.into_iter().find(|(_, copied, found)| copied != found) {
        Some((what, copied, found)) => Err(CopiesError::Other { what, copied, found }),
        None => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), TargetError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TargetError::file("removing what was begun of", path, error))
        }
        _ => Ok(()),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| (since.as_secs_f64() * 1000.0).round() / 1000.0)
}
