//! The sweep: closes jobs whose processes were all killed, at the next start of the program.
//!
//! Such a job left a lock file that nobody holds. Its processes that live on are killed (by the tag in their
//! environment), what its journal lists is undone, and its state says failed and finished. Jobs that live, and jobs
//! that are over, are not touched. Called by [`crate::start`] and `virt-v2v-wrapper jobs` before anything else.

use std::path::Path;
use std::time::Duration;

use crate::job::{JobFiles, Taken};
use crate::journal::{self, Fate};
use crate::log::chain;
use crate::state::State;
use crate::{leftovers, process, state_file, supervise};

const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Closes every dead job among `jobs`; a sentence for each, since no log is open yet when a start calls this.
pub fn sweep(jobs: impl IntoIterator<Item = JobFiles>) -> Vec<String> {
    jobs.into_iter().filter(|files| files.lock().exists()).filter_map(|files| close_if_dead(&files)).collect()
}

fn close_if_dead(files: &JobFiles) -> Option<String> {
    // Held until the end of this function, so that two starts at once do not close the same job twice.
    let _lock = match files.take_lock() {
        Ok(Taken::Free(lock)) => lock,
        Ok(Taken::Held | Taken::Gone) => return None,
        Err(error) => return Some(format!("a dead job could not be closed: {}", chain(&error))),
    };
    let tag = read_tag(&files.directory).unwrap_or_else(|| files.tag.clone());
    leftovers::note(&files.journal(), &process::marked(&tag));
    let killed = process::marked(&tag).len();
    process::kill_all(|| process::marked(&tag), KILL_PATIENCE);
    let path = files.state();
    let mut state = state_file::read(&path).unwrap_or_else(|error| {
        tracing::warn!("{}", chain(&error));
        State::default()
    });
    if !state.is_finished() {
        let message =
            match journal::read(&files.journal()).is_ok_and(|entries| journal::fate(&entries) == Fate::Kept) {
                true => "All processes of the job were killed (or the host went down)".to_owned(),
                false => "All processes of the job were killed (or the host went down); what it had begun was undone at the \
                          next start. Start the job again"
                    .to_owned(),
            };
        supervise::finish_for_the_dead(files, &mut state, message);
    } else {
        files.remove_lock();
    }
    state_file::remove_temporary(&files.directory);
    Some(format!("job {tag} was found dead and closed; {killed} of its processes were still there"))
}

/// The tag of the job that holds (or held) the lock: it is the lock file's content.
fn read_tag(directory: &Path) -> Option<String> {
    let tag = std::fs::read_to_string(directory.join("lock")).ok()?;
    let tag = tag.trim();
    (!tag.is_empty()).then(|| tag.to_owned())
}
