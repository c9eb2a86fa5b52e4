//! Secrets of the document on their way through the plan.

use super::*;

/// Every secret of a document is known to the scrubber, whether the job uses it or not, and no text shows it.
#[test]
fn secrets_are_known_and_never_shown() {
    let pem = "-----BEGIN KEY-----\nMARKERlineone\nshort\n-----END KEY-----\n";
    let secrets = json!({"vmware_password": "MARKER-vmw", "rhv_password": "MARKER-rhv", "ssh_key": pem,
        "osp_environment": {"os-auth_url": "http://k", "OS_PASSWORD": "MARKER-osp", "os-username": "carol",
            "OS_APPLICATION_CREDENTIAL_SECRET": "MARKER-cred", "os_token": "MARKER-token"},
        "vmware_uri": "esx://root:MARKER%2Duri@127.0.0.1", "vm_name": "ssh://root:MARKER-name@h/x.vmx"});
    for (kind, transport) in
        [("local", "vddk"), ("local", "ssh"), ("rhv", "vddk"), ("osp", "ssh"), ("domain", "ssh")]
    {
        let mut document = document(kind);
        merge(&mut document, &secrets);
        document["transport_method"] = transport.into();
        if transport == "ssh" {
            document["vmware_uri"] = "ssh://root:MARKER%2Duri@h/x.vmx".into();
        }
        if kind == "local" {
            document.as_object_mut().unwrap().remove("osp_environment");
        }
        if kind == "rhv" {
            document["rhv_url"] = "https://admin:MARKER-url@e/api".into();
        }
        let plan = run(&document, "", &around()).unwrap();
        assert!(!format!("{plan:?}").contains("MARKER"), "{plan:?}");
        let known: Vec<String> =
            plan.secrets().iter().map(|secret| secret.expose_secret().to_owned()).collect();
        let mut expected = vec![
            "MARKER-vmw",
            "MARKER-rhv",
            pem,
            "MARKERlineone",
            "MARKER-uri",
            "MARKER%2Duri",
            "MARKER-name",
        ];
        if kind != "local" {
            expected.extend(["MARKER-osp", "MARKER-cred", "MARKER-token"]);
        }
        if kind == "rhv" {
            expected.push("MARKER-url");
        }
        for secret in expected {
            assert!(known.iter().any(|known| known == secret), "{secret} of {kind} {transport}");
        }
        for no_secret in ["carol", "http://k", "short", ""] {
            assert!(!known.iter().any(|known| known == no_secret), "{no_secret}");
        }
        // Made wrong in every way, the same document still shows nothing.
        for (key, value) in
            [("transport_method", json!("x")), ("output_format", json!("x")), ("vm_name", Value::Null)]
        {
            document[key] = value;
            let problems = run(&document, "", &around()).unwrap_err();
            assert!(!problems.concat().contains("MARKER"), "{problems:?}");
        }
    }
    for (uri, problem) in [
        (
            "esx://root:MARKER/x@h",
            "vmware_uri: what stands before the first / is not a host; leave the password out of the URI",
        ),
        ("root:MARKER@h/x", "vmware_uri: not a URI: there is no :// in it"),
    ] {
        for transport in ["vddk", "ssh"] {
            refused("local", json!({"vmware_uri": uri, "transport_method": transport}), &[problem]);
        }
    }
}

proptest::proptest! {
    /// Any mixture of good, wrong and absent values: no panic, at least one clear line when refused, never a secret.
    #[test]
    fn no_document_panics_or_leaks(choices in proptest::collection::vec(0usize..6, 64), uci: bool) {
        let schema: Value = serde_json::from_str(&crate::schema::render(crate::schema::Schema::Document)).unwrap();
        let keys = schema["properties"].as_object().unwrap().keys();
        let mut document = json!({});
        for (key, choice) in keys.zip(choices) {
            let secret = ["password", "ssh_key"].iter().any(|word| key.contains(word)) && !key.ends_with("file");
            let value = match choice {
                _ if secret => json!("MARKER"),
                0 => json!("/a/b"),
                1 if ["vm_name", "vmware_uri", "rhv_url"].contains(&key.as_str()) => json!("ssh://root:MARKER@h/x%2e.vmx"),
                2 => json!(["vddk", "ssh", "local"][key.len() % 3]),
                3 => json!(true),
                4 => json!([{"source": "a", "destination": "b"}]),
                _ => json!({"os-password": "MARKER", "x": "MARKER"}),
            };
            let mut one = json!({});
            one[key] = value;
            // A value of a wrong type ends everything before the plan: leave it out.
            if let Ok(bytes) = serde_json::to_vec(&one) && parse(&bytes).is_ok() {
                merge(&mut document, &one);
            }
        }
        for transport in ["vddk", "ssh", "local"] {
            document["transport_method"] = transport.into();
            match run(&document, if uci { "layout = 'uci'" } else { "" }, &around()) {
                Ok(plan) => assert!(!format!("{plan:?}").contains("MARKER")),
                Err(lines) => {
                    assert!(!lines.is_empty());
                    assert!(!lines.concat().contains("MARKER"), "{lines:?}");
                }
            }
        }
    }
}
