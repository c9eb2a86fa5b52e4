//! Engines that answer otherwise than ours, and are right: what the API does not promise is not demanded, and what a job can
//! do without ends none.

use serde_json::{Value, json};

use super::engine::{Effect, Fault};
use super::faults::{STEPS, at, document};
use super::site::{Lab, message};


/// Attachments with ids of their own, which do not say whether they are active: the serial number is the attachment's
/// (contract.md 6.2).
#[test]
fn an_attachment_need_not_be_its_disk() {
    for (own_ids, mute) in [(true, false), (false, true), (true, true)] {
        let Some(lab) = Lab::new("job") else { return };
        lab.engine.world().own_ids = own_ids;
        lab.engine.world().mute = mute;
        let last = lab.run(&document(&lab));
        lab.assert_there(&last, "guest");
        // The same with answers that are lost, and in an undo.
        let Some(lab) = Lab::new("job") else { return };
        lab.engine.world().own_ids = own_ids;
        lab.engine.world().mute = mute;
        for line in STEPS.into_iter().filter(|line| line.contains("diskattachments")) {
            lab.engine.fault(at(&lab, line, Effect::DropAfter));
        }
        lab.engine.fault(Fault::at("^POST vms/[^/]+/nics$", Effect::Refuse(400, "[no]")));
        let last = lab.run(&document(&lab));
        assert!(message(&last).contains("Create NIC 1 (lan) failed"), "{last:#}");
        assert_eq!(last.get("warnings"), None, "{last:#}");
        lab.assert_as_before();
    }
}
