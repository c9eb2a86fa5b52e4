//! The one copy of a machine that ran until its job switched it off.

use serde_json::json;

use super::lab::{Lab, compare, hash};
use super::lessons::{at, failed, steps, two_disks, with};
use super::whole::found;
use crate::two_phase::site::play_to;

/// `two_phase` with `shutdown_mode`: off first, then copied; and it runs again when the conversion failed.
#[test]
fn a_machine_is_switched_off_before_its_only_copy_and_on_again_after_a_failure() {
    for mode in ["auto", "force"] {
        let Some(mut lab) = Lab::start("job", &two_disks()) else { return };
        lab.control("guest?shutdownAfter=1");
        lab.write(&[]);
        lab.wait_written(10);
        let before = found(&lab);
        let keys = json!({
            "warm": null, "two_phase": true, "shutdown_mode": mode, "finalize_settle_seconds": 1,
        });
        play_to(&lab.sandbox, &[], 1);
        // What was kept of it stays for a resume, in the place of the disks.
        std::fs::create_dir(lab.sandbox.path("failed")).unwrap();
        let mut job = lab.job(&with(keys.clone(), &json!({"output_directory": lab.sandbox.path("failed")})));
        let message = failed(&lab, &mut job);
        assert!(message.contains("no root device found"), "{message}");
        assert_eq!((lab.power().as_str(), found(&lab)), ("poweredOn", before.clone()), "{mode}");
        lab.wait_written(10);

        lab.play(&[]);
        let then = steps(&lab).len();
        let mut job = lab.job(&keys);
        let last = lab.end(&mut job);
        assert_eq!(last["failed"], json!(false), "{last:#}");
        lab.rest();
        for (disk, raw) in lab.raws.iter().enumerate() {
            compare(raw, &lab.target(disk), "raw", true).unwrap();
            assert_eq!(last["disks"][disk]["checksum"], json!(hash(raw)), "{mode}");
        }
        assert_eq!((lab.power().as_str(), found(&lab)), ("poweredOff", before), "{mode}");
        let steps = &steps(&lab)[then..];
        assert!(at(steps, "sim: power done poweredOff") < at(steps, "vddk: open"), "{steps:#?}");
        let asked = steps.iter().any(|step| step.starts_with("ShutdownGuest"));
        assert_eq!(asked, mode == "auto", "{steps:#?}");
        assert!(!steps.iter().any(|step| step.contains("Snapshot")), "{steps:#?}");
    }
}
