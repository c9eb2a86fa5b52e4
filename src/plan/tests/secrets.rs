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
    let problems = with("local", json!({"vmware_uri": "esx://root:MARKER/x@h"})).unwrap_err();
    assert_eq!(
        problems,
        ["vmware_uri: what stands before the first / is not a host; leave the password out of the URI"]
    );
}
