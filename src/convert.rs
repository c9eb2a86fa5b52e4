//! The conversion as a stage: virt-v2v, or virt-v2v-in-place, is started, its logs are followed, it is stopped when the
//! job is cancelled.
//!
//! Called by [`crate::run`] for a one-phase conversion and by [`crate::in_place`] for a two-phase one. What its words mean is [`crate::v2v::output`]'s; what its end means for the job is [`crate::run`]'s.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::event::Event;
use crate::follow::Watch;
use crate::job::Job;
use crate::journal::Journal;
use crate::leftovers;
use crate::log::chain;
use crate::overlay;
use crate::process::{self, Exit, Tool};
use crate::recorder::Recorder;
use crate::signals::Signals;
use crate::supervise::CANCEL;
use crate::throttle::Throttling;
use crate::trace;
use crate::v2v::args::CommandLine;
use crate::v2v::output::{Drivers, DriversParser};

mod converter;
mod told;

pub use converter::Converter;
use converter::Logs;
pub use told::note_unread;

/// A cancelled virt-v2v may take this long: SIGTERM is only acted on when a libguestfs call returns
/// (virt-v2v-output.md 1, fact 7).
const TERM_PATIENCE: Duration = Duration::from_secs(30);
/// How long leftovers may take to die of SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// An appliance that boots talks all the time (`-v -x` shows its console); a /dev/kvm that hangs is silent for ever.
const APPLIANCE_SILENCE: Duration = Duration::from_secs(180);
/// qemu stops its guest, here the appliance, when a write finds no room, and waits for somebody to tell it to go on.
/// Nobody does (tried with virt-v2v-in-place 2.2: not a word for as long as one waits).
const FULL_SILENCE: Duration = Duration::from_secs(30);
/// How often the room of the overlays is looked at.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(10);
/// How often leftovers are noted while the appliance boots.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// The message during which libguestfs boots its appliance, in both generations; virt-v2v-in-place has virt-v2v's.
const BOOTING: [&str; 2] = ["Opening the source", "Opening the overlay"];

/// The converter could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Its log could not be made.
    #[error("cannot create the log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A secret could not be handed over.
    #[error("cannot make a sealed file for the converter's secrets")]
    Seal(#[source] std::io::Error),
    /// It did not start.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// How the conversion ended.
#[derive(Debug)]
pub struct Converted {
    /// The converter's end.
    pub exit: Exit,
    /// Why we stopped it, if we did.
    pub stopped: Option<Stopped>,
    /// What it said about a failure.
    pub evidence: crate::v2v::failure::Evidence,
    /// What virt-v2v-in-place said about the guest; nothing from virt-v2v, which writes the machine itself.
    pub drivers: Drivers,
}

/// Why the converter was stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The job was cancelled by this signal to the worker or the supervisor.
    Cancelled(i32),
    /// The job was cancelled by this signal to the converter itself.
    Signalled(i32),
    /// The appliance was silent for this long while booting.
    NeverBooted(Duration),
    /// The overlays have no room to grow, and so the appliance stood still.
    NoRoom,
}

/// Runs virt-v2v to its end, or to the end of the job.
pub async fn convert(
    job: &Job,
    command_line: CommandLine,
    recorder: &mut Recorder,
    journal: &mut Journal,
    signals: &mut Signals,
    throttling: &mut Throttling,
) -> Result<Converted, ConvertError> {
    let converter = Converter::VirtV2v { program: &job.plan.tools.virt_v2v };
    convert_with(converter, job, command_line, recorder, journal, signals, throttling).await
}

/// Runs either converter likewise.
pub async fn convert_with(
    converter: Converter<'_>,
    job: &Job,
    command_line: CommandLine,
    recorder: &mut Recorder,
    journal: &mut Journal,
    signals: &mut Signals,
    throttling: &mut Throttling,
) -> Result<Converted, ConvertError> {
    let program = converter.program();
    let log = job.files.v2v_log();
    let tool = tool(job, program, command_line, &log)?;
    let watch = Watch::new(&[&log]);
    let pid = tool.spawn().map_err(|source| ConvertError::Spawn { program: program.to_owned(), source })?;
    let name = converter.name();
    tracing::info!("{name} started with pid {pid}");
    trace::watch(pid);
    recorder.apply_now(Event::ToolStarted { pid: pid.as_raw() });

    let mut running = Running {
        converter,
        job,
        pid,
        logs: converter.logs(job),
        recorder,
        journal,
        kill_at: None,
        stopped: None,
        noted: Instant::now(),
        look_for_room: converter.overlays().map(|_| Instant::now()),
    };
    let exit = running.follow(watch, signals, throttling).await;
    tracing::info!("{name} terminated with return code {}", exit.return_code());
    note_leftovers(job);
    process::kill_all(process::descendants, KILL_PATIENCE);
    running.read_to_the_end();
    let Running { logs, recorder, stopped, .. } = running;
    recorder.apply(Event::ToolExited { return_code: exit.return_code() });
    let drivers = logs.drivers.map(DriversParser::finish).unwrap_or_default();
    Ok(Converted { exit, stopped, evidence: logs.parser.evidence().clone(), drivers })
}

/// The converter with its arguments, its environment and its log, not yet started.
fn tool(job: &Job, program: &Path, command_line: CommandLine, log: &Path) -> Result<Tool, ConvertError> {
    let error = |source| ConvertError::Log { path: log.to_owned(), source };
    // Appending, so that nothing is lost if two of virt-v2v's children opened it anew.
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o644).open(log).map_err(error)?;
    file.set_len(0).and_then(|()| file.set_permissions(Permissions::from_mode(0o644))).map_err(error)?;
    create_machine_log(&job.files.machine_readable_log())?;

    let mut tool = Tool::with(program, &job.files.tag, command_line).map_err(ConvertError::Seal)?;
    if !nix::unistd::getuid().is_root() {
        // libguestfs would look for a session that a daemon does not have (contract.md 2.5).
        tool.command().env_remove("XDG_RUNTIME_DIR");
    }
    let second = file.try_clone().map_err(error)?;
    tool.command().stdout(file).stderr(second);
    Ok(tool)
}

/// Empty and world-readable; virt-v2v truncates and fills it, and it may never do (contract.md 10, bug 12).
fn create_machine_log(path: &Path) -> Result<(), ConvertError> {
    let error = |source| ConvertError::Log { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o644).open(path).map_err(error)?;
    file.set_permissions(Permissions::from_mode(0o644)).map_err(error)
}

struct Running<'a> {
    converter: Converter<'a>,
    job: &'a Job,
    pid: Pid,
    logs: Logs,
    recorder: &'a mut Recorder,
    journal: &'a mut Journal,
    kill_at: Option<Instant>,
    stopped: Option<Stopped>,
    /// When leftovers were noted last.
    noted: Instant,
    /// When to see next whether the overlays have room.
    look_for_room: Option<Instant>,
}

impl Running<'_> {
    async fn follow(&mut self, mut watch: Watch, signals: &mut Signals, throttling: &mut Throttling) -> Exit {
        let mut more = false;
        loop {
            let wake = self.wake(more);
            tokio::select! {
                biased;
                signal = signals.next() => match signal {
                    Some(signal) => self.stop(Stopped::Cancelled(signal)),
                    None => {
                        let reaped = process::reap();
                        if let Some(exit) = process::exit_of(self.pid) {
                            return exit;
                        }
                        for (pid, signal) in reaped.signalled {
                            if pid == self.pid && CANCEL.contains(&signal) {
                                self.stop(Stopped::Signalled(signal as i32));
                            }
                        }
                    }
                },
                () = tokio::time::sleep_until(wake) => {
                    if more {
                        more = self.read();
                    }
                    self.look_at_the_clock();
                }
                () = watch.changed() => more = self.read(),
                events = throttling.step() => events.into_iter().for_each(|event| self.recorder.apply(event)),
            }
            self.recorder.write_if_due();
        }
    }

    /// When to wake although nothing happens.
    fn wake(&self, more: bool) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let more = more.then(Instant::now);
        let boot = self.booting().then_some(self.logs.last_output + APPLIANCE_SILENCE);
        [self.recorder.due(), self.kill_at, boot, self.look_for_room, more]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(far)
    }

    fn booting(&self) -> bool {
        self.stopped.is_none()
            && self.recorder.state().stage.as_deref().is_some_and(|stage| BOOTING.contains(&stage))
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            tracing::warn!(
                "{} did not end within {} s: killing its group",
                self.converter.name(),
                TERM_PATIENCE.as_secs()
            );
            self.kill_at = None;
            note_leftovers(self.job);
            process::signal_group(self.pid, Signal::SIGKILL);
        }
        if self.booting() && self.logs.last_output + APPLIANCE_SILENCE <= now {
            self.stop(Stopped::NeverBooted(APPLIANCE_SILENCE));
        }
        if self.look_for_room.is_some_and(|at| at <= now) {
            self.look_for_room = Some(now + LOOK_FOR_ROOM);
            if self.logs.last_output + FULL_SILENCE <= now
                && self.converter.overlays().is_some_and(overlay::is_full)
            {
                self.stop(Stopped::NoRoom);
            }
        }
    }

    fn stop(&mut self, why: Stopped) {
        if self.stopped.is_some() {
            return;
        }
        tracing::warn!("stopping {}: {why:?}", self.converter.name());
        self.stopped = Some(why);
        self.kill_at = Some(Instant::now() + TERM_PATIENCE);
        note_leftovers(self.job);
        process::signal_group(self.pid, Signal::SIGTERM);
    }

    /// Reads what is new in both logs; says whether there may be more at once.
    fn read(&mut self) -> bool {
        // The machine-readable log first: an error record then stands before the line that ends the run.
        let machine_events = {
            let mut events = Vec::new();
            let Logs { machine, machine_parser, parser, .. } = &mut self.logs;
            let read = machine.read(|bytes| {
                machine_parser.feed(bytes, parser.evidence_mut(), &mut |event| events.push(event))
            });
            note_error(read.map(drop), "the machine-readable log");
            events
        };
        let (events, progress) = {
            let mut events = Vec::new();
            let Logs { log, parser, drivers, .. } = &mut self.logs;
            let read = log.read(|bytes| {
                parser.feed(bytes, &mut |event| events.push(event));
                if let Some(drivers) = drivers {
                    drivers.feed(bytes);
                }
            });
            (events, note_error(read, "the converter's log").unwrap_or_default())
        };
        if progress.bytes > 0 {
            self.logs.last_output = Instant::now();
        }
        machine_events.into_iter().chain(events).for_each(|event| self.take(event));
        // The appliance's sockets appear while it boots; should all of us be killed later, the journal knows them.
        if self.booting() && self.noted.elapsed() >= NOTE_EVERY {
            self.noted = Instant::now();
            note_leftovers(self.job);
        }
        progress.more
    }

    fn read_to_the_end(&mut self) {
        while self.read() {}
        let mut events = Vec::new();
        let Logs { machine_parser, parser, .. } = &mut self.logs;
        machine_parser.finish(parser.evidence_mut(), &mut |event| events.push(event));
        parser.finish(&mut |event| events.push(event));
        events.into_iter().for_each(|event| self.take(event));
    }

    fn take(&mut self, event: Event) {
        if !self.converter.matters(&event) {
            return;
        }
        let entries = told::entries(&event, &self.job.plan.destination);
        for entry in entries {
            if let Err(error) = self.journal.record_once(&entry) {
                tracing::error!("{}", chain(&error));
            }
        }
        self.recorder.apply(event);
    }
}

fn note_leftovers(job: &Job) {
    leftovers::note(&job.files.journal(), &process::descendants());
}

fn note_error<T>(read: std::io::Result<T>, what: &str) -> Option<T> {
    read.inspect_err(|error| tracing::error!("cannot read {what}: {error}")).ok()
}
