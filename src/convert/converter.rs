//! Which program converts: what differs between virt-v2v and virt-v2v-in-place, and the logs of either.

use std::path::Path;

use tokio::time::Instant;

use crate::event::Event;
use crate::follow::Tail;
use crate::job::Job;
use crate::secret::Scrubber;
use crate::v2v::output::{DriversParser, LogParser, MachineLogParser};

/// The program that converts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Converter<'a> {
    /// Copies and converts.
    VirtV2v {
        /// Where it is.
        program: &'a Path,
    },
    /// Converts disks that were copied.
    InPlace {
        /// Where it is.
        program: &'a Path,
        /// The directory of the overlays that it writes to.
        overlays: &'a Path,
    },
}

impl<'a> Converter<'a> {
    /// As people know it.
    pub fn name(self) -> &'static str {
        match self {
            Converter::VirtV2v { .. } => "virt-v2v",
            Converter::InPlace { .. } => "virt-v2v-in-place",
        }
    }

    pub(super) fn program(self) -> &'a Path {
        match self {
            Converter::VirtV2v { program } | Converter::InPlace { program, .. } => program,
        }
    }

    /// What must have room for as long as it runs. virt-v2v's destinations say themselves when they are full.
    pub(super) fn overlays(self) -> Option<&'a Path> {
        match self {
            Converter::VirtV2v { .. } => None,
            Converter::InPlace { overlays, .. } => Some(overlays),
        }
    }

    pub(super) fn logs(self, job: &Job) -> Logs {
        let tail = |path| Tail::new(path, Scrubber::new(job.plan.secrets()));
        let (parser, drivers) = match self {
            Converter::VirtV2v { .. } => (LogParser::new(), None),
            Converter::InPlace { .. } => (LogParser::of_in_place(), Some(DriversParser::new())),
        };
        Logs {
            log: tail(job.files.v2v_log()),
            machine: tail(job.files.machine_readable_log()),
            parser,
            machine_parser: MachineLogParser::new(),
            drivers,
            last_output: Instant::now(),
        }
    }

    /// virt-v2v-in-place copies nothing: what it opens are the overlays, which nobody outside knows.
    pub(super) fn matters(self, event: &Event) -> bool {
        let of_both = matches!(event, Event::Message { .. } | Event::Warning { .. });
        of_both || matches!(self, Converter::VirtV2v { .. })
    }
}

/// The converter's two logs and what was read in them.
pub(super) struct Logs {
    pub(super) log: Tail,
    pub(super) machine: Tail,
    pub(super) parser: LogParser,
    pub(super) machine_parser: MachineLogParser,
    /// Only virt-v2v-in-place's log is searched for them.
    pub(super) drivers: Option<DriversParser>,
    pub(super) last_output: Instant,
}
