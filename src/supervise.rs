//! The supervisor: owns the job and outlives the worker.
//!
//! One thread, no runtime. It starts the worker, passes signals on to it, and when the worker is gone, however that
//! came about, sees to it that no process of the job is left, that what was begun is undone, and that the state file
//! says how it ended. In the foreground (`daemonize: false`) it is the process the client spawned. It converts
//! nothing itself: that is [`crate::run`]'s, in the worker.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::event::Event;
use crate::job::{Job, JobFiles};
use crate::journal::{Entry, Fate, Journal};
use crate::log::chain;
use crate::process::{self, Exit, Tool};
use crate::put_back::Left;
use crate::state::State;
use crate::{convert, journal, leftovers, put_back, state_file, undo};

/// Signals that cancel a job.
pub const CANCEL: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// What the worker gets when the supervisor is killed.
pub const ORPHANED: Signal = Signal::SIGUSR1;

/// A cancelled worker gives its tools 30 s (design.md "Processes") and undoes; after this it is stuck itself.
const WORKER_PATIENCE: Duration = Duration::from_secs(36);
/// A worker (or who comes after it) that puts the source back waits for vSphere.
const SOURCE_PATIENCE: Duration = Duration::from_secs(660);
/// How long leftovers may take to die of SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How often a final state that cannot be written (a full disk) is tried again, once a second.
const FINAL_TRIES: u32 = 600;

/// The worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A kernel facility refused.
    #[error("cannot supervise the job: {what}")]
    Prepare {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// From here on the signals that a supervisor reads wait for it instead of ending the process. Called before the
/// fork, so that there is no moment in which a cancel would kill the supervisor; gives what it blocked.
pub fn block_signals() -> nix::Result<SigSet> {
    let mut mask = SigSet::empty();
    CANCEL.into_iter().chain([Signal::SIGCHLD]).for_each(|signal| mask.add(signal));
    mask.thread_block()?;
    Ok(mask)
}

/// A running worker under supervision.
#[derive(Debug)]
pub struct Supervisor {
    worker: Pid,
    signals: SignalFd,
    /// The job again, for who puts the source back when the worker is gone.
    sealed: OwnedFd,
    /// Held until the job is closed, also when the worker, which holds it too, is gone.
    _lock: OwnedFd,
}

impl Supervisor {
    /// Starts the worker, which says on `ready` when the job runs. `job` is the sealed plan.
    pub fn start(job: &Job, sealed: OwnedFd, lock: OwnedFd, ready: OwnedFd) -> Result<Self, SuperviseError> {
        let prepare =
            |what| move |source: nix::Error| SuperviseError::Prepare { what, source: source.into() };
        let mask = block_signals().map_err(prepare("block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(prepare("signalfd"))?;
        process::become_subreaper().map_err(prepare("subreaper"))?;
        // Plan and tools hold secrets; a core file would be one on disk.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(prepare("core limit"))?;

        let mut tool = Tool::new(std::path::Path::new("/proc/self/exe"), &job.files.tag);
        // Not one of those by which the user cancels: who kills the supervisor does not ask for its copies to be removed.
        tool.death_signal(ORPHANED);
        let kept = sealed.try_clone();
        let kept = kept.map_err(|source| SuperviseError::Prepare { what: "keep the plan", source })?;
        let sealed = tool.hand_over(sealed);
        let ready = tool.hand_over(ready);
        let second = lock.try_clone();
        tool.hand_over(second.map_err(|source| SuperviseError::Prepare { what: "share the lock", source })?);
        tool.command().arg("worker").arg(sealed).arg(ready);
        let worker =
            tool.spawn().map_err(|source| SuperviseError::Prepare { what: "start the worker", source })?;
        tracing::debug!("worker {worker} started");
        Ok(Self { worker, signals, sealed: kept, _lock: lock })
    }

    /// Waits for the worker and closes the job. Gives the exit code of contract.md 2.3 and the signal that cancelled
    /// the job, if one did.
    pub fn wait(self, job: &Job) -> Ended {
        let mut cancelled = None;
        let mut deadline = None;
        let mut last_moment = None;
        let mut worker_exit = None;
        let mut orphans = Vec::new();
        while worker_exit.is_none() {
            self.sleep(deadline);
            while let Ok(Some(info)) = self.signals.read_signal() {
                let signal = Signal::try_from(info.ssi_signo as i32).unwrap_or(Signal::SIGTERM);
                if signal != Signal::SIGCHLD {
                    tracing::info!("{signal} from process {}: cancelling the job", info.ssi_pid);
                    cancelled.get_or_insert(signal);
                    deadline.get_or_insert(Instant::now() + WORKER_PATIENCE);
                    last_moment.get_or_insert(Instant::now() + SOURCE_PATIENCE);
                    self.signal_worker(signal);
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline)
                && last_moment.is_some_and(|last| Instant::now() < last)
                && !left(&job.files).is_clean()
            {
                // It puts back what is left outside, which clouds do at their own pace.
                deadline = Some(Instant::now() + Duration::from_secs(1));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                tracing::error!("the worker does not end: killing it");
                self.signal_worker(Signal::SIGKILL);
                deadline = Some(Instant::now() + Duration::from_secs(5));
            }
            let reaped = process::reap();
            worker_exit = process::exit_of(self.worker);
            orphans.extend(reaped.ended);
        }
        let exit = worker_exit.unwrap_or(Exit::Code(1));
        let signal = cancelled.map(|signal| signal as i32);
        let state = close(job, exit, signal, orphans, &self.sealed);
        let message = state.last_message.map(|last| last.message);
        match exit {
            Exit::Code(code @ (0 | 2)) if signal.is_none() => Ended { code: code as u8, message, signal },
            _ if state.failed == Some(false) => Ended { code: 0, message, signal: None },
            _ => Ended { code: 1, message, signal },
        }
    }

    fn signal_worker(&self, signal: Signal) {
        if let Err(error) = kill(self.worker, signal) {
            tracing::debug!("the worker is gone: {error}");
        }
    }

    fn sleep(&self, deadline: Option<Instant>) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        // EINTR and EAGAIN only mean to look again.
        let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
    }
}

/// How a job ended, for the foreground.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// 0 converted, 2 failed, 1 cancelled or broken.
    pub code: u8,
    /// The final `last_message`.
    pub message: Option<String>,
    /// The signal that cancelled the job at the supervisor.
    pub signal: Option<i32>,
}

/// After the worker: no process left, the private directory gone, a final state. Gives that state.
fn close(
    job: &Job,
    worker: Exit,
    cancelled: Option<i32>,
    mut ended: Vec<(Pid, Exit)>,
    sealed: &OwnedFd,
) -> State {
    leftovers::note(&job.files.journal(), &process::descendants());
    ended.extend(process::kill_all(process::descendants, KILL_PATIENCE));
    state_file::remove_temporary(&job.files.directory);
    let path = job.files.state();
    let mut state = state_file::read(&path).unwrap_or_else(|error| {
        tracing::error!("{}", chain(&error));
        State::with_disks(&job.plan.source_disks, job.plan.source_disks_given)
    });
    if state.is_finished() {
        job.files.remove_lock();
        return state;
    }
    tracing::error!("the worker ended without a final state: {worker:?}");
    if let (Some(pid), None) = (state.pid, state.return_code)
        && let Some((_, exit)) = ended.iter().find(|(ended, _)| ended.as_raw() == pid)
        && state.started == Some(true)
    {
        state.apply(Event::ToolExited { return_code: exit.return_code() });
    }
    let kept = cancelled.is_none()
        && journal::read(&job.files.journal()).is_ok_and(|entries| journal::fate(&entries) == Fate::Kept);
    let undone = if kept { "" } else { " and undone" };
    let message = match (cancelled, worker) {
        (Some(signal), _) => cancelled_by(signal),
        (None, Exit::Signal(signal)) => format!(
            "The worker process was killed by signal {signal}; the conversion was stopped{undone}. If nobody killed it, \
             the kernel's log tells whether the host ran out of memory"
        ),
        (None, Exit::Code(code)) => format!(
            "The worker process broke down (exit code {code}); the conversion was stopped{undone}. {} tells more",
            job.files.wrapper_log().display()
        ),
    };
    if cancelled.is_some()
        && let Err(error) =
            Journal::open(&job.files.journal()).and_then(|mut journal| journal.record(&Entry::Cancelled))
    {
        tracing::error!("{}", chain(&error));
    }
    convert::note_unread(&job.files, &job.plan);
    put_all_back(job, &mut state, sealed);
    finish_for_the_dead(&job.files, &mut state, message);
    state
}

/// What the job has left outside this host, as its journal says.
fn left(files: &JobFiles) -> Left {
    journal::read(&files.journal()).map(|entries| put_back::left(&entries)).unwrap_or_default()
}

/// By a process of its own: this one has no runtime, and must not hang with a vCenter that does.
fn put_all_back(job: &Job, state: &mut State, sealed: &OwnedFd) {
    let left = left(&job.files);
    if left.is_clean() {
        return;
    }
    state.apply(Event::WaitingFor { what: Some(put_back::waited_for(&left)) });
    if let Err(error) = state_file::write(&job.files.state(), state) {
        tracing::error!("{}", chain(&error));
    }
    let started = sealed.try_clone().and_then(|sealed| {
        let mut tool = Tool::new(std::path::Path::new("/proc/self/exe"), &job.files.tag);
        let sealed = tool.hand_over(sealed);
        tool.command().arg("put-back").arg(sealed);
        tool.spawn()
    });
    match started {
        Ok(pid) => {
            let deadline = Instant::now() + SOURCE_PATIENCE;
            while process::exit_of(pid).is_none() && Instant::now() < deadline {
                process::reap();
                std::thread::sleep(Duration::from_millis(100));
            }
            process::kill_all(process::descendants, KILL_PATIENCE);
        }
        Err(error) => tracing::error!("what the job left outside cannot be put back: {error}"),
    }
    state.apply(Event::WaitingFor { what: None });
}

/// The last message of a cancelled job; it begins with the old program's words (contract.md 3.3).
pub fn cancelled_by(signal: i32) -> String {
    if signal == ORPHANED as i32 {
        return "The supervisor process was killed, and the job was stopped".to_owned();
    }
    format!("Exiting on signal number {signal}: the job was cancelled and what it had begun undone")
}

/// The last message with what can be done about copies that were kept.
pub fn with_advice(message: String, entries: &[Entry], tag: &str) -> String {
    if journal::fate(entries) != Fate::Kept {
        return message;
    }
    let message = message.trim_end_matches('.');
    format!(
        "{message}. What is copied was kept: send the same document with \"resume\": \"{tag}\" (or to \
         virt-v2v-wrapper resume {tag}) to go on, or run virt-v2v-wrapper jobs --remove {tag} to remove it"
    )
}

/// Undoes from the journal and writes the final state of a job whose own processes cannot any more.
pub fn finish_for_the_dead(files: &JobFiles, state: &mut State, message: String) {
    let entries = journal::read(&files.journal()).unwrap_or_else(|error| {
        tracing::error!("{}", chain(&error));
        Vec::new()
    });
    for problem in undo::undo(&entries) {
        tracing::error!("{problem}");
        state.apply(Event::Warning { text: problem });
    }
    let left = put_back::left(&entries);
    if !left.is_clean() {
        let tag = entries.iter().find_map(|entry| match entry {
            Entry::Job { tag } => Some(tag.as_str()),
            _ => None,
        });
        let text = put_back::told(&left, tag.unwrap_or(&files.tag));
        tracing::error!("{text}");
        state.apply(Event::Warning { text });
    }
    if let Some(return_code) = journal::succeeded(&entries) {
        state.apply(Event::ToolExited { return_code });
        state.apply(Event::Finished { failed: false });
    } else {
        // With layout uci the place of the job does not tell its tag.
        let tag = entries.iter().find_map(|entry| match entry {
            Entry::Job { tag } => Some(tag),
            _ => None,
        });
        let message = with_advice(message, &entries, tag.unwrap_or(&files.tag));
        state.apply(Event::Failed { message });
        state.apply(Event::Finished { failed: true });
    }
    if write_final(&files.state(), state) {
        files.remove_lock();
    }
}

/// Writes a final state, and tries again for ten minutes if the disk is full. False if it could not be written: then
/// the job's lock must stay, so that the next start writes it.
#[must_use]
pub fn write_final(path: &std::path::Path, state: &mut State) -> bool {
    for attempt in 1..=FINAL_TRIES {
        match state_file::write(path, state) {
            Ok(()) => return true,
            Err(error) => tracing::error!("{} (attempt {attempt} of {FINAL_TRIES})", chain(&error)),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    false
}
