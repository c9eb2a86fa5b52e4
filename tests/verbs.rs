//! The verbs beside the document on stdin: `watch`, `jobs`, `schema`, `checksum`, and mistakes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::rig::sandbox::Sandbox;
use crate::rig::{json_file, poll};

const LIMIT: Duration = Duration::from_secs(60);

/// A host with layout `job` and a virt-v2v that plays `scenario`.
fn host(name: &str, scenario: &Value) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.configure("job", &Map::new());
    sandbox.scenario(scenario);
    sandbox
}

fn run(sandbox: &Sandbox, args: &[&str], stdin: &str) -> Output {
    sandbox.child(args, stdin).wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Starts a job; its state file and tag.
fn start(sandbox: &Sandbox) -> (String, String) {
    let document = json!({"vm_name": "guest", "transport_method": "local", "source_path": sandbox.path("config.toml"),
                          "output_directory": sandbox.path("out")});
    let output = run(sandbox, &[], &document.to_string());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    let path = reply["state_file"].as_str().unwrap().to_owned();
    let tag = Path::new(&path).parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    (path, tag)
}

const HALF: &str = "[   1.0] Copying disk 1/1\n▝  50% [********************--------------------]\r";

/// Elsewhere than on a terminal `watch` prints a line for every change, and its exit code is the outcome.
#[test]
fn watch_follows_a_job_to_its_outcome() {
    let table = [
        (0, "converted", json!({"steps": [{"text": HALF, "sleep_ms": 900}]})),
        (
            2,
            "failed: virt-v2v error: no disk",
            json!({"exit": 1, "steps": [{"text": HALF, "sleep_ms": 900}, {"text": "virt-v2v: error: no disk\n", "to": "err"}]}),
        ),
    ];
    for (code, last, scenario) in table {
        let sandbox = host("watch", &scenario);
        let (path, _) = start(&sandbox);
        let output = run(&sandbox, &["watch", &path], "");
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("config.toml 50%"), "{said}");
        assert!(said.lines().last().unwrap().starts_with(last), "{said}");
    }
}

#[test]
fn jobs_lists_and_removes_but_never_a_running_one() {
    let sandbox = host("jobs", &json!({"steps": [{"sleep_ms": 60000}]}));
    let (path, tag) = start(&sandbox);
    let listed = |sandbox: &Sandbox| -> Value {
        serde_json::from_slice(&run(sandbox, &["jobs", "--json"], "").stdout).unwrap()
    };
    let rows = listed(&sandbox);
    assert_eq!((&rows[0]["tag"], &rows[0]["outcome"]), (&json!(tag), &json!("running")), "{rows:#}");
    let refused = run(&sandbox, &["jobs", "--remove", &tag], "");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is running"), "{}", text(&refused.stderr));

    let pid =
        poll(LIMIT, || json_file(&path)["started"].as_bool().and_then(|_| json_file(&path)["pid"].as_i64()))
            .unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    poll(LIMIT, || Some(()).filter(|()| json_file(&path)["finished"] == json!(true))).expect("a last state");
    let rows = listed(&sandbox);
    assert_eq!(rows[0]["outcome"], json!("failed"), "{rows:#}");
    assert!(text(&run(&sandbox, &["jobs"], "").stdout).contains(&tag));

    assert!(
        poll(LIMIT, || run(&sandbox, &["jobs", "--remove", &tag], "").status.success().then_some(()))
            .is_some()
    );
    assert_eq!(listed(&sandbox), json!([]));
    assert!(!Path::new(&path).parent().unwrap().exists(), "the job's directory is gone");
    assert!(!sandbox.path("log").join(&tag).exists(), "and that of its logs");
    assert_eq!(
        run(&sandbox, &["jobs", "--remove", &tag], "").status.code(),
        Some(1),
        "there is none any more"
    );
}

/// What is written is what the schema says, in every state of a job.
#[test]
fn every_state_and_the_reply_fit_their_schemas() {
    let sandbox = host("schema", &json!({"steps": [{"text": HALF, "sleep_ms": 600}]}));
    let schema = |which: &str| -> jsonschema::Validator {
        let output = run(&sandbox, &["schema", which], "");
        jsonschema::validator_for(&serde_json::from_slice(&output.stdout).unwrap()).unwrap()
    };
    let (of_state, of_reply, of_document) = (schema("state"), schema("reply"), schema("document"));
    let document = json!({"vm_name": "guest", "transport_method": "local", "source_path": sandbox.path("config.toml"),
                          "output_directory": sandbox.path("out")});
    assert!(of_document.is_valid(&document));
    assert!(!of_document.is_valid(&json!({"vm_name": 7})));
    let reply: Value = serde_json::from_slice(&run(&sandbox, &[], &document.to_string()).stdout).unwrap();
    assert!(of_reply.is_valid(&reply), "{reply:#}");
    let path = reply["state_file"].as_str().unwrap();
    poll(LIMIT, || {
        let state = json_file(path);
        assert!(of_state.is_valid(&state), "{state:#}");
        (state["finished"] == json!(true)).then_some(())
    })
    .expect("a last state");
    assert!(!of_state.is_valid(&json!({"disks": [{"path": 1}]})));
}

const CHUNK: u64 = 4 << 20;

/// Bytes at an offset.
type Piece<'a> = (u64, &'a [u8]);

/// A file of `size` bytes that is a hole but for `pieces`, and its checksum by the words of the README: BLAKE3 over the
/// BLAKE3 digests of its chunks of 4 MiB. The program's own code is not asked.
fn disk(path: &Path, size: u64, pieces: &[Piece]) -> String {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in pieces {
        file.write_all_at(bytes, *offset).unwrap();
    }
    let mut content = vec![0; CHUNK as usize];
    let zeros = blake3::hash(&content);
    let mut whole = blake3::Hasher::new();
    for start in (0..size).step_by(CHUNK as usize) {
        let end = size.min(start + CHUNK);
        let touched: Vec<_> = pieces
            .iter()
            .filter(|(offset, bytes)| *offset < end && offset + bytes.len() as u64 > start)
            .collect();
        if touched.is_empty() && end - start == CHUNK {
            whole.update(zeros.as_bytes());
            continue;
        }
        content.fill(0);
        for (offset, bytes) in touched {
            for (at, byte) in (*offset..).zip(*bytes) {
                if (start..end).contains(&at) {
                    content[(at - start) as usize] = *byte;
                }
            }
        }
        whole.update(blake3::hash(&content[..(end - start) as usize]).as_bytes());
    }
    format!("blake3-4MiB:{}", whole.finalize().to_hex())
}

/// The checksum of the state file can be computed again by anybody, whatever the size of the disk: 1 TiB with three
/// pieces of data would take ten minutes if its holes were read.
#[test]
fn a_checksum_is_that_of_the_definition() {
    let sandbox = host("checksum", &json!({}));
    let noise: Vec<u8> =
        (0..CHUNK as u32 + 1).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let whole = &noise[..CHUNK as usize];
    let table: [(&str, u64, &[Piece]); 8] = [
        ("empty", 0, &[]),
        ("one byte", 1, &[(0, b"x")]),
        ("one chunk", CHUNK, &[(0, whole)]),
        ("one byte more", CHUNK + 1, &[(0, &noise)]),
        ("a hole", CHUNK + 1, &[]),
        ("data that are zeros", 2 * CHUNK, &[(4096, &[0; 8192])]),
        (
            "data behind a hole, over a border",
            5 * CHUNK + 7,
            &[(3 * CHUNK - 5000, &noise), (5 * CHUNK + 6, b"y")],
        ),
        ("a TiB", 1 << 40, &[(0, b"begin"), ((1 << 39) - 3, b"middle"), ((1 << 40) - 3, b"end")]),
    ];
    let mut args = vec!["checksum".to_owned()];
    let mut expected = String::new();
    for (name, size, pieces) in table {
        let path = sandbox.path(name);
        expected += &format!("{}  {}\n", disk(&path, size, pieces), path.display());
        args.push(path.display().to_string());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&sandbox, &args, "");
    assert_eq!(text(&output.stdout), expected);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

/// What cannot be read is told, each file by itself, and is no reason to leave out the others. Of an image with a format
/// it is the file's checksum, which is not what a state file says: that is told, too.
#[test]
fn a_file_without_a_checksum_is_told() {
    let sandbox = host("no-checksum", &json!({}));
    let path = |name: &str| sandbox.path(name).display().to_string();
    let good = disk(&sandbox.path("good"), 3, &[(0, b"abc")]);
    nix::unistd::mkfifo(&sandbox.path("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let output = run(&sandbox, &["checksum", &path("gone"), &path("out"), &path("pipe"), &path("good")], "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), format!("{good}  {}\n", path("good")));
    let said: Vec<&str> = text(&output.stderr).lines().collect();
    let [gone, directory, pipe] = said[..] else { panic!("{said:?}") };
    assert!(gone.contains(&path("gone")) && gone.contains("No such file"), "{gone}");
    for (line, name) in [(directory, "out"), (pipe, "pipe")] {
        assert!(line.contains(&path(name)) && line.ends_with("neither a file nor a block device"), "{line}");
    }

    disk(&sandbox.path("image"), 100_000, &[(0, b"QFI\xfb\0\0\0\x03")]);
    let output = run(&sandbox, &["checksum", &path("image")], "");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("looks like a qcow2 image"), "{}", text(&output.stderr));
}

/// 2 means a failed conversion, so a mistake on the command line is 1.
#[test]
fn a_mistake_is_told_and_is_not_a_failed_conversion() {
    let sandbox = host("mistakes", &json!({}));
    for args in [
        &["wacth"][..],
        &["schema", "nothing"],
        &["checksum"],
        &["--nothing"],
        &["watch", "/nonexistent/state.json"],
    ] {
        let output = run(&sandbox, args, "");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(output.stdout, b"", "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    let version = run(&sandbox, &["--version"], "");
    assert_eq!(text(&version.stdout), concat!("virt-v2v-wrapper ", env!("CARGO_PKG_VERSION"), "\n"));
}
