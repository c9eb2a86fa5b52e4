//! What is done to a machine, against the scripted server: what a simulator does not do. Tasks that are slow, stuck or
//! fail, sessions that end in the middle. What is asked about changed areas is in `changes`.

use std::time::Duration;

use virt_v2v_wrapper::source::vsphere::machine::PowerState;
use virt_v2v_wrapper::source::vsphere::operations::OperationError;
use virt_v2v_wrapper::source::vsphere::snapshot::NewSnapshot;
use virt_v2v_wrapper::source::vsphere::task::TaskError;

use super::lab::{Site, site};
use super::server::{Reply, Request, Server, http};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);
const GONE: Reply = Reply::Fault(
    "ManagedObjectNotFound",
    "The object has already been deleted or has not been completely created",
);

fn task() -> Reply {
    Reply::Inside("<returnval type=\"Task\">task-77</returnval>".to_owned())
}

fn object(kind: &str, id: &str, property: &str, value: &str) -> Reply {
    Reply::Inside(format!(
        "<returnval><objects><obj type=\"{kind}\">{id}</obj><propSet><name>{property}</name><val>{value}</val></propSet>\
         </objects></returnval>"
    ))
}

/// The task's `info`.
fn info(inside: &str) -> Reply {
    object("Task", "task-77", "info", &format!("<key>task-77</key>{inside}"))
}

fn running(progress: u32) -> Reply {
    info(&format!("<state>running</state><progress>{progress}</progress>"))
}

fn failed(kind: &str, words: &str) -> Reply {
    info(&format!(
        "<state>error</state><error><fault xsi:type=\"{kind}\"></fault><localizedMessage>{words}</localizedMessage></error>"
    ))
}

fn power(state: &str) -> Reply {
    object("VirtualMachine", "vm-1042", "runtime.powerState", state)
}

fn asks_for_task(request: &Request) -> bool {
    request.body.contains("<obj type=\"Task\">task-77</obj>")
}

fn asks_for_machine(request: &Request) -> bool {
    request.body.contains("<pathSet>runtime.powerState</pathSet>")
}

/// A server whose task `method` goes through `states`, one at each look; the last one stays.
fn tasked(site: &Site, method: &'static str, mut states: Vec<Reply>) -> Server {
    states.reverse();
    site.serve(move |request| match request.method.as_str() {
        called if called == method => task(),
        "RetrievePropertiesEx" if asks_for_task(request) => {
            if states.len() > 1 {
                states.pop().unwrap()
            } else {
                repeated(&states[0])
            }
        }
        _ => Reply::Usual,
    })
}

fn repeated(reply: &Reply) -> Reply {
    match reply {
        Reply::Inside(inside) => Reply::Inside(inside.clone()),
        _ => panic!("only answers are repeated"),
    }
}

fn new(quiesce: bool) -> NewSnapshot {
    NewSnapshot { name: "v2v <1>".into(), description: "of \"me\"".into(), quiesce }
}

/// A task is waited for through everything that passes: a queue, a session that ends, a vCenter that is away.
#[tokio::test]
async fn a_slow_task_is_waited_for_whatever_happens_meanwhile() {
    let Some(site) = site() else { return };
    let states = vec![
        info("<state>queued</state>"),
        running(1),
        Reply::Expired,
        running(50),
        Reply::Raw(http("503 Service Unavailable", "", "no healthy upstream")),
        Reply::Raw(Vec::new()),
        info("<state>success</state>"),
    ];
    let server = tasked(&site, "RemoveSnapshot_Task", states);
    let vsphere = site.vsphere(&server).await;
    vsphere.remove_snapshot("snapshot-7", LONG).await.unwrap();
    vsphere.close().await;
    assert_eq!(
        (server.count("Login"), server.count("RemoveSnapshot_Task")),
        (2, 1),
        "{:?}",
        server.methods()
    );
    let remove =
        server.requests().into_iter().find(|request| request.method == "RemoveSnapshot_Task").unwrap();
    assert!(
        remove.body.contains("snapshot-7</_this><removeChildren>false</removeChildren></"),
        "{}",
        remove.body
    );
}

/// A task that does not end is told with what it does, its id and the time, not waited for.
#[tokio::test]
async fn a_stuck_task_is_named() {
    let Some(site) = site() else { return };
    let server = tasked(&site, "RemoveSnapshot_Task", vec![running(99)]);
    let vsphere = site.vsphere(&server).await;
    let removed = vsphere.remove_snapshot("snapshot-7", Duration::from_millis(1500));
    let error = tokio::time::timeout(LONG, removed).await.expect("it waits for ever").unwrap_err();
    assert!(matches!(error, OperationError::Task(TaskError::Stuck { .. })), "{error:?}");
    let expected = "RemoveSnapshot_Task (task-77) has not ended in 1.5 s: it is running, at 99 %. It goes on without this \
                    program; look for it in the machine's tasks in the vSphere client";
    assert_eq!(error.to_string(), expected);
    vsphere.close().await;
}

/// Only one task at a time changes a machine: the removal of a snapshot that a dead process began is waited for, whether the
/// call or its task says so.
#[tokio::test]
async fn a_machine_that_another_task_holds_is_waited_for() {
    let Some(site) = site() else { return };
    let mut calls = 0;
    let mut states = vec![
        info("<state>success</state>"),
        failed("TaskInProgress", "Another task is already in progress."),
    ];
    let server = site.serve(move |request| match request.method.as_str() {
        "ReconfigVM_Task" => {
            calls += 1;
            if calls == 1 {
                Reply::Fault("TaskInProgress", "Another task is already in progress.")
            } else {
                task()
            }
        }
        "RetrievePropertiesEx" if asks_for_task(request) => states.pop().unwrap(),
        _ => Reply::Usual,
    });
    let vsphere = site.vsphere(&server).await;
    vsphere.set_change_tracking("vm-1042", false).await.unwrap();
    vsphere.close().await;
    assert_eq!(server.count("ReconfigVM_Task"), 3);
}

/// The server's own words, and those it has about the reason.
#[tokio::test]
async fn a_task_that_fails_says_why() {
    let Some(site) = site() else { return };
    let why = failed("ResourceInUse", "The resource is in use.");
    let server = tasked(&site, "ReconfigVM_Task", vec![running(0), why]);
    let vsphere = site.vsphere(&server).await;
    let error = vsphere.set_change_tracking("vm-1042", true).await.unwrap_err();
    let expected = "ReconfigVM_Task failed: The resource is in use (ResourceInUse)";
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.fault().unwrap().kind, "ResourceInUse");
    vsphere.close().await;
    let call = server.requests().into_iter().find(|request| request.method == "ReconfigVM_Task").unwrap();
    assert!(
        call.body.contains("<spec><changeTrackingEnabled>true</changeTrackingEnabled></spec>"),
        "{}",
        call.body
    );
}

/// A task that the server has forgotten, may not show, or never named: nobody knows how it ended, which is not success.
#[tokio::test]
async fn a_task_that_is_not_told_is_no_success() {
    let Some(site) = site() else { return };
    let nothing = || Reply::Inside("<returnval/>".to_owned());
    let hidden = || {
        Reply::Inside(
            "<returnval><objects><obj type=\"Task\">task-77</obj><missingSet><path>info</path><fault><fault \
             xsi:type=\"NoPermission\"/><localizedMessage>Denied.</localizedMessage></fault></missingSet></objects></returnval>"
                .to_owned(),
        )
    };
    for (state, part) in
        [(nothing(), "it is gone"), (GONE, "already been deleted"), (hidden(), "Denied (NoPermission)")]
    {
        let server = tasked(&site, "PowerOnVM_Task", vec![running(1), state, info("<state>success</state>")]);
        let vsphere = site.vsphere(&server).await;
        let error = vsphere.power_on("vm-1042").await.unwrap_err();
        assert!(matches!(error, OperationError::Task(TaskError::Lost { .. })), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
        vsphere.close().await;
    }
    let server = site.serve(|request| match request.method.as_str() {
        "PowerOnVM_Task" => Reply::Inside("<returnval/>".to_owned()),
        _ => Reply::Usual,
    });
    let vsphere = site.vsphere(&server).await;
    let error = vsphere.power_on("vm-1042").await.unwrap_err().to_string();
    assert!(error.ends_with("answered PowerOnVM_Task without a task"), "{error}");
    vsphere.close().await;
}

const HARDWARE: &str = "<device xsi:type=\"VirtualDisk\"><key>2000</key><backing \
    xsi:type=\"VirtualDiskFlatVer2BackingInfo\"><fileName>[s] a/a.vmdk</fileName><uuid>u-1</uuid><changeId>52 \
    ab/3</changeId></backing><capacityInBytes>1048576</capacityInBytes></device>";

/// Created without memory, and read: the change ids are those of the snapshot, not of the machine.
#[tokio::test]
async fn a_snapshot_is_made_and_read() {
    let Some(site) = site() else { return };
    let made = "<state>success</state><result xsi:type=\"ManagedObjectReference\" \
                type=\"VirtualMachineSnapshot\">snapshot-9</result>";
    let server = site.serve(move |request| match request.method.as_str() {
        "CreateSnapshot_Task" => task(),
        "RetrievePropertiesEx" if asks_for_task(request) => info(made),
        "RetrievePropertiesEx"
            if request.body.contains("<obj type=\"VirtualMachineSnapshot\">snapshot-9</obj>") =>
        {
            // The second one cannot be read.
            if request.number > 6 {
                return GONE;
            }
            object("VirtualMachineSnapshot", "snapshot-9", "config.hardware", HARDWARE)
        }
        _ => Reply::Usual,
    });
    let vsphere = site.vsphere(&server).await;
    let snapshot = vsphere.create_snapshot("vm-1042", &new(true)).await.unwrap();
    let [disk] = snapshot.disks.as_slice() else { panic!("{snapshot:?}") };
    assert_eq!((snapshot.moref.as_str(), disk.key, disk.size), ("snapshot-9", 2000, Some(MIB)));
    assert_eq!((disk.change_id.as_deref(), disk.uuid.as_deref()), (Some("52 ab/3"), Some("u-1")));
    assert_eq!(disk.file, "[s] a/a.vmdk");
    let call = server.requests().into_iter().find(|request| request.method == "CreateSnapshot_Task").unwrap();
    let expected = "vm-1042</_this><name>v2v &lt;1&gt;</name><description>of &quot;me&quot;</description>\
                    <memory>false</memory><quiesce>true</quiesce></CreateSnapshot_Task>";
    assert!(call.body.contains(expected), "{}", call.body);
    // Made, but of no use: the caller learns which one it is to remove.
    let error = vsphere.create_snapshot("vm-1042", &new(false)).await.unwrap_err();
    assert!(
        matches!(&error, OperationError::Unread { snapshot, .. } if snapshot == "snapshot-9"),
        "{error:?}"
    );
    assert!(
        error.to_string().starts_with("snapshot snapshot-9 was made, but cannot be read: there is no"),
        "{error}"
    );
    vsphere.close().await;
}

/// peers.md 6.3, row 14: a guest that does not come to rest is told from all else, for then the policy decides.
#[tokio::test]
async fn a_guest_that_cannot_be_quiesced_is_told_from_other_failures() {
    let Some(site) = site() else { return };
    for (kind, words, quiesce) in [
        ("ApplicationQuiesceFault", "An error occurred while saving the snapshot.", true),
        ("FilesystemQuiesceFault", "", true),
        ("GenericVmConfigFault", "An error occurred while quiescing the virtual machine.", true),
        ("ResourceInUse", "The resource is in use.", false),
        ("SnapshotFault", "Detected an invalid snapshot configuration.", false),
    ] {
        let server = tasked(&site, "CreateSnapshot_Task", vec![failed(kind, words)]);
        let vsphere = site.vsphere(&server).await;
        let error = vsphere.create_snapshot("vm-1042", &new(true)).await.unwrap_err();
        assert_eq!(error.is_quiesce(), quiesce, "{error}");
        // The sentence goes on after them.
        assert!(error.to_string().contains(words.trim_end_matches('.')), "{error}");
        vsphere.close().await;
    }
}

/// What is gone already need not be removed: by the call, or by the task. Another refusal is one.
#[tokio::test]
async fn a_snapshot_that_is_gone_is_removed() {
    let Some(site) = site() else { return };
    let server = site.serve(|request| match request.method.as_str() {
        "RemoveSnapshot_Task" => GONE,
        _ => Reply::Usual,
    });
    let vsphere = site.vsphere(&server).await;
    vsphere.remove_snapshot("snapshot-7", LONG).await.unwrap();
    assert!(vsphere.begin_to_remove_snapshot("snapshot-7").await.unwrap_err().is_gone());
    vsphere.close().await;
    for (kind, well) in [("ManagedObjectNotFound", true), ("NoPermission", false)] {
        let server = tasked(&site, "RemoveSnapshot_Task", vec![failed(kind, "x")]);
        let vsphere = site.vsphere(&server).await;
        assert_eq!(vsphere.remove_snapshot("snapshot-7", LONG).await.is_ok(), well, "{kind}");
        vsphere.close().await;
    }
}

/// Begun and not waited for: the caller may wait later.
#[tokio::test]
async fn a_removal_may_go_on_by_itself() {
    let Some(site) = site() else { return };
    let server = tasked(&site, "RemoveSnapshot_Task", vec![running(10), info("<state>success</state>")]);
    let vsphere = site.vsphere(&server).await;
    let task = vsphere.begin_to_remove_snapshot("snapshot-7").await.unwrap();
    assert_eq!(server.count("RetrievePropertiesEx"), 0);
    vsphere.wait_for(&task, "RemoveSnapshot_Task", LONG).await.unwrap();
    assert_eq!(server.count("RetrievePropertiesEx"), 2);
    vsphere.close().await;
}

/// Snapshots that the user may not see are not a machine without snapshots.
#[tokio::test]
async fn hidden_snapshots_are_an_error() {
    let Some(site) = site() else { return };
    for (inside, expected) in [
        ("", Ok(0)),
        (
            "<propSet><name>snapshot</name><val><rootSnapshotList><snapshot type=\"VirtualMachineSnapshot\">snapshot-1\
             </snapshot><name>a</name><id>1</id></rootSnapshotList></val></propSet>",
            Ok(1),
        ),
        (
            "<missingSet><path>snapshot</path><fault><fault xsi:type=\"NoPermission\"/><localizedMessage>Denied.\
             </localizedMessage></fault></missingSet>",
            Err("does not tell the snapshots of VirtualMachine vm-1042: Denied (NoPermission)"),
        ),
    ] {
        let server = site.serve(move |request| match request.body.contains("<pathSet>snapshot</pathSet>") {
            true => Reply::Inside(format!(
                "<returnval><objects><obj type=\"VirtualMachine\">vm-1042</obj>{inside}</objects></returnval>"
            )),
            false => Reply::Usual,
        });
        let vsphere = site.vsphere(&server).await;
        match (vsphere.snapshots("vm-1042").await, expected) {
            (Ok(found), Ok(count)) => assert_eq!(found.len(), count),
            (Err(error), Err(part)) => assert!(error.to_string().ends_with(part), "{error}"),
            (told, expected) => panic!("{told:?} instead of {expected:?}"),
        }
        vsphere.close().await;
    }
}

/// Only the state that was wanted makes a refusal well: the server is asked, its words may be in any language.
#[tokio::test]
async fn a_machine_that_is_off_already_is_switched_off() {
    let Some(site) = site() else { return };
    let refused = || failed("InvalidPowerState", "Der Vorgang ist im aktuellen Zustand nicht erlaubt.");
    for (method, state, well) in [
        ("PowerOffVM_Task", "poweredOff", true),
        ("PowerOffVM_Task", "suspended", false),
        ("PowerOnVM_Task", "poweredOn", true),
        ("PowerOnVM_Task", "poweredOff", false),
    ] {
        let server = site.serve(move |request| match request.method.as_str() {
            called if called == method => task(),
            "RetrievePropertiesEx" if asks_for_task(request) => refused(),
            "RetrievePropertiesEx" if asks_for_machine(request) => power(state),
            _ => Reply::Usual,
        });
        let vsphere = site.vsphere(&server).await;
        let done = match method {
            "PowerOffVM_Task" => vsphere.power_off("vm-1042").await,
            _ => vsphere.power_on("vm-1042").await,
        };
        assert_eq!(done.is_ok(), well, "{method} {state}: {done:?}");
        vsphere.close().await;
    }
    // A guest that shut down just before; a guest without tools.
    for (fault, well) in [
        (Reply::Fault("InvalidPowerState", "Invalid."), true),
        (Reply::Fault("ToolsUnavailable", "VMware Tools is not running."), false),
    ] {
        let mut fault = Some(fault);
        let server = site.serve(move |request| match request.method.as_str() {
            "ShutdownGuest" => fault.take().unwrap(),
            "RetrievePropertiesEx" if asks_for_machine(request) => power("poweredOff"),
            _ => Reply::Usual,
        });
        let vsphere = site.vsphere(&server).await;
        let done = vsphere.shut_down_guest("vm-1042").await;
        assert_eq!(done.is_ok(), well, "{done:?}");
        assert_eq!(vsphere.power("vm-1042").await.unwrap().state, PowerState::Off);
        vsphere.close().await;
    }
}
