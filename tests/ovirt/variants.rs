//! Engines that answer otherwise than ours, and are right: what the API does not promise is not demanded, and what a job can
//! do without ends none.

use serde_json::{Value, json};

use super::engine::{Effect, Fault};
use super::faults::{STEPS, at, document};
use super::site::{Lab, message};

const ALWAYS: usize = 1000;

/// The token in a list, which some versions gave; or no token at all, in words of the same shape as a refusal.
#[test]
fn a_login_has_several_shapes() {
    const WORDS: &str = r#"{"error": "unauthorized"}"#;
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.world().tokens.insert("of-a-list".to_owned());
    let list = r#"[{"access_token": "of-a-list", "token_type": "bearer"}]"#;
    lab.engine.fault(Fault::at("^POST /ovirt-engine/sso", Effect::Say(200, list)));
    let last = lab.run(&json!({}));
    lab.assert_there(&last, "guest");
    let of_list = |header: &str| header == "Bearer of-a-list";
    assert!(lab.engine.requests().iter().skip(1).any(|request| of_list(&request.authorization)));
    let Some(lab) = Lab::new("uci") else { return };
    lab.engine.fault(Fault::at("^POST /ovirt-engine/sso/oauth", Effect::Say(401, WORDS)).times(ALWAYS));
    let last = lab.run(&json!({}));
    lab.assert_there(&last, "guest");
}

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
