//! `nbd_export_only`: disks served over NBD until a signal comes, read back by the real qemu-img.
//!
//! Its files are in `/data`, so each program has a root directory of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Map, json};

use crate::exports::site::{find, have};
use crate::rig::job::Job;
use crate::rig::sandbox::Sandbox;
use crate::rig::{poll, root};

const LIMIT: Duration = Duration::from_secs(60);

/// A case whose `/data` is its directory `data`; `None`, with a printed reason, where that cannot be.
fn site(name: &str, keys: &Map<String, serde_json::Value>) -> Option<Sandbox> {
    if !have(&["nbdkit", "qemu-img", "qemu-io"]) || !root::possible() {
        return None;
    }
    let mut sandbox = Sandbox::new(name);
    sandbox.configure("uci", keys);
    fs::create_dir(sandbox.path("data")).unwrap();
    sandbox.through =
        root::words(&sandbox.dir, "mkdir -p $root/data; mount --bind \"$case/data\" $root/data");
    Some(sandbox)
}

fn disk(sandbox: &Sandbox, name: &str, mib: usize) -> PathBuf {
    let path = sandbox.path(name);
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes[4096..1 << 20]);
    fs::write(&path, bytes).unwrap();
    path
}

/// Ports that nobody has at the moment.
fn ports<const N: usize>() -> [u16; N] {
    let open = [(); N].map(|()| TcpListener::bind("0.0.0.0:0").unwrap());
    open.map(|listener| listener.local_addr().unwrap().port())
}

fn document(disks: &[(&Path, u16)]) -> Vec<u8> {
    let pairs: Map<_, _> =
        disks.iter().map(|(disk, port)| (disk.to_str().unwrap().to_owned(), json!(port))).collect();
    json!({"nbd_export_only": pairs, "transport_method": "of no meaning here"}).to_string().into_bytes()
}

fn said(job: &Job) -> (String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(job.stdout().bytes), text(job.stderr().bytes))
}

fn wait_ready(job: &mut Job, file: &Path) {
    poll(LIMIT, || (file.exists() || job.poll_exit().is_some()).then_some(())).expect("ready in time");
    assert!(file.exists(), "it ended: {:?}", said(job));
}

fn tool(name: &str, args: &[&str]) -> Output {
    Command::new(find(name).unwrap()).args(args).output().unwrap()
}

#[test]
fn disks_are_served_read_only_until_a_signal() {
    let Some(mut sandbox) = site("export", &Map::new()) else { return };
    // The second one is not opened before the test says so.
    let nbdkit = format!(
        "case \"$*\" in *b.img) while [ ! -e {}/go ]; do sleep 0.02; done;; esac\nexec '{}' \"$@\"",
        sandbox.dir.display(),
        find("nbdkit").unwrap().display()
    );
    let nbdkit = sandbox.script("nbdkit", &nbdkit);
    sandbox.configure("uci", json!({"nbdkit": nbdkit}).as_object().unwrap());
    let (a, b) = (disk(&sandbox, "a.img", 3), disk(&sandbox, "b.img", 5));
    let ready = sandbox.path("data/nbdready");
    // Of an earlier run that was killed.
    fs::write(&ready, "NBD exports ready\n").unwrap();
    let [first, second] = ports();
    let mut job = sandbox.spawn(document(&[(&a, first), (&b, second)]));
    let log = sandbox.path("data/virt-v2v-wrapper.log");
    let has_said = |text: &str| fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
    poll(LIMIT, || has_said("a.img on port").then_some(())).expect("the first disk is served");
    assert!(!ready.exists(), "not before all are served");
    fs::write(sandbox.path("go"), "").unwrap();
    wait_ready(&mut job, &ready);
    assert_eq!(fs::read_to_string(&ready).unwrap(), "NBD exports ready\n");
    for (disk, port) in [(&a, first), (&b, second)] {
        let (url, copy) = (format!("nbd://127.0.0.1:{port}"), sandbox.path("copy"));
        let read = tool("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url, copy.to_str().unwrap()]);
        assert!(read.status.success(), "{read:?}");
        assert!(fs::read(copy).unwrap() == fs::read(disk).unwrap(), "{url} is not {}", disk.display());
        let written = tool("qemu-io", &["-f", "raw", "-c", "write 0 4096", &url]);
        assert!(!written.status.success(), "a source disk was written: {written:?}");
    }
    assert!(job.signal(Signal::SIGTERM, "wrapper"));
    let status = job.wait_exit(LIMIT).expect("it ends");
    let (stdout, stderr) = said(&job);
    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
    assert!(!ready.exists(), "nothing is served any more");
    job.gone_within(LIMIT).unwrap();
    // What the container's owner reads is what the file has; there is no reply among it.
    assert_eq!(fs::read_to_string(&log).unwrap(), stdout);
    assert!(stdout.contains("NBD exports ready") && !stdout.contains("state_file"), "{stdout}");
    assert!(fs::read_dir(sandbox.path("state")).unwrap().next().is_none(), "it is no job");
}

#[test]
fn what_cannot_be_served_is_refused_with_a_sentence() {
    let Some(sandbox) = site("refused", &Map::new()) else { return };
    let a = disk(&sandbox, "a.img", 1);
    // Of both families: nbdkit is content with one.
    let taken = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    let port = taken.local_addr().unwrap().port();
    for (disks, expected) in [
        (vec![(a.as_path(), port)], "Address already in use"),
        (vec![(Path::new("/nowhere"), 1), (&a, 0)], "/nowhere cannot be served: No such file"),
        (vec![], "names no disk"),
    ] {
        let mut job = sandbox.spawn(document(&disks));
        let status = job.wait_exit(LIMIT).expect("it ends");
        let (stdout, stderr) = said(&job);
        assert_eq!(status.code(), Some(1), "{stdout}{stderr}");
        assert!(stderr.contains(expected), "{stdout}{stderr}");
        assert!(!sandbox.path("data/nbdready").exists());
    }
}

/// Somebody else's server has the port and answers before ours can say that it does not get it.
#[test]
fn the_disk_of_another_server_is_not_taken_for_ours() {
    let Some(mut sandbox) = site("foreign", &Map::new()) else { return };
    let real = find("nbdkit").unwrap();
    let slow = sandbox.script("nbdkit", &format!("sleep 1\nexec '{}' \"$@\"", real.display()));
    sandbox.configure("uci", json!({"nbdkit": slow}).as_object().unwrap());
    let a = disk(&sandbox, "a.img", 1);
    let [port] = ports();
    let mut foreign = Command::new(real)
        .args(["--foreground", "--exit-with-parent", "-p", &port.to_string(), "null", "size=1M"])
        .spawn()
        .unwrap();
    let up = || TcpStream::connect(("127.0.0.1", port)).ok().map(drop);
    poll(LIMIT, up).expect("the other server is up");
    let ready = sandbox.path("data/nbdready");
    let mut job = sandbox.spawn(document(&[(&a, port)]));
    poll(LIMIT, || (ready.exists() || job.poll_exit().is_some()).then_some(())).expect("it ends");
    assert!(!ready.exists(), "{:?}", said(&job));
    assert_eq!(job.wait_exit(LIMIT).expect("it ends").code(), Some(1));
    let (_, stderr) = said(&job);
    assert!(stderr.contains("Address already in use") && stderr.contains("a.img"), "{stderr}");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
}

/// Somebody reads from them: a disk that is gone is told, not slept over.
#[test]
fn a_server_that_dies_ends_it() {
    let Some(sandbox) = site("dies", &Map::new()) else { return };
    let (a, b) = (disk(&sandbox, "a.img", 1), disk(&sandbox, "b.img", 1));
    let [first, second] = ports();
    let mut job = sandbox.spawn(document(&[(&a, first), (&b, second)]));
    let ready = sandbox.path("data/nbdready");
    wait_ready(&mut job, &ready);
    let (victim, _) = job.alive().into_iter().find(|(_, name)| name.contains("b.img")).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let status = job.wait_exit(LIMIT).expect("it ends");
    let (stdout, stderr) = said(&job);
    assert_eq!(status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("b.img") && stderr.contains("ended"), "{stderr}");
    assert!(!ready.exists());
    job.gone_within(LIMIT).unwrap();
}

/// A host that was not prepared for it.
#[test]
fn the_directory_is_made_where_it_is_missing() {
    let Some(mut sandbox) = site("made", &Map::new()) else { return };
    let a = disk(&sandbox, "a.img", 1);
    let [port] = ports();
    sandbox.through = root::words(&sandbox.dir, "rm -rf $root/data");
    let mut job = sandbox.spawn(document(&[(&a, port)]));
    let ready = PathBuf::from(format!("/proc/{}/root/data/nbdready", job.pid));
    wait_ready(&mut job, &ready);
    assert!(job.signal(Signal::SIGINT, "wrapper"));
    assert_eq!(job.wait_exit(LIMIT).expect("it ends").code(), Some(0));
    sandbox.through = root::words(&sandbox.dir, "rm -rf $root/data; touch $root/data");
    let mut job = sandbox.spawn(document(&[(&a, port)]));
    assert_eq!(job.wait_exit(LIMIT).expect("it ends").code(), Some(1));
    let (_, stderr) = said(&job);
    assert!(stderr.contains("cannot create /data") && stderr.contains("nbd_export_only"), "{stderr}");
}
