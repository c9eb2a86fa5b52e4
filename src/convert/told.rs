//! What virt-v2v's log tells of the things that it has made: entries of the journal, by which they are removed if the job fails.
//!
//! Called by [`super`] while virt-v2v runs, and by [`crate::supervise`] and [`crate::cli`] when its worker is gone. Whose the
//! things are is not judged here: the destinations do, before they remove any.

use crate::event::Event;
use crate::follow::Tail;
use crate::job::JobFiles;
use crate::journal::{Entry, Journal, JournalError};
use crate::log::chain;
use crate::plan::{Destination, Plan};
use crate::secret::Scrubber;
use crate::things::{Kind, Side};
use crate::v2v::output::LogParser;

/// What the journal says of an event of the log.
pub(super) fn entries(event: &Event, destination: &Destination) -> Vec<Entry> {
    match (event, destination) {
        (Event::TargetServed { path, .. }, _) => vec![Entry::OutputFile { path: path.into() }],
        (Event::DisplayName { name }, _) => vec![Entry::GuestName { name: name.clone() }],
        (Event::OvirtDisk { id }, Destination::Ovirt { .. })
        | (Event::CinderVolume { id, index: None }, Destination::Openstack { .. }) => {
            made_by_virt_v2v(Kind::Disk, id)
        }
        (Event::CinderVolume { id, index: Some(disk) }, Destination::Openstack { .. }) => {
            let mut entries = made_by_virt_v2v(Kind::Disk, id);
            entries.push(Entry::VolumeIndex { id: id.clone(), disk: *disk });
            entries
        }
        (Event::VmId { id }, Destination::Ovirt { .. }) => made_by_virt_v2v(Kind::Machine, id),
        _ => Vec::new(),
    }
}

/// What virt-v2v made at a cloud, or is about to: its id is its mark. A guest's console is in the log too, so whoever undoes
/// it looks first whether it can be this job's.
fn made_by_virt_v2v(kind: Kind, id: &str) -> Vec<Entry> {
    let (mark, id) = (id.to_owned(), id.to_owned());
    let making = Entry::Making { side: Side::Destination, kind, mark: mark.clone(), of: String::new() };
    vec![making, Entry::Made { mark, id }]
}

/// The log of a one-phase job whose worker is gone, read again: what virt-v2v made and nobody came to note goes into the
/// journal. virt-v2v does not run any more.
pub fn note_unread(files: &JobFiles, plan: &Plan) {
    let is_cloud = matches!(plan.destination, Destination::Ovirt { .. } | Destination::Openstack { .. });
    if !is_cloud || plan.two_phase.is_some() || !files.v2v_log().exists() {
        return;
    }
    let mut found: Vec<Entry> = Vec::new();
    let mut take = |event: Event| {
        let new = entries(&event, &plan.destination).into_iter().filter(|entry| !found.contains(entry));
        let new: Vec<Entry> = new.collect();
        found.extend(new);
    };
    let (mut parser, mut log) = (LogParser::new(), Tail::new(files.v2v_log(), Scrubber::new(plan.secrets())));
    loop {
        match log.read(|bytes| parser.feed(bytes, &mut take)) {
            Ok(progress) if progress.more => {}
            Ok(_) => break,
            Err(error) => {
                tracing::error!("cannot read the converter's log: {error}");
                break;
            }
        }
    }
    parser.finish(&mut take);
    if let Err(error) = record(files, &found) {
        tracing::error!("{}", chain(&error));
    }
}

fn record(files: &JobFiles, entries: &[Entry]) -> Result<(), JournalError> {
    let mut journal = Journal::open(&files.journal())?;
    entries.iter().try_for_each(|entry| journal.record_once(entry))
}
