//! A document judged on this host: parsed, planned, its programs found, what it names looked at.
//!
//! An edge that changes nothing. Both a job that is started ([`super`]) and one that is only shown ([`crate::look`]) come
//! through here, so that what the one refuses the other refuses in the same words. What must be made for a job (its
//! directories, lock, log) is the caller's.

use std::path::{Path, PathBuf};

use crate::document::{self, Parsed};
use crate::job::JobFiles;
use crate::log::chain;
use crate::plan::problems::Problems;
use crate::plan::{self, Plan, TwoPhasePrograms};
use crate::preflight;
use crate::site::{Directories, Site, SiteError, find_program};
use crate::two_phase::earlier::{self, Stage};
use crate::v2v::capabilities::Capabilities;
use crate::v2v::probe;

/// Why a job is not started: one line each for stderr, the first in the old program's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) Vec<String>);

impl Refused {
    pub(crate) fn because(error: &dyn std::error::Error) -> Self {
        Self(vec![chain(error)])
    }

    fn for_problems(problems: &Problems) -> Self {
        Self(problems.lines().to_vec())
    }
}

/// A document whose keys are in order.
#[derive(Debug)]
pub(crate) struct Judged {
    /// What will be done, with the vault's keys in it.
    pub(crate) plan: Plan,
    /// The files of the job that it resumes, and how far that came.
    pub(crate) earlier: Option<(JobFiles, Stage)>,
    /// Keys that nobody knows.
    pub(crate) unknown_keys: Vec<String>,
    /// What this host lacks of what the plan names. Not told before the log knows the vault's keys.
    pub(crate) looked: Result<(), Refused>,
    /// The programs, as they were found or not.
    programs: Programs,
}

/// Judges a document, up to what is to be told without a log.
pub(crate) fn judge(
    site: &Site,
    directories: &Directories,
    files: &JobFiles,
    parsed: Result<Parsed, document::DocumentError>,
) -> Result<Judged, Refused> {
    let Parsed { document, unknown_keys } = parsed.map_err(|error| Refused::because(&error))?;
    let programs = Programs::find(site);
    let env = |name: &str| std::env::var_os(name);
    let around = preflight::surroundings(&env, found(&programs.virt_v2v), programs.two_phase())
        .map_err(|error| Refused::because(&error))?;
    let mut plan =
        plan::plan(document, site, &around).map_err(|problems| Refused::for_problems(&problems))?;
    plan.warnings.extend(Site::missing_file(&env));
    let earlier = match plan.two_phase.as_ref().and_then(|two_phase| two_phase.resume.as_deref()) {
        Some(tag) => Some(earlier(directories, files, tag)?),
        None => None,
    };
    let stage = earlier.as_ref().map(|(_, stage)| *stage);
    let looked = preflight::check(&mut plan, stage).map_err(|problems| Refused::for_problems(&problems));
    Ok(Judged { plan, earlier, unknown_keys, looked, programs })
}

impl Judged {
    /// The programs that this job needs are there, and what virt-v2v can do.
    pub(crate) fn capabilities(&self) -> Result<Capabilities, Refused> {
        let Programs { virt_v2v, nbdkit, qemu_nbd, qemu_img, in_place } = &self.programs;
        if self.plan.two_phase.as_ref().is_some_and(|two_phase| !two_phase.convert) {
            // Volumes are copied to volumes, and nothing is converted.
            return Ok(Capabilities::default());
        }
        if let Err(error) = virt_v2v {
            return Err(Refused::because(error));
        }
        let two_phase = self.plan.two_phase.is_some();
        if two_phase {
            for program in [nbdkit, qemu_nbd, qemu_img, in_place] {
                if let Err(error) = program {
                    return Err(Refused(vec![format!("two_phase: {}", chain(error))]));
                }
            }
        }
        let program = &self.plan.tools.virt_v2v;
        let capabilities = probe::capabilities(program).map_err(|error| Refused::because(&error))?;
        if two_phase && !capabilities.is_v2() {
            return Err(Refused(vec![format!(
                "two_phase needs virt-v2v 2.0 or later, and {} is older: install a newer one, or remove two_phase from the \
                 document to convert in one phase",
                program.display()
            )]));
        }
        Ok(capabilities)
    }
}

/// The files of the job that is resumed, if it can be, and how far it came.
fn earlier(directories: &Directories, files: &JobFiles, tag: &str) -> Result<(JobFiles, Stage), Refused> {
    let earlier = directories.job_files(tag);
    // With layout uci the place is this job's by now, and its lock says nothing of the earlier one.
    let over = if earlier.directory == files.directory { Ok(()) } else { earlier::is_over(&earlier) };
    let stage = over.and_then(|()| earlier::find(&earlier)).map_err(|error| Refused::because(&error))?;
    Ok((earlier, stage))
}

/// Whether each program is there is known before the document is judged, and told after it.
#[derive(Debug)]
struct Programs {
    virt_v2v: Result<PathBuf, SiteError>,
    nbdkit: Result<PathBuf, SiteError>,
    qemu_nbd: Result<PathBuf, SiteError>,
    qemu_img: Result<PathBuf, SiteError>,
    in_place: Result<PathBuf, SiteError>,
}

impl Programs {
    fn find(site: &Site) -> Self {
        let path = std::env::var_os("PATH");
        let find = |configured: Option<&Path>, name: &str, extra: &[&Path]| {
            find_program(configured, name, extra, path.as_deref())
        };
        // Where distributions keep it (virt-v2v-output.md 9).
        let libexec = [Path::new("/usr/libexec"), Path::new("/usr/lib/virt-v2v")];
        Self {
            virt_v2v: find(site.virt_v2v.as_deref(), "virt-v2v", &[]),
            nbdkit: find(site.nbdkit.as_deref(), "nbdkit", &[]),
            qemu_nbd: find(None, "qemu-nbd", &[]),
            qemu_img: find(None, "qemu-img", &[]),
            in_place: find(site.virt_v2v_in_place.as_deref(), "virt-v2v-in-place", &libexec),
        }
    }

    fn two_phase(&self) -> TwoPhasePrograms {
        TwoPhasePrograms {
            nbdkit: found(&self.nbdkit),
            qemu_nbd: found(&self.qemu_nbd),
            qemu_img: found(&self.qemu_img),
            virt_v2v_in_place: found(&self.in_place),
        }
    }
}

fn found(program: &Result<PathBuf, SiteError>) -> PathBuf {
    program.as_ref().ok().cloned().unwrap_or_default()
}
