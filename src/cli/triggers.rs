//! `virt-v2v-wrapper cutover`, `pause`, `unpause`, `copy-now`: what a client does to a warm job with `touch`, for people.
//!
//! They say what will happen, refuse where nothing would, and may be repeated. The files are [`crate::warm::triggers`]'s;
//! who obeys them is the job's worker ([`crate::warm::wait`]).

use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::log::chain;
use crate::state_file;
use crate::warm::triggers::{Cutover, Requested, Triggers};

/// What is asked of a job.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    Cutover(Cutover),
    Pause,
    Unpause,
    Copy,
}

impl Ask {
    fn carry_out(self, triggers: &Triggers) -> std::io::Result<Requested> {
        match self {
            Self::Cutover(cutover) => triggers.request_cutover(cutover),
            Self::Pause => triggers.request_pause(),
            Self::Unpause => triggers.end_pause(),
            Self::Copy => triggers.request_copy(),
        }
    }

    /// What was done, and what follows from it. `paused`: before it was.
    fn sentence(self, requested: Requested, paused: bool) -> &'static str {
        match (self, requested, paused) {
            (Self::Cutover(Cutover::Asked), Requested::Made, false) => {
                "cutover requested: the last copy begins within seconds, or when the copy that runs is done"
            }
            (Self::Cutover(Cutover::Asked), Requested::Already, false) => {
                "cutover was already requested: the last copy begins when the copy that runs is done"
            }
            (Self::Cutover(Cutover::Asked), Requested::Made, true) => {
                "cutover requested: the job is paused, the last copy begins after unpause; cutover --now ends the pause"
            }
            (Self::Cutover(Cutover::Asked), Requested::Already, true) => {
                "cutover was already requested: the job is paused, the last copy begins after unpause; cutover --now ends \
                 the pause"
            }
            (Self::Cutover(Cutover::Now), Requested::Made, _) => {
                "cutover requested: the last copy begins within seconds, or when the copy that runs is done; a pause ends"
            }
            (Self::Cutover(Cutover::Now), Requested::Already, _) => {
                "cutover was already requested: the last copy begins when the copy that runs is done; a pause ends"
            }
            (Self::Pause, Requested::Made, _) => {
                "pause requested: a copy that runs goes on to its end, and no other begins before unpause; the state file \
                 says Paused"
            }
            (Self::Pause, Requested::Already, _) => "pause was already requested",
            (Self::Unpause, Requested::Made, _) => "the pause is over: the next copy begins when it is due",
            (Self::Unpause, Requested::Already, _) => "there is no pause",
            (Self::Copy, Requested::Made, false) => {
                "a copy is requested: it begins within seconds, or when the copy that runs is done"
            }
            (Self::Copy, Requested::Made, true) => {
                "a copy is requested: the job is paused, it begins after unpause"
            }
            (Self::Copy, Requested::Already, _) => "a copy was already requested",
        }
    }
}

/// Exit code: 0 requested, also if it was before; 1 it cannot be.
pub(super) fn run(ask: Ask, state_file: &Path, out: &mut impl Write) -> std::io::Result<u8> {
    if let Err(sentence) = listens(state_file) {
        return Ok(super::complain(&sentence));
    }
    let triggers = Triggers::beside(state_file);
    let paused = triggers.asked().pause;
    match ask.carry_out(&triggers) {
        Ok(requested) => {
            writeln!(out, "{}", ask.sentence(requested, paused))?;
            Ok(0)
        }
        Err(error) => Ok(super::complain(&refused(state_file, &error))),
    }
}

/// Is there a job that will see a trigger? Else why not, in a sentence.
fn listens(state_file: &Path) -> Result<(), String> {
    let shown = state_file.display();
    // Before the state is read: a job that ends between the two has then written its last state.
    let alive = super::watch::is_alive(state_file);
    let state = state_file::read(state_file).map_err(|error| {
        format!("{}: give the state_file of the reply, or one that `jobs --json` lists", chain(&error))
    })?;
    if state.is_finished() {
        return Err(format!("the job of {shown} is over"));
    }
    if !alive {
        return Err(format!(
            "the processes of the job of {shown} are gone; the next start of virt-v2v-wrapper cleans up"
        ));
    }
    if state.warm != Some(true) {
        return Err(format!(
            "the job of {shown} is not warm: it copies once and needs no cutover (\"warm\": true in the document makes \
             a warm one)"
        ));
    }
    if state.is_cut_over() {
        return Err(format!("the last copy of the job of {shown} has begun already"));
    }
    Ok(())
}

fn refused(state_file: &Path, error: &std::io::Error) -> String {
    let directory = state_file.parent().unwrap_or(Path::new("."));
    match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "cannot ask the job of {}: only the user whose job it is may write to {}; try again with sudo",
            state_file.display(),
            directory.display()
        ),
        _ => format!("cannot ask the job of {}: {error}", state_file.display()),
    }
}
