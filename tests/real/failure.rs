//! Guests that cannot be converted. The user reads virt-v2v's own reason in `last_message`.

use serde_json::json;

use crate::lab::{self, Site, V2V};

/// The reason virt-v2v gives is the reason the user reads.
fn fails_with(options: &[&str], reason: &str) {
    if !lab::have(V2V) {
        return;
    }
    let site = Site::new();
    site.guest("guest", options);
    let mut job = site.start(&site.local_document("guest/guest-disk1.img"));
    let message = job.assert_failed();
    assert!(message.contains(reason), "{message:?} does not say {reason:?}");
    assert_eq!(job.state()["return_code"], json!(1));
}

/// A disk without an operating system.
#[test]
fn no_operating_system() {
    fails_with(&["--no-os"], "inspection could not detect the source guest");
}

/// A guest without a kernel package: found out only in the middle of the conversion.
#[test]
fn no_kernel() {
    fails_with(&["--no-kernel"], "no installed kernel packages were found");
}

/// An appliance that never boots (a /dev/kvm that opens and hangs, without a word) is noticed, and the remedy named.
#[test]
fn an_appliance_that_does_not_boot() {
    if !lab::have(V2V) {
        return;
    }
    let Some(site) = Site::with_hanging_kvm() else {
        lab::note("not tested: /dev/kvm does not hang here");
        return;
    };
    site.guest("guest", &[]);
    let mut job = site.start(&site.local_document("guest/guest-disk1.img"));
    let message = job.assert_failed();
    assert!(message.contains("libguestfs_backend_settings = \"force_tcg\""), "{message:?}");
}
