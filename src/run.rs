//! The conductor: the worker's stages in order, and what is undone when one fails.
//!
//! Runs in the worker process, on its only thread. Stages report events to the [`Recorder`]; the last write of the
//! state is the last thing that happens here.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::convert::{Converted, Stopped, convert};
use crate::destination::{Handle, Selected};
use crate::event::Event;
use crate::job::Job;
use crate::journal::{Entry, Journal};
use crate::log::chain;
use crate::phase::Phase;
use crate::process::{self, Exit};
use crate::recorder::Recorder;
use crate::secret::Scrubber;
use crate::signals::Signals;
use crate::throttle::{Throttling, rate_file};
use crate::two_phase::{self, Desk};
use crate::v2v::args;
use crate::{daemon, journal, put_back, source, state_file, supervise, undo};

/// More than processors help while some wait for the disk.
const BLOCKING_THREADS: usize = 8;

/// From here on what was made is the user's.
pub const SUCCEEDED: Entry = Entry::Succeeded { return_code: 0 };

/// How the job ended: contract.md 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Converted.
    Done,
    /// virt-v2v (or a stage) failed.
    Failed,
    /// Cancelled by a signal, or never begun.
    Broken,
}

impl Outcome {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::Failed => 2,
            Outcome::Broken => 1,
        }
    }
}

/// The worker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The job handed over by the supervisor is not one.
    #[error("cannot read the job from the supervisor")]
    Job(#[source] serde_json::Error),
    /// An early I/O failure.
    #[error("cannot begin the job: {what}")]
    Begin {
        /// What failed.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The state file.
    #[error(transparent)]
    State(#[from] state_file::StateFileError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
    /// The log.
    #[error(transparent)]
    Log(#[from] crate::log::LogError),
}

/// Why a stage ended the job.
#[derive(Debug)]
pub struct Failure {
    message: String,
    outcome: Outcome,
    /// The user wants nothing of the job to stay.
    cancelled: bool,
}

impl Failure {
    /// A stage could not begin.
    pub fn broken(error: &dyn std::error::Error) -> Self {
        Self { message: chain(error), outcome: Outcome::Broken, cancelled: false }
    }

    /// A stage failed.
    pub fn failed(message: String) -> Self {
        Self { message, outcome: Outcome::Failed, cancelled: false }
    }

    /// The job was cancelled by this signal.
    pub fn cancelled(signal: i32) -> Self {
        let cancelled = signal != supervise::ORPHANED as i32;
        Self { message: supervise::cancelled_by(signal), outcome: Outcome::Broken, cancelled }
    }
}

/// The whole worker process. `sealed` is the job, `ready` the pipe on which it says that it runs.
pub fn worker(sealed: &[u8], ready: OwnedFd) -> Result<Outcome, RunError> {
    let job: Job = serde_json::from_slice(sealed).map_err(RunError::Job)?;
    crate::log::start(&job.files.wrapper_log(), Scrubber::new(job.plan.secrets()))?;
    // stderr is /dev/null here: without this a bug would leave no trace.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    let begin = |what| move |source| RunError::Begin { what, source };
    process::become_subreaper().map_err(|errno| begin("subreaper")(errno.into()))?;
    // Threads for what blocks (hashing, files) are made when they are needed, and only a two-phase job needs them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(begin("runtime"))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut signals = Signals::listen().map_err(begin("signals"))?;
        let state = state_file::read(&job.files.state())?;
        let mut recorder = Recorder::new(job.files.state(), state, Scrubber::new(job.plan.secrets()));
        let mut journal = Journal::open(&job.files.journal())?;
        recorder.apply(Event::Supervised { pid: nix::unistd::getppid().as_raw() });
        recorder.apply_first(Event::WorkerStarted { pid: nix::unistd::getpid().as_raw() });
        daemon::say_ready(ready).map_err(begin("say ready"))?;
        recorder.write_if_due();
        let mut desk = Desk { recorder: &mut recorder, journal: &mut journal, signals: &mut signals };
        let ended = match &job.plan.two_phase {
            Some(two_phase) => two_phase::conduct(&job, two_phase, &mut desk).await,
            None => one_phase(&job, &mut desk).await,
        };
        // Before what is left outside is put back, which takes its time: from here on nothing of the migration is missing, or
        // nothing of it is wanted.
        note_end(&ended, &mut journal);
        put_back::after(&job, &mut recorder, ended.is_ok()).await;
        Ok(close(&job, recorder, journal, ended))
    })
}

/// All stages of a one-phase job. On an error everything that ran is stopped and the destination is abandoned.
async fn one_phase(job: &Job, desk: &mut Desk<'_>) -> Result<(), Failure> {
    let destination = Selected::of(&job.plan);
    let (command_line, handle) = prepare(job, desk, &destination).await?;
    let Desk { recorder, journal, signals } = desk;
    let (mut throttling, limited) = Throttling::start(job);
    limited.into_iter().for_each(|event| recorder.apply(event));
    recorder.apply_now(Event::Entered(Phase::StartingVirtV2v));
    let converted = convert(job, command_line, recorder, journal, signals, &mut throttling).await;
    let succeeded = match converted {
        Ok(converted) => judge(converted),
        Err(error) => Err(Failure::broken(&error)),
    };
    if let Err(failure) = succeeded {
        destination.abandon(handle).await;
        return Err(failure);
    }
    let state = recorder.state().clone();
    match desk.at_destination(job, async |work| destination.finalize(handle, &state, work).await).await? {
        Ok(Some(id)) => desk.recorder.apply(Event::VmId { id }),
        Ok(None) => {}
        Err(error) => return Err(Failure::failed(chain(&error))),
    }
    Ok(())
}

/// Source and destination made ready, and the command line for what is between them.
async fn prepare(
    job: &Job,
    desk: &mut Desk<'_>,
    destination: &Selected,
) -> Result<(args::CommandLine, Handle), Failure> {
    let private = private_directory(job, desk.journal)?;
    let session = tokio::select! {
        opened = source::open(job, &private) => opened.map_err(|error| Failure::broken(&error))?,
        signal = desk.signals.cancelled() => return Err(Failure::cancelled(signal)),
    };
    let prepared = desk.at_destination(job, async |work| destination.prepare(work).await).await?;
    let handle = prepared.map_err(|error| Failure::broken(&error))?;
    let line = match (&job.plan.allocation, handle.allocation()) {
        (None, Some(allocation)) => {
            let mut job = job.clone();
            job.plan.allocation = Some(allocation.to_owned());
            command_line(&job, &private, &session)
        }
        _ => command_line(job, &private, &session),
    };
    Ok((line, handle))
}

/// How the virt-v2v of a one-phase job is run.
pub fn command_line(job: &Job, private: &Path, session: &source::Session) -> args::CommandLine {
    let bandwidth_file = rate_file::path(&job.plan, &job.capabilities, private).ok();
    let paths = args::Paths {
        machine_readable_log: &job.files.machine_readable_log(),
        libvirt_xml: &source::libvirt_xml(private),
        private_directory: private,
        bandwidth_file: bandwidth_file.as_deref(),
        ssh_auth_sock: session.ssh_auth_sock.as_deref(),
    };
    args::one_phase(&job.plan, &job.capabilities, paths)
}

/// The job's private directory, made.
pub fn private_directory(job: &Job, journal: &mut Journal) -> Result<PathBuf, Failure> {
    let path = job.files.private_directory(&job.plan.tools.tmp_dir);
    if path.symlink_metadata().is_ok() {
        // Not ours, so it must not get into the journal, whose undo would remove it.
        let message =
            format!("the private directory {} is there already: somebody else made it", path.display());
        return Err(Failure { message, outcome: Outcome::Broken, cancelled: false });
    }
    journal
        .record(&Entry::PrivateDirectory { path: path.clone() })
        .map_err(|error| Failure::broken(&error))?;
    // Not recursive: a directory that is already there was made by somebody else.
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(Failure {
            message: no_private_directory(&path, &error),
            outcome: Outcome::Broken,
            cancelled: false,
        }),
    }
}

/// Why a private directory cannot be made, and what to do about it.
pub fn no_private_directory(path: &Path, error: &std::io::Error) -> String {
    format!(
        "cannot create the private directory {}: {error}; set tmp_dir in the site configuration to a directory that exists \
         and is writable",
        path.display()
    )
}

/// What virt-v2v's end means.
pub fn judge(converted: Converted) -> Result<(), Failure> {
    let Converted { exit, stopped, evidence, .. } = converted;
    match (stopped, exit) {
        (_, Exit::Code(0)) => Ok(()),
        (Some(Stopped::Cancelled(signal)), _) => Err(Failure::cancelled(signal)),
        (Some(Stopped::NeverBooted(silence)), _) => Err(Failure::failed(format!(
            "virt-v2v's appliance said nothing for {} s after 'Opening the source': it does not boot. If /dev/kvm of this \
             host does not work, set libguestfs_backend_settings = \"force_tcg\" in the site configuration; run \
             libguestfs-test-tool to see more",
            silence.as_secs()
        ))),
        (Some(Stopped::NoRoom), _) => Err(Failure::failed(
            "The conversion host's temporary directory has no room left for what the conversion writes: free space \
             there, or name another one (tmp_dir of the site configuration)"
                .to_owned(),
        )),
        // A cancel like any other, and so nothing is kept for a later job; only the exit code is that of a failure.
        (Some(Stopped::Signalled(signal)), _) => Err(Failure {
            cancelled: true,
            ..Failure::failed(format!(
                "virt-v2v was stopped by signal {signal}: the conversion was cancelled and what it had begun undone"
            ))
        }),
        (None, exit) => Err(Failure::failed(evidence.sentence(exit))),
    }
}

/// How the job ended, for whoever undoes it. A journal that cannot say so is no reason to lose a guest that is converted.
fn note_end(ended: &Result<(), Failure>, journal: &mut Journal) {
    let last = match ended {
        Ok(()) => Some(SUCCEEDED),
        Err(failure) => failure.cancelled.then_some(Entry::Cancelled),
    };
    if let Some(Err(error)) = last.as_ref().map(|last| journal.record_once(last)) {
        tracing::error!("{}", chain(&error));
    }
}

/// The end of every job: leftovers killed, undone what must be, the final state written. The lock stays until the
/// supervisor has seen that all is well.
fn close(job: &Job, mut recorder: Recorder, mut journal: Journal, ended: Result<(), Failure>) -> Outcome {
    process::kill_all(process::descendants, std::time::Duration::from_secs(10));
    let last = match &ended {
        Ok(()) => Some(SUCCEEDED),
        Err(failure) => failure.cancelled.then_some(Entry::Cancelled),
    };
    note_end(&ended, &mut journal);
    let mut entries = journal::read(&job.files.journal()).unwrap_or_else(|error| {
        tracing::error!("{}", chain(&error));
        Vec::new()
    });
    entries.extend(last);
    for problem in undo::undo(&entries) {
        tracing::error!("{problem}");
        recorder.apply(Event::Warning { text: problem });
    }
    let outcome = match ended {
        Ok(()) => {
            tracing::info!("Finished");
            Outcome::Done
        }
        Err(failure) => {
            let message = supervise::with_advice(failure.message, &entries, &job.files.tag);
            tracing::error!("{message}");
            recorder.apply(Event::Failed { message });
            failure.outcome
        }
    };
    if !recorder.finish(outcome != Outcome::Done) {
        tracing::error!("the supervisor tries on");
    }
    outcome
}
