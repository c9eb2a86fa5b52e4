//! The end of a task: what vSphere's `*_Task` methods begin is watched until it has succeeded, failed, or taken too long.
//!
//! Polls the task's `info` by the property collector. A task belongs to no session: one that expires, or a vCenter that
//! is away for a moment, does not end the wait. Not here: what is begun (`snapshot`, `power`, `operations`, which call
//! this).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::Client;
use super::error::ClientError;
use super::properties::Of;
use super::soap::{Call, Element, Fault, Reference};
use crate::json::one_line;

/// Pause between two looks: the first, and the longest.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);
/// How long a server may be out of reach. The task goes on without us.
const AWAY: Duration = Duration::from_secs(120);
/// All of a task's state.
const INFO: &str = "info";

/// What a task may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From the first look on.
    pub limit: Duration,
}

/// A task did not do what it was to do, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The server. If it was the call that begins the task, nothing began, or its answer is lost.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It failed.
    #[error("{method} failed: {fault}")]
    Failed {
        /// The method that began it.
        method: &'static str,
        /// The server's words.
        fault: Fault,
    },
    /// It goes on and on. It may still succeed later.
    #[error(
        "{method} ({task}) has not ended in {} s: {doing}. It goes on without this program; look for it in the \
         machine's tasks in the vSphere client",
        waited.as_secs_f32()
    )]
    Stuck {
        /// The method that began it.
        method: &'static str,
        /// Id of the task.
        task: String,
        /// Its state in the end, e.g. `it is running, at 35 %`.
        doing: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The server has forgotten it, as it does some minutes after its end.
    #[error("{url} does not tell how {method} ({task}) ended: {reason}")]
    Lost {
        /// URL of the SDK.
        url: String,
        /// The method that began it.
        method: &'static str,
        /// Id of the task.
        task: String,
        /// Why.
        reason: String,
    },
}

impl TaskError {
    /// The server's refusal, of the call or of the task.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Client(error) => error.fault(),
            Self::Failed { fault, .. } => Some(fault),
            Self::Stuck { .. } | Self::Lost { .. } => None,
        }
    }

    /// Only one task at a time changes a machine.
    fn is_busy(&self) -> bool {
        self.fault().is_some_and(|fault| fault.kind == "TaskInProgress")
    }
}

/// Calls a method that begins a task and waits for its end; gives the task's result, if it has one. Where another task holds
/// the machine (the removal of a snapshot that a dead process began) its end is waited for, too.
pub async fn run(client: &Client, call: &Call, terms: Terms) -> Result<Option<Element>, TaskError> {
    let began = Instant::now();
    let mut pause = FIRST;
    loop {
        let ended = match begin(client, call).await {
            Ok(task) => wait(client, &task, call.method(), terms).await,
            Err(error) => Err(error.into()),
        };
        match ended {
            Err(error) if error.is_busy() && began.elapsed() < terms.limit => {
                tracing::debug!("{error}; trying again");
                sleep(pause).await;
                pause = (pause * 3 / 2).min(LONGEST);
            }
            ended => return ended,
        }
    }
}

/// Only begins it.
pub async fn begin(client: &Client, call: &Call) -> Result<Reference, ClientError> {
    let task = client.value(call).await?.reference();
    task.ok_or_else(|| client.incomplete(call.method(), "a task"))
}

/// Waits for the end of a task that `method` began.
pub async fn wait(
    client: &Client,
    task: &Reference,
    method: &'static str,
    terms: Terms,
) -> Result<Option<Element>, TaskError> {
    let began = Instant::now();
    let (mut pause, mut doing) = (FIRST, "it was never seen".to_owned());
    let mut heard = began;
    loop {
        match look(client, task, method).await {
            Ok(State::Done(result)) => return Ok(result),
            Ok(State::Failed(fault)) => return Err(TaskError::Failed { method, fault }),
            Ok(State::Going(now)) => (doing, heard) = (now, Instant::now()),
            Err(TaskError::Client(error)) if error.may_pass() && heard.elapsed() < AWAY => {
                tracing::warn!("cannot look at {} ({method}), which goes on: {error}", task.value);
            }
            Err(error) => return Err(error),
        }
        let left = terms.limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            let (task, waited) = (task.value.clone(), terms.limit);
            return Err(TaskError::Stuck { method, task, doing, waited });
        }
        sleep(pause.min(left)).await;
        pause = (pause * 3 / 2).min(LONGEST);
    }
}

async fn look(client: &Client, task: &Reference, method: &'static str) -> Result<State, TaskError> {
    let lost = |reason: String| {
        let (url, task) = (client.url().to_owned(), task.value.clone());
        TaskError::Lost { url, method, task, reason }
    };
    let tasks = [task.clone()];
    let objects = match client.properties(Of::Objects(&tasks), &[(&task.kind, &[INFO])]).await {
        Err(ClientError::Fault { fault, .. }) if fault.is_not_found() => return Err(lost(fault.to_string())),
        objects => objects?,
    };
    let object = objects.iter().find(|object| object.reference == *task);
    let object = object.ok_or_else(|| lost("it is gone".to_owned()))?;
    match (object.get(INFO), object.why_missing(INFO)) {
        (Some(info), _) => Ok(state(info)),
        (None, Some(fault)) => Err(lost(fault.to_string())),
        (None, None) => Err(lost("it has no state".to_owned())),
    }
}

#[derive(Debug, PartialEq)]
enum State {
    Done(Option<Element>),
    Failed(Fault),
    /// In words.
    Going(String),
}

fn state(info: &Element) -> State {
    match info.text_of("state") {
        Some("success") => State::Done(info.child("result").cloned()),
        Some("error") => State::Failed(info.child("error").map(Fault::localized).unwrap_or_default()),
        state => {
            let state = one_line(state.unwrap_or("in no state that the server tells"), 100);
            State::Going(match info.number::<u32>("progress") {
                Some(progress) => format!("it is {state}, at {progress} %"),
                None => format!("it is {state}"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::vsphere::soap::{Answer, parse};

    fn info(inside: &str) -> Element {
        let text = format!("<Envelope xmlns:xsi='x'><Body><info>{inside}</info></Body></Envelope>");
        let Answer::Response(info) = parse(text.as_bytes()).unwrap() else { panic!("a fault") };
        info
    }

    /// Only `success` and `error` are an end; whatever else a server says is waited for.
    #[test]
    fn a_task_has_ended_only_when_it_says_so() {
        let done =
            state(&info("<state>success</state><result type='VirtualMachineSnapshot'>snapshot-7</result>"));
        let State::Done(Some(result)) = done else { panic!("{done:?}") };
        assert_eq!(result.reference(), Some(Reference::new("VirtualMachineSnapshot", "snapshot-7")));
        assert_eq!(state(&info("<state>success</state>")), State::Done(None));
        for (inside, words) in [
            ("<state>queued</state>", "it is queued"),
            ("<state>running</state><progress>35</progress>", "it is running, at 35 %"),
            ("<state>running</state><progress>-1</progress>", "it is running"),
            ("<state>somewhat\u{7f}</state>", "it is somewhat\\u{7f}"),
            ("", "it is in no state that the server tells"),
        ] {
            assert_eq!(state(&info(inside)), State::Going(words.to_owned()));
        }
    }

    #[test]
    fn a_failed_task_has_the_servers_words() {
        for (inside, shown) in [
            (
                "<error><fault xsi:type='ApplicationQuiesceFault'><faultMessage><key>k</key><message>VSS writer \
                 failed.</message></faultMessage></fault><localizedMessage>Cannot quiesce.</localizedMessage></error>",
                "Cannot quiesce. VSS writer failed (ApplicationQuiesceFault)",
            ),
            ("<error><fault xsi:type='RequestCanceled'/></error>", "RequestCanceled"),
            ("", "a fault without words"),
        ] {
            let State::Failed(fault) = state(&info(&format!("<state>error</state>{inside}"))) else {
                panic!("no failure")
            };
            assert_eq!(fault.to_string(), shown);
        }
    }
}
