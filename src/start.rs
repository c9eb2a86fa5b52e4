//! The start of a job: what happens between the client's document and the reply.
//!
//! Read, parse, make the job's files, plan, look at the host, ask virt-v2v what it can do, write the first state,
//! fork, reply. Everything here runs in the process the client spawned, with one thread, offline (design.md "Jobs"):
//! bad input is refused before anything is touched, on stderr, with exit code 1 and nothing on stdout.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::daemon::{self, Side};
use crate::document::{self, Parsed};
use crate::event::Event;
use crate::job::{self, Job, JobError, JobFiles};
use crate::journal::{self, Entry, Journal};
use crate::log::chain;
use crate::plan::{self, LocalSource, Plan, Source, TwoPhasePrograms};
use crate::reply::Reply;
use crate::secret::Scrubber;
use crate::site::{Caller, Directories, Site};
use crate::state::State;
use crate::supervise::{self, Ended, Supervisor};
use crate::two_phase::kept_document;
use crate::warm::triggers::Triggers;
use crate::{export_only, preflight, process, state_file, sweep, throttle};

pub(crate) mod judged;

use judged::Refused;

/// How long a job in the same place may take from its last state to the end of its processes.
const LAST_MOMENT: Duration = Duration::from_secs(15);

/// The whole of `virt-v2v-wrapper` without arguments. Gives the exit code.
pub fn start(stdin: &mut dyn Read, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8 {
    daemon::close_inherited();
    let document = read_document(stdin);
    // v2.4 looks for this before anything else (contract.md 1.1).
    if let Some(exports) = document.as_ref().ok().and_then(|document| export_only::asked(document)) {
        return export_only::run(&exports, stderr);
    }
    start_from(|_| document, stdout, stderr)
}

/// `virt-v2v-wrapper resume <tag>`: the same with the document that the job kept, completed by what is on stdin.
pub fn resume(tag: &str, stdin: Option<&mut dyn Read>, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8 {
    daemon::close_inherited();
    let document = |directories: &Directories| {
        if !job::is_tag(tag) {
            return Err(Refused(vec![format!("{tag} is no tag of a job, like 20260131T235959-4711")]));
        }
        let given = match stdin {
            Some(stdin) => read_document(stdin)?,
            None => Zeroizing::new(Vec::new()),
        };
        kept_document::complete(&directories.job_files(tag), &given).map_err(|error| Refused::because(&error))
    };
    start_from(document, stdout, stderr)
}

fn start_from(
    document: impl FnOnce(&Directories) -> Result<Zeroizing<Vec<u8>>, Refused>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    match begin(document) {
        Ok(begun) => begun.launch(stdout, stderr),
        Err(Refused(problems)) => {
            for problem in problems {
                // Nobody is left to tell if stderr is closed.
                let _ = writeln!(stderr, "{problem}");
            }
            1
        }
    }
}

/// A job that may run: planned, checked, with its first state on disk.
struct Begun {
    job: Job,
    lock: OwnedFd,
}

fn begin(
    document: impl FnOnce(&Directories) -> Result<Zeroizing<Vec<u8>>, Refused>,
) -> Result<Begun, Refused> {
    let site = Site::load(&|name| std::env::var_os(name)).map_err(|error| Refused::because(&error))?;
    let directories =
        site.directories(&Caller::of_this_process()).map_err(|error| Refused::because(&error))?;
    let bytes = document(&directories)?;
    let parsed = document::parse(&bytes);
    let swept = sweep::sweep(directories.jobs());
    let files = directories.job_files(&job::new_tag());
    let lock = take_place(&files, &directories)?;
    let prepared = prepare(&site, &directories, &files, parsed, &swept).and_then(|job| {
        let is_needed_again = job.plan.two_phase.is_some() || job.plan.destination.has_api();
        if is_needed_again && job.earlier.is_none() {
            kept_document::keep(&job, &bytes).map_err(|error| Refused::because(&error))?;
        }
        Ok(job)
    });
    match prepared {
        Ok(job) => Ok(Begun { job, lock }),
        Err(Refused(problems)) => {
            record_refusal(&files, &problems);
            Err(Refused(problems))
        }
    }
}

/// The plan of an earlier job, from the document that it kept and what is on stdin. Sentences if there is none.
pub fn plan_again(site: &Site, files: &JobFiles, stdin: Option<&mut dyn Read>) -> Result<Plan, Vec<String>> {
    let given = match stdin {
        Some(stdin) => read_document(stdin).map_err(|Refused(problems)| problems)?,
        None => Zeroizing::new(Vec::new()),
    };
    let bytes = kept_document::complete(files, &given).map_err(|error| vec![chain(&error)])?;
    let parsed = document::parse(&bytes).map_err(|error| vec![chain(&error)])?;
    let around =
        preflight::surroundings(&|name| std::env::var_os(name), PathBuf::new(), TwoPhasePrograms::default())
            .map_err(|error| vec![chain(&error)])?;
    plan::plan(parsed.document, site, &around).map_err(|problems| problems.lines().to_vec())
}

/// Everything that can be refused once the job has a place for its state.
fn prepare(
    site: &Site,
    directories: &Directories,
    files: &JobFiles,
    parsed: Result<Parsed, document::DocumentError>,
    swept: &[String],
) -> Result<Job, Refused> {
    let judged = judged::judge(site, directories, files, parsed)?;
    let plan = &judged.plan;
    // The vault's keys are known from here on, so the scrubber has them all.
    crate::log::start(&files.wrapper_log(), Scrubber::new(plan.secrets()))
        .map_err(|error| Refused::because(&error))?;
    tracing::info!("Wrapper version {}, uid={}", env!("CARGO_PKG_VERSION"), nix::unistd::getuid());
    let sudo =
        nix::unistd::geteuid().is_root().then(|| throttle::file::sudo_user(|name| std::env::var(name).ok()));
    if let Err(error) = throttle::file::offer(&files.throttling(), sudo.flatten()) {
        tracing::warn!("{}", chain(&error));
    }
    for sentence in swept {
        tracing::warn!("{sentence}");
    }
    for key in &judged.unknown_keys {
        tracing::info!("unknown key {key} ignored");
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    judged.looked.clone()?;
    job::create_traversable(&plan.tools.tmp_dir).map_err(|error| no_tmp_dir(&plan.tools.tmp_dir, &error))?;
    let capabilities = judged.capabilities()?;
    tracing::debug!("virt-v2v capabilities: {capabilities:?}");
    let mut state = first_state(plan);
    state_file::write_first(&files.state(), &mut state).map_err(|error| Refused::because(&error))?;
    let earlier = judged.earlier.map(|(files, _)| files);
    Ok(Job { plan: judged.plan, files: files.clone(), capabilities, earlier })
}

pub(crate) fn no_tmp_dir(tmp_dir: &Path, error: &std::io::Error) -> Refused {
    Refused(vec![format!("cannot create tmp_dir {}: {error}", tmp_dir.display())])
}

pub(crate) fn no_place(error: &JobError) -> Refused {
    Refused(vec![format!(
        "{}: run as a user that may write there, or set state_dir and log_dir",
        chain(error)
    )])
}

pub(crate) fn place_is_taken(directories: &Directories, files: &JobFiles) -> Refused {
    Refused(vec![format!(
        "Another job is running in {}: with layout \"uci\" there is one at a time; wait for it, or cancel it (kill the pid \
         in {})",
        directories.state_directory().display(),
        files.state().display()
    )])
}

/// All of stdin, and a byte more than is allowed.
pub(crate) fn read_document(stdin: &mut dyn Read) -> Result<Zeroizing<Vec<u8>>, Refused> {
    // One byte more than is allowed, so that the parser sees that it is too much.
    let most = document::MAX_BYTES as u64 + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
    match stdin.take(most).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Refused(vec![format!("cannot read the document from stdin: {error}")])),
    }
}

/// Makes the job's directories and takes its lock.
fn take_place(files: &JobFiles, directories: &Directories) -> Result<OwnedFd, Refused> {
    files.create_directories().map_err(|error| no_place(&error))?;
    let Some(lock) = claim(files).map_err(|error| Refused::because(&error))? else {
        return Err(place_is_taken(directories, files));
    };
    // Now, not in the worker: whoever closes this job must not find what an earlier one in the same place did.
    journal::put_away(files)
        .and_then(|()| Journal::create(&files.journal()))
        .and_then(|mut journal| journal.record(&Entry::Job { tag: files.tag.clone() }))
        .map_err(|error| Refused::because(&error))?;
    // A cutover that was asked of an earlier job in the same place is not this one's (contract.md 10, 25).
    Triggers::of(files).remove_stale().map_err(|error| Refused::because(&error))?;
    Ok(lock.into())
}

/// Clients start the next job as soon as the state says `finished`; the processes of the one before need a moment more.
fn claim(files: &JobFiles) -> Result<Option<File>, JobError> {
    let deadline = Instant::now() + LAST_MOMENT;
    loop {
        let claimed = files.claim()?;
        let over = || state_file::read(&files.state()).is_ok_and(|state| state.is_finished());
        if claimed.is_some() || Instant::now() >= deadline || !over() {
            return Ok(claimed);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state of a job that never began: clients that poll see why (contract.md 3.3).
fn record_refusal(files: &JobFiles, problems: &[String]) {
    let mut state = State::default();
    state.apply(Event::Failed { message: problems.first().cloned().unwrap_or_default() });
    state.apply(Event::Finished { failed: true });
    if let Err(error) = state_file::write(&files.state(), &mut state) {
        tracing::error!("{}", chain(&error));
    }
    files.remove_lock();
}

fn first_state(plan: &Plan) -> State {
    let paths = match &plan.source {
        // Ids of volumes; clients know the devices (contract.md 3.5).
        Source::Openstack { .. } => Vec::new(),
        _ if plan.source_disks_given => plan.source_disks.clone(),
        Source::Local(LocalSource::Disk(path)) => vec![text(path)],
        Source::Local(LocalSource::Disks(paths)) => paths.iter().map(|path| text(path)).collect(),
        _ => Vec::new(),
    };
    let mut state = State::with_disks(&paths, !paths.is_empty());
    state.warm = plan.two_phase.as_ref().and_then(|two_phase| two_phase.warm.as_ref()).map(|_| true);
    plan.warnings.iter().for_each(|text| state.apply(Event::Warning { text: text.clone() }));
    state
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Begun {
    /// Starts supervisor and worker; in the background this returns twice.
    fn launch(self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8 {
        let pipe = daemon::readiness().map_err(std::io::Error::from);
        let (wait, ready) = match pipe {
            Ok(pipe) => pipe,
            Err(error) => return self.give_up(&format!("cannot make a pipe: {error}"), stderr),
        };
        if !self.job.plan.daemonize {
            return self.foreground(wait, ready, stdout, stderr);
        }
        let blocked = supervise::block_signals();
        match daemon::detach() {
            Ok(Side::Client) => {
                drop((self.lock, ready));
                if let Err(error) = blocked.and_then(|mask| mask.thread_unblock()) {
                    tracing::debug!("signals wait until the reply: {error}");
                }
                reply_when_ready(&self.job.files, wait, stdout, stderr)
            }
            Ok(Side::Background) => {
                drop(wait);
                self.background(ready)
            }
            Err(error) => self.give_up(&chain(&error), stderr),
        }
    }

    fn foreground(self, wait: OwnedFd, ready: OwnedFd, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8 {
        let (job, supervisor) = match self.supervise(ready) {
            Ok(started) => started,
            Err(message) => return complain(&message, stderr),
        };
        let replied = reply_when_ready(&job.files, wait, stdout, stderr);
        daemon::release_stdout();
        let Ended { code, message, signal } = supervisor.wait(&job);
        match (signal, message) {
            _ if replied != 0 => return replied,
            (Some(signal), _) if code == 1 => {
                return complain(&format!("Exiting on signal number {signal}"), stderr);
            }
            (None, Some(message)) if code == 1 => return complain(&message, stderr),
            _ => {}
        }
        code
    }

    fn background(self, ready: OwnedFd) -> u8 {
        match self.supervise(ready) {
            Ok((job, supervisor)) => supervisor.wait(&job).code,
            Err(_) => 1,
        }
    }

    /// On an error the state file has it already.
    fn supervise(self, ready: OwnedFd) -> Result<(Job, Supervisor), String> {
        let Self { job, lock } = self;
        let started = serde_json::to_vec(&job)
            .map(Zeroizing::new)
            .map_err(std::io::Error::from)
            .and_then(|plan| process::sealed("virt-v2v-wrapper-job", &plan))
            .map_err(|error| format!("cannot hand the plan to the worker: {error}"))
            .and_then(|sealed| Supervisor::start(&job, sealed, lock, ready).map_err(|error| chain(&error)));
        match started {
            Ok(supervisor) => Ok((job, supervisor)),
            Err(message) => {
                tracing::error!("{message}");
                record_failure(&job.files, &message);
                Err(message)
            }
        }
    }

    fn give_up(self, message: &str, stderr: &mut dyn Write) -> u8 {
        record_failure(&self.job.files, message);
        complain(message, stderr)
    }
}

fn record_failure(files: &JobFiles, message: &str) {
    let mut state = state_file::read(&files.state()).unwrap_or_default();
    supervise::finish_for_the_dead(files, &mut state, message.to_owned());
}

/// The client's side of a started job: one line of JSON as soon as the worker runs.
fn reply_when_ready(files: &JobFiles, wait: OwnedFd, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8 {
    match daemon::wait_until_ready(wait) {
        Ok(true) => {}
        Ok(false) => {
            let state = state_file::read(&files.state()).unwrap_or_default();
            let reason = state.last_message.map(|last| last.message);
            let log = files.wrapper_log();
            return complain(
                &reason.unwrap_or_else(|| format!("the job did not start; see {}", log.display())),
                stderr,
            );
        }
        Err(error) => return complain(&format!("cannot wait for the job: {error}"), stderr),
    }
    let replied = serde_json::to_string(&Reply::new(files))
        .map_err(std::io::Error::from)
        .and_then(|reply| writeln!(stdout, "{reply}").and_then(|()| stdout.flush()));
    match replied {
        Ok(()) => 0,
        // The job runs; a client that closed its end finds it by `virt-v2v-wrapper jobs`.
        Err(error) => complain(&format!("the job runs, but the reply could not be written: {error}"), stderr),
    }
}

fn complain(text: &str, stderr: &mut dyn Write) -> u8 {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(stderr, "{text}");
    1
}
