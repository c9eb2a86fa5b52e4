//! A look at source, destination and host for a job that is only shown: what its stages would find before they change anything. An edge.
//!
//! It asks with the functions of the run, and goes on where those refuse: a machine that runs is told with what the job
//! would do about it. Nothing is changed anywhere; for an ssh source an agent runs meanwhile, with its socket in a
//! directory of its own. What it saw becomes a text elsewhere ([`crate::outline`]). Called by the verb `plan`.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::destination::{Selected, Work};
use crate::domain::Placed;
use crate::event::Event;
use crate::export::{Export, Filters, Login, Program};
use crate::footprint::Footprint;
use crate::guest::Guest;
use crate::in_place::{self, Replay};
use crate::job::Job;
use crate::journal::{self, JournalError};
use crate::log::chain;
use crate::plan::{Plan, ShutdownMode, Source, TwoPhase};
use crate::preflight::{self, Room};
use crate::process;
use crate::records::Records;
use crate::source::ssh;
use crate::source::vsphere::machine::{Inventory, PowerState};
use crate::source::vsphere::verdict::{self, DiskVerdict, Verdict};
use crate::source::vsphere::{FoundSnapshot, OperationError, Vsphere, VsphereError};
use crate::source::{self, SourceError};
use crate::two_phase::earlier::{self, EarlierError, Stage};
use crate::warm::{WarmError, begin};

/// Stands where the id of a snapshot will be.
pub const SNAPSHOT: &str = "<snapshot id>";
/// The agent of an ssh source ends at once.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// The guest, where the source tells it before the copy.
    pub guest: Option<Guest>,
    /// The machine, if it is vSphere's.
    pub machine: Option<Machine>,
    /// By what each disk is served first. Empty where virt-v2v reads the source, or nothing is read any more.
    pub exports: Vec<Export>,
    /// Where the copies go.
    pub placed: Vec<Placed>,
    /// Filters of this nbdkit.
    pub filters: Filters,
    /// `LD_LIBRARY_PATH` of this process.
    pub library_path: Option<OsString>,
    /// Overlays of an earlier job that only are to be committed.
    pub replay: Option<Replay>,
    /// Room where the disks go.
    pub room: Option<Room>,
    /// Bytes free in `tmp_dir`.
    pub tmp_free: Option<u64>,
    /// Why the job would fail before it changes anything, in its own words.
    pub problems: Vec<String>,
    /// What the user should know although it goes on.
    pub warnings: Vec<String>,
}

/// A machine of vSphere.
#[derive(Debug)]
pub struct Machine {
    /// All that is known of it.
    pub inventory: Inventory,
    /// Its snapshots.
    pub snapshots: Vec<FoundSnapshot>,
    /// How each of its disks can be copied.
    pub verdicts: Vec<DiskVerdict>,
}

impl Seen {
    fn problem(&mut self, error: &dyn std::error::Error) {
        self.problems.push(chain(error));
    }
}

/// Looks at what the job would look at. `job` is one that never begins: its tag is a placeholder. `stage` is how far the
/// job came that it resumes.
pub async fn look(job: &Job, stage: Option<Stage>) -> Seen {
    let mut seen = Seen {
        tmp_free: preflight::free_bytes(&job.plan.tools.tmp_dir),
        library_path: std::env::var_os("LD_LIBRARY_PATH"),
        ..Seen::default()
    };
    if job.plan.destination.has_api() {
        look_at_destination(job, &mut seen).await;
    }
    match stage {
        Some(Stage::Copied | Stage::Converted) => {
            if let Err(error) = recall(job, &mut seen) {
                seen.problem(&error);
            }
            return seen;
        }
        Some(Stage::Copying) | None => {}
    }
    match &job.plan.source {
        Source::Vddk { .. } => look_at_vsphere(job, &mut seen).await,
        Source::Openstack { .. } => match source::openstack::look(&job.plan).await {
            Ok(guest) => seen.guest = Some(guest),
            Err(error) => seen.problem(&error),
        },
        Source::Ssh { .. } | Source::Local(_) => look_at_files(job, &mut seen).await,
    }
    let Some(guest) = &seen.guest else { return seen };
    seen.warnings.extend(preflight::of_guest(&job.plan, guest, stage.is_some()));
    seen.room = preflight::room(&job.plan, guest);
    if let Some(two_phase) = &job.plan.two_phase {
        // Elsewhere they have no place before they are made.
        if let Selected::Local(local) = Selected::of(&job.plan) {
            seen.placed = local.placed(job, guest.disks.len());
        }
        if seen.exports.iter().any(|export| export.program() == Program::Nbdkit) {
            seen.filters = Filters::probe(&two_phase.programs.nbdkit, &job.files.tag).await;
        }
    }
    seen
}

/// A cloud, as the job would look at it before it makes anything there; its journal would be empty then.
async fn look_at_destination(job: &Job, seen: &mut Seen) {
    let directory = match tempfile::Builder::new().prefix("v2v-plan-").tempdir() {
        Ok(directory) => directory,
        Err(error) => {
            return seen
                .warnings
                .push(format!("the destination is not looked at: no temporary directory: {error}"));
        }
    };
    let mut records = match Records::open(directory.path().join("journal.jsonl")) {
        Ok(records) => records,
        Err(error) => return seen.problem(&error),
    };
    let (tell, mut events) = tokio::sync::mpsc::unbounded_channel();
    let destination = Selected::of(&job.plan);
    let mut work = Work { job, records: &mut records, tell };
    match destination.look(&mut work).await {
        Ok(handle) => destination.abandon(handle).await,
        Err(error) => seen.problem(&error),
    }
    while let Ok(event) = events.try_recv() {
        if let Event::Warning { text } = event {
            seen.warnings.push(text);
        }
    }
}

/// The copies of an earlier job, all of them finished.
fn recall(job: &Job, seen: &mut Seen) -> Result<(), EarlierError> {
    let Some(files) = &job.earlier else { return Ok(()) };
    let (known, disks) = earlier::recall(&files.copies())?;
    seen.guest = Some(known.guest);
    seen.placed = disks.into_iter().map(|(placed, _)| placed).collect();
    seen.replay = in_place::earlier(&journal::read(&earlier::journal_of(files))?);
    Ok(())
}

/// Files of this host, or of an ssh host.
async fn look_at_files(job: &Job, seen: &mut Seen) {
    let private = job.files.private_directory(&job.plan.tools.tmp_dir);
    // Nobody waits for anything here.
    let (tell, _) = tokio::sync::mpsc::unbounded_channel();
    let looked = match &job.plan.source {
        Source::Ssh { .. } => match tempfile::Builder::new().prefix("v2v-plan-").tempdir() {
            Ok(directory) => {
                let opened = source::open_disks(job, directory.path(), &tell).await;
                // The agent.
                process::kill_all(process::descendants, END_PATIENCE);
                opened
            }
            Err(error) => {
                seen.warnings.push(format!("the guest is not looked at: no temporary directory: {error}"));
                return;
            }
        },
        // Nothing is put there.
        Source::Vddk { .. } | Source::Openstack { .. } | Source::Local(_) => {
            source::open_disks(job, &private, &tell).await
        }
    };
    match looked {
        Ok(opened) => {
            seen.warnings.extend(opened.warnings);
            seen.guest = Some(opened.guest);
            if job.plan.two_phase.is_some() {
                let exports = opened.disks.into_iter().map(|disk| with_agent(disk.export, &private));
                seen.exports = exports.collect();
            }
        }
        Err(error) if job.plan.two_phase.is_some() => seen.problem(&error),
        Err(error) => seen.warnings.push(unknown_guest(&error)),
    }
}

/// In one phase virt-v2v looks at the source itself, and knows more ways to.
fn unknown_guest(error: &SourceError) -> String {
    format!("what the guest is will be known to virt-v2v only: {}", chain(error))
}

/// The agent of the job listens elsewhere than the one that was asked now.
fn with_agent(mut export: Export, private: &Path) -> Export {
    if let Export::Ssh { login: Login::Agent(socket), .. } = &mut export {
        *socket = ssh::agent_socket(private);
    }
    export
}

async fn look_at_vsphere(job: &Job, seen: &mut Seen) {
    let vsphere = match Vsphere::connect(&job.plan).await {
        Ok(vsphere) => vsphere,
        Err(error) => return not_told(&job.plan, error.into(), seen),
    };
    let looked = look_at_machine(job, &vsphere, seen).await;
    vsphere.close().await;
    if let Err(error) = looked {
        not_told(&job.plan, error, seen);
    }
}

fn not_told(plan: &Plan, error: WarmError, seen: &mut Seen) {
    match (&plan.two_phase, error) {
        (Some(_), error) => seen.problem(&error),
        (None, WarmError::Vsphere(error)) => seen.warnings.push(unknown_guest(&error.into())),
        (None, error) => seen.warnings.push(chain(&error)),
    }
}

async fn look_at_machine(job: &Job, vsphere: &Vsphere, seen: &mut Seen) -> Result<(), WarmError> {
    let name = &job.plan.vm_name;
    let inventory = match &job.plan.two_phase {
        Some(_) => vsphere.planned(name).await?,
        // virt-v2v knows it by nothing else.
        None => vsphere.machine(name).await?,
    };
    let snapshots = snapshots(job, vsphere, &inventory, seen).await?;
    let own = own_snapshots(job)?;
    let verdicts = verdict::verdicts(&inventory, &snapshots, &|name| own.iter().any(|own| own == name));
    seen.warnings.extend(verdict::notes(&inventory));
    match &job.plan.two_phase {
        Some(two_phase) => {
            judge(two_phase, vsphere, &inventory, &verdicts, seen).await?;
            let snapshot = two_phase.warm.as_ref().map(|_| SNAPSHOT);
            let files = inventory.backings.iter().map(|backing| backing.file.as_str());
            seen.exports = files.map(|file| vsphere.export(&inventory.moref, file, snapshot)).collect();
        }
        None if inventory.power != PowerState::Off => seen.problems.push(format!(
            "VM {name:?} ({}) is not switched off, and virt-v2v converts no other: shut it down and start the job",
            inventory.moref
        )),
        None => {}
    }
    seen.guest = Some(inventory.guest.clone());
    seen.machine = Some(Machine { inventory, snapshots, verdicts });
    Ok(())
}

async fn snapshots(
    job: &Job,
    vsphere: &Vsphere,
    inventory: &Inventory,
    seen: &mut Seen,
) -> Result<Vec<FoundSnapshot>, OperationError> {
    let is_warm = job.plan.two_phase.as_ref().is_some_and(|two_phase| two_phase.warm.is_some());
    match vsphere.snapshots(&inventory.moref).await {
        // Only the copy of a running machine depends on them.
        Err(error) if !is_warm => {
            seen.warnings.push(format!("its snapshots are not known: {}", chain(&error)));
            Ok(Vec::new())
        }
        snapshots => snapshots,
    }
}

/// Snapshots of the job that is resumed.
fn own_snapshots(job: &Job) -> Result<Vec<String>, JournalError> {
    let Some(files) = &job.earlier else { return Ok(Vec::new()) };
    Ok(Footprint::of(&journal::read(&earlier::journal_of(files))?).snapshots)
}

/// What the stages of the job would refuse, in their words.
async fn judge(
    two_phase: &TwoPhase,
    vsphere: &Vsphere,
    machine: &Inventory,
    verdicts: &[DiskVerdict],
    seen: &mut Seen,
) -> Result<(), WarmError> {
    let (name, moref) = (machine.guest.name.clone(), machine.moref.clone());
    let never = two_phase.shutdown.mode == ShutdownMode::Never;
    if two_phase.warm.is_some() {
        let without_tools = begin::has_tools(two_phase, vsphere, machine).await.err();
        for error in begin::unfit(machine, verdicts).into_iter().chain(without_tools) {
            seen.problem(&error);
        }
        if machine.power == PowerState::Suspended {
            seen.warnings.push(chain(&WarmError::Suspended { name, moref }));
        }
        return Ok(());
    }
    match machine.power {
        PowerState::Off => {}
        power if never => seen.problem(&VsphereError::Running { name, moref, power }),
        PowerState::Suspended => seen.problem(&WarmError::Suspended { name, moref }),
        PowerState::On | PowerState::Unknown => {}
    }
    if machine.backings.is_empty() {
        let (name, moref) = (machine.guest.name.clone(), machine.moref.clone());
        seen.problem(&VsphereError::NoDisk { name, moref });
    }
    // A template is no obstacle to a copy of a machine that is off.
    for disk in verdicts.iter().filter(|_| !machine.template) {
        if let Verdict::Blocked { reason } = &disk.verdict {
            seen.warnings.push(format!("{} cannot be copied: {reason}", disk.label));
        }
    }
    Ok(())
}
