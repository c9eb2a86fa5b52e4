//! A pod of KubeVirt: its annotations tell how far the conversion is, and a server that is away ends none.
//!
//! The service account lies where Kubernetes puts it: each test's program sees its own, in a mount namespace. No API server
//! can be had here, so the pod is [`server`]'s.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::exports::site::skip;
use crate::rig::job::Job;
use crate::rig::poll;
use crate::rig::sandbox::Sandbox;
use crate::vsphere::certificates::self_signed;

mod server;

use server::{Server, Trouble};

const LIMIT: Duration = Duration::from_secs(60);
const PROGRESS: &str = "v2vConversionProgress";
const METADATA: &str = "v2vConversionMetadata";
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// 50 % of the first of two disks.
const HALF: &str = "[   1.0] Copying disk 1/2\n▝  50% [********************--------------------]\r";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.first-4711.c2ln";

/// A pod with its own service account; virt-v2v stops half way until [`Site::go`].
struct Site {
    sandbox: Sandbox,
    server: Server,
}

impl Site {
    /// `None`, with a printed reason, where nobody may make a mount namespace.
    fn new(name: &str, annotations: &Value) -> Option<Self> {
        let may = Command::new("unshare").args(["-m", "true"]).output();
        if !may.is_ok_and(|output| output.status.success()) {
            skip("only root may make a mount namespace");
            return None;
        }
        let mut sandbox = Sandbox::new(name);
        for directory in ["account", "keys", "data/vm"] {
            fs::create_dir_all(sandbox.path(directory)).unwrap();
        }
        let authority = self_signed(&sandbox.path("keys"), "authority");
        let mut pod = json!({"kind": "Pod", "metadata": {"name": "v2v-guest-x7", "namespace": "v2v-jobs",
                             "labels": {"app": "v2v"}}, "spec": {"nodeName": "node-1"}});
        if !annotations.is_null() {
            pod["metadata"]["annotations"] = annotations.clone();
        }
        let server = Server::start(&sandbox.path("keys"), &authority, pod);
        fs::copy(&authority.file, sandbox.path("account/ca.crt")).unwrap();
        fs::write(sandbox.path("account/namespace"), "v2v-jobs").unwrap();
        // What else is in /run is of no use to the program, and must not get a directory of the test.
        let mounts = format!(
            "mount -t tmpfs none /var/run && mkdir -p {ACCOUNT} && mount --bind \"$0\" {ACCOUNT} && exec \"$@\""
        );
        sandbox.through =
            ["unshare", "-m", "sh", "-c", &mounts, "${DIR}/account"].map(str::to_owned).to_vec();
        let port = server.port.to_string();
        for (key, value) in [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &port),
            ("HOSTNAME", "v2v-guest-x7"),
        ] {
            sandbox.env.push((key.to_owned(), Some(value.to_owned())));
        }
        let site = Self { sandbox, server };
        site.token(TOKEN);
        site.play(&json!("2.2"), 0);
        Some(site.configured(&json!({})))
    }

    fn configured(mut self, keys: &Value) -> Self {
        let mut all = json!({"libguestfs_backend_settings": "force_tcg"});
        all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        self.sandbox.configure("uci", all.as_object().unwrap());
        self
    }

    fn play(&self, capabilities: &Value, exit: i32) {
        let steps = json!([{"text": HALF}, {"wait_for": self.sandbox.path("go")}]);
        self.sandbox.scenario(
            &json!({"capabilities": capabilities, "steps": steps, "exit": exit, "on_term": "exit"}),
        );
    }

    /// The cluster replaces the token of the pod.
    fn token(&self, token: &str) {
        let new = self.sandbox.path("account/token.new");
        fs::write(&new, token).unwrap();
        fs::rename(new, self.sandbox.path("account/token")).unwrap();
        self.server.cluster.lock().unwrap().token = token.to_owned();
    }

    /// The document does not say that it is to stay in the foreground: a pod does.
    fn start(&self) -> Job {
        fs::write(self.sandbox.path("disk.img"), [0; 512]).unwrap();
        let document = json!({"vm_name": "guest", "transport_method": "local",
                              "source_disks": [self.sandbox.path("disk.img"), self.sandbox.path("disk.img")]});
        self.sandbox.start(document.to_string().into_bytes(), LIMIT)
    }

    /// virt-v2v goes on to its end, with this file in the pod's volume.
    fn go(&self, file: &str) {
        fs::write(self.sandbox.path("data/vm").join(file), "").unwrap();
        fs::write(self.sandbox.path("go"), "").unwrap();
    }

    /// The process that was spawned is over, in the foreground: its exit code and the last state.
    fn ended(&self, job: &mut Job) -> (Option<i32>, Value) {
        let exit = job.wait_exit(LIMIT).expect("the program ends");
        let state = job.wait_finished(LIMIT).expect("the state says finished");
        let seen = job.end();
        assert_eq!((seen.faults, seen.leaks), (vec![], vec![]));
        (exit.code(), state)
    }

    fn reaches(&self, name: &str, value: &str) {
        poll(LIMIT, || (self.server.annotation(name).as_deref() == Some(value)).then_some(()))
            .unwrap_or_else(|| panic!("{name} is not {value}: {:?}", self.server.cluster.lock().unwrap()));
    }
}

/// The mean while it runs, 100 and the machine's file at the end; a pod without annotations gets some, those that it has
/// stay (contract.md 8.3).
#[test]
fn annotations_follow_the_conversion() {
    for (annotations, capabilities, written) in [
        (Value::Null, json!("2.2"), "guest.yaml"),
        (json!({"owner": "importer", PROGRESS: "99"}), json!("1.42"), "guest.json"),
    ] {
        let Some(site) = Site::new("pod", &annotations) else { return };
        site.play(&capabilities, 0);
        let mut job = site.start();
        site.reaches(PROGRESS, "25");
        assert!(job.poll_exit().is_none(), "it is in the foreground");
        assert_eq!(site.server.annotation(METADATA), None);
        site.go(written);
        let (code, state) = site.ended(&mut job);
        assert_eq!((code, &state["failed"]), (Some(0), &json!(false)), "{state:#}");
        assert_eq!(site.server.annotation(PROGRESS).as_deref(), Some("100"));
        let path = site.sandbox.path("data/vm").join(written);
        assert_eq!(site.server.annotation(METADATA).as_deref(), path.to_str());
        let cluster = site.server.cluster.lock().unwrap();
        assert_eq!(cluster.pod["metadata"]["labels"], json!({"app": "v2v"}));
        if !annotations.is_null() {
            assert_eq!(cluster.pod["metadata"]["annotations"]["owner"], "importer");
        }
        assert!(cluster.answered.iter().all(|status| *status == 200), "{:?}", cluster.answered);
        assert!(state.get("warnings").is_none(), "{state:#}");
        // Only what changed is written.
        let said: Vec<&Value> =
            cluster.patches.iter().map(|patch| &patch["metadata"]["annotations"]).collect();
        assert!(said.windows(2).all(|pair| pair[0] != pair[1]), "{said:?}");
    }
}

/// Whatever the server answers, a later value arrives, and the user is told once.
#[test]
fn a_server_in_trouble_is_told_later() {
    let Some(site) = Site::new("trouble", &Value::Null) else { return };
    let slow = Trouble::Slow(Duration::from_millis(1500));
    let troubles = [Trouble::Status(403), Trouble::Cut, slow, Trouble::Status(409)];
    site.server.cluster.lock().unwrap().troubles.extend(troubles);
    let mut job = site.start();
    site.reaches(PROGRESS, "25");
    let more = [Trouble::Status(500), Trouble::Status(409), Trouble::Status(403), Trouble::Cut];
    site.server.cluster.lock().unwrap().troubles.extend(more);
    site.go("guest.yaml");
    let (code, state) = site.ended(&mut job);
    assert_eq!(code, Some(0), "{state:#}");
    assert_eq!(site.server.annotation(PROGRESS).as_deref(), Some("100"));
    assert!(site.server.annotation(METADATA).is_some());
    let warnings = state["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let text = warnings[0].as_str().unwrap();
    assert!(text.contains("403") && text.contains("patch on pods"), "{text}");
}

/// Tokens are replaced while a pod runs.
#[test]
fn the_token_of_the_moment_is_used() {
    let Some(site) = Site::new("token", &Value::Null) else { return };
    let mut job = site.start();
    site.reaches(PROGRESS, "25");
    site.token("eyJhbGciOiJSUzI1NiJ9.second-4711.c2ln");
    site.go("guest.yaml");
    let (code, state) = site.ended(&mut job);
    assert_eq!(code, Some(0), "{state:#}");
    assert_eq!(site.server.annotation(PROGRESS).as_deref(), Some("100"));
    assert!(state.get("warnings").is_none(), "{state:#}");
    for log in fs::read_dir(site.sandbox.path("log")).unwrap() {
        let text = fs::read_to_string(log.unwrap().path()).unwrap_or_default();
        assert!(!text.contains("4711"), "a token is in a log");
    }
}

/// No server, one that nobody vouches for, or no cluster at all: the guest is converted, and the user is told.
#[test]
fn nothing_of_this_fails_a_conversion() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    for (what, told) in [
        ("away", "do not say that the job is done"),
        ("stranger", "is not signed by"),
        ("outside", "no pod of a cluster"),
    ] {
        let Some(mut site) =
            Site::new(what, &Value::Null).map(|site| site.configured(&json!({"patience_percent": 5})))
        else {
            return;
        };
        match what {
            "away" => site.sandbox.env.push(("KUBERNETES_SERVICE_PORT".to_owned(), Some(nobody.clone()))),
            "outside" => site.sandbox.env.push(("KUBERNETES_SERVICE_HOST".to_owned(), None)),
            _ => {
                let other = self_signed(&site.sandbox.path("keys"), "other");
                fs::copy(&other.file, site.sandbox.path("account/ca.crt")).unwrap();
            }
        }
        let mut job = site.start();
        site.go("guest.yaml");
        let (code, state) = site.ended(&mut job);
        assert_eq!((code, &state["failed"]), (Some(0), &json!(false)), "{what}: {state:#}");
        let warnings = state["warnings"].to_string();
        assert!(warnings.contains(told), "{what}: {warnings}");
        assert!(site.server.cluster.lock().unwrap().patches.is_empty(), "{what}");
    }
}

/// A job that ends badly leaves its last progress, and nothing that says that there is a machine.
#[test]
fn a_failed_job_does_not_say_that_it_is_done() {
    let Some(site) = Site::new("failed", &Value::Null) else { return };
    let mut job = site.start();
    site.reaches(PROGRESS, "25");
    assert!(job.signal(Signal::SIGTERM, "wrapper"));
    let (code, state) = site.ended(&mut job);
    assert_eq!((code, &state["failed"]), (Some(1), &json!(true)), "{state:#}");
    assert_eq!(site.server.annotation(PROGRESS).as_deref(), Some("25"));
    assert_eq!(site.server.annotation(METADATA), None);
    let Some(site) = Site::new("unfit", &Value::Null) else { return };
    site.play(&json!("2.2"), 1);
    let mut job = site.start();
    site.reaches(PROGRESS, "25");
    site.go("guest.yaml");
    let (code, state) = site.ended(&mut job);
    assert_eq!((code, &state["failed"]), (Some(2), &json!(true)), "{state:#}");
    assert_eq!(
        (site.server.annotation(PROGRESS).as_deref(), site.server.annotation(METADATA)),
        (Some("25"), None)
    );
}
