//! Cancel and death in the middle of a real conversion. Cancel during the copy is in `vddk`, which can slow it down.

use crate::job::Process;
use crate::lab::{self, Site, V2V};
use nix::sys::signal::Signal;

/// TERM to `pid` while virt-v2v converts. Inside a libguestfs call virt-v2v itself would go on for half a minute.
#[test]
fn term_to_the_pid_during_the_conversion_leaves_nothing() {
    if !lab::have(V2V) {
        return;
    }
    let site = Site::new();
    site.guest("guest", &[]);
    let mut job = site.start(&site.local_document("guest/guest-disk1.img"));
    let pid = job.until_started();
    job.until_message("Converting");
    lab::signal(pid, Signal::SIGTERM);
    job.assert_failed();
}

/// The worker is killed while the appliance runs: the supervisor ends what is left (a qcow2 source has a qemu-nbd,
/// which would live for ever), and the state says so.
#[test]
fn a_killed_worker_is_cleaned_up_after() {
    if !lab::have(V2V) {
        return;
    }
    let site = Site::new();
    site.guest("guest", &["--formats", "qcow2"]);
    let mut job = site.start(&site.local_document("guest/guest-disk1.qcow2"));
    let pid = job.until_started();
    job.until_message("Opening the source");
    job.until("the source's qemu-nbd", |job, _| {
        job.site.processes().iter().any(|process| lab::contains(&process.cmdline, b"qemu-nbd"))
    });
    let worker = Process::of(pid).expect("virt-v2v runs").parent;
    assert!(worker > 1, "virt-v2v is the worker's child");
    lab::signal(worker, Signal::SIGKILL);
    job.assert_failed();
}
