//! Exports through the real nbdkit and qemu-nbd: what a client reads is the disk, what fails says why at once, and
//! nothing of a server is left.
//!
//! The suite drives the library, for nothing starts an export from outside yet. A server's end is waited for by its own
//! pid (`process::children`), so the children of other suites in this process are safe. Each test is one thread with
//! one runtime: a tool dies with the thread that started it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use virt_v2v_wrapper::export::server::{ExportError, Server};
use virt_v2v_wrapper::export::{Export, Files, Filters, Login, Program};
use virt_v2v_wrapper::process::{self, Exit};
use virt_v2v_wrapper::source::local::ImageFormat;

pub mod site;
use site::{Ssh, find, have, nbdkit_with_vddk, private, qemu_img, raw_disk, run, skip};

const PASSWORD: &str = "Zx81-!pass word'\"$-7431";
/// A failure is told at once, and "at once" on a busy machine is this.
const AT_ONCE: Duration = Duration::from_secs(5);

pub async fn try_serve(program: &Path, export: &Export, private: &Path) -> Result<Server, ExportError> {
    let filters = match export.program() {
        Program::Nbdkit => Filters::probe(program, "test").await,
        Program::QemuNbd | Program::Ssh => Filters::default(),
    };
    let files = Files::new(private, export.program(), 1);
    let line = export.command_line(&files, filters, std::env::var_os("LD_LIBRARY_PATH").as_deref());
    Server::start(program, "test", export.disk(), line, files).await
}

async fn serve(program: &str, export: &Export, private: &Path) -> Server {
    let program = find(program).unwrap();
    try_serve(&program, export, private).await.unwrap_or_else(|error| panic!("{export:?}: {error}"))
}

/// All that a client reads, over several connections.
pub fn read_back(server: &Server, into: &Path) -> Vec<u8> {
    let uri = format!("nbd+unix:///?socket={}", server.socket().display());
    run(Command::new("nbdcopy").args(["--connections=4", &uri]).arg(into));
    fs::read(into).unwrap()
}

/// What qemu-img reads of an image.
fn oracle(image: &Path, format: ImageFormat, into: &Path) -> Vec<u8> {
    run(Command::new("qemu-img").args(["convert", "-f", format.as_str(), "-O", "raw"]).arg(image).arg(into));
    fs::read(into).unwrap()
}

/// Stops the server, after which there must be no process, no socket and no pid file.
pub async fn stop(server: Server, private: &Path) {
    let pid = server.pid();
    server.stop().await;
    assert!(process::exit_of(pid).is_some(), "still running");
    assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    let left: Vec<PathBuf> = fs::read_dir(private).unwrap().map(|entry| entry.unwrap().path()).collect();
    let stale = |path: &PathBuf| path.extension().is_some_and(|end| end == "sock" || end == "pid");
    assert!(!left.iter().any(stale), "{left:?}");
}

/// Every format is read as qemu-img reads it, a split vmdk and chains included.
#[tokio::test]
async fn an_image_of_any_format_is_served_as_it_is() {
    if !have(&["nbdkit", "nbdcopy", "qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let directory = private();
    let at = |name: &str| directory.path().join(name);
    raw_disk(&at("d.raw"));
    for create in [
        "convert -f raw -O qcow2 d.raw d.qcow2",
        "convert -f raw -O vmdk -o subformat=monolithicSparse d.raw mono.vmdk",
        "convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse d.raw split.vmdk",
        "convert -f raw -O vhdx d.raw d.vhdx",
        "convert -f raw -O vdi d.raw d.vdi",
        "convert -f raw -O vpc d.raw d.vpc",
        "create -q -f qcow2 -b d.qcow2 -F qcow2 middle.qcow2",
        "create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2",
        "create -q -f vmdk -b mono.vmdk -F vmdk snapshot.vmdk",
    ] {
        qemu_img(directory.path(), create);
    }
    for (image, write) in [
        ("middle.qcow2", "write -P 0x5a 1M 192k"),
        ("top.qcow2", "write -P 0xa5 1100k 64k"),
        ("snapshot.vmdk", "write -P 0xc3 4M 64k"),
    ] {
        let format = if image.ends_with("vmdk") { "vmdk" } else { "qcow2" };
        run(Command::new("qemu-io").args(["-f", format, "-c", write]).arg(at(image)));
    }
    let raw = fs::read(at("d.raw")).unwrap();
    for (image, format, same) in [
        ("d.raw", ImageFormat::Raw, true),
        ("d.qcow2", ImageFormat::Qcow2, true),
        ("top.qcow2", ImageFormat::Qcow2, false),
        ("mono.vmdk", ImageFormat::Vmdk, true),
        ("split.vmdk", ImageFormat::Vmdk, true),
        ("snapshot.vmdk", ImageFormat::Vmdk, false),
        ("d.vhdx", ImageFormat::Vhdx, true),
        ("d.vdi", ImageFormat::Vdi, true),
        ("d.vpc", ImageFormat::Vpc, false),
    ] {
        let export = match format {
            ImageFormat::Raw => Export::File { path: at(image) },
            format => Export::Image { path: at(image), format, window: None },
        };
        let program = if format == ImageFormat::Raw { "nbdkit" } else { "qemu-nbd" };
        let server = serve(program, &export, directory.path()).await;
        let read = read_back(&server, &at("copy"));
        assert!(read == oracle(&at(image), format, &at("expected")), "{image}");
        assert_eq!(read.get(..raw.len()) == Some(&raw), same || image == "d.vpc", "{image}");
        stop(server, directory.path()).await;
    }
}

/// A path is a path, whatever it looks like to qemu.
#[tokio::test]
async fn a_path_that_looks_like_a_url_is_taken_as_a_path() {
    if !have(&["nbdcopy", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let directory = private();
    raw_disk(&directory.path().join("d.raw"));
    let raw = fs::read(directory.path().join("d.raw")).unwrap();
    qemu_img(directory.path(), "convert -f raw -O qcow2 d.raw d.qcow2");
    for name in ["json:{\"driver\":\"null-co\"}", "nbd:localhost:1", "a,b=c,file.driver=null-co", "x: %y"] {
        let path = directory.path().join(name);
        fs::hard_link(directory.path().join("d.qcow2"), &path).unwrap();
        let export = Export::Image { path, format: ImageFormat::Qcow2, window: None };
        let server = serve("qemu-nbd", &export, directory.path()).await;
        assert!(read_back(&server, &directory.path().join("copy")) == raw, "{name}");
        stop(server, directory.path()).await;
    }
}

/// Both programs say why, long before any time-out.
#[tokio::test]
async fn a_server_that_cannot_serve_is_told_at_once_with_its_words() {
    if !have(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = private();
    let bad = directory.path().join("bad");
    fs::write(&bad, "not an image").unwrap();
    let missing = directory.path().join("missing");
    for (program, export, words) in [
        ("nbdkit", Export::File { path: missing.clone() }, "No such file or directory"),
        (
            "qemu-nbd",
            Export::Image { path: missing, format: ImageFormat::Qcow2, window: None },
            "No such file or directory",
        ),
        (
            "qemu-nbd",
            Export::Image { path: bad, format: ImageFormat::Qcow2, window: None },
            "not in qcow2 format",
        ),
    ] {
        let begun = Instant::now();
        let error = try_serve(&find(program).unwrap(), &export, directory.path()).await.err().unwrap();
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        let text = error.to_string();
        assert!(text.contains(words) && text.contains(&export.disk()), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

/// The end of a server is seen while somebody waits for something else of it.
#[tokio::test]
async fn a_server_that_is_killed_is_noticed() {
    if !have(&["nbdkit"]) {
        return;
    }
    let directory = private();
    raw_disk(&directory.path().join("d.raw"));
    let export = Export::File { path: directory.path().join("d.raw") };
    let server = serve("nbdkit", &export, directory.path()).await;
    let ended = server.ended();
    let mut ended = Box::pin(ended);
    let running = tokio::time::timeout(Duration::from_millis(200), ended.as_mut()).await;
    assert!(running.is_err(), "{running:?}");
    let begun = Instant::now();
    kill(server.pid(), Signal::SIGKILL).unwrap();
    assert_eq!(ended.as_mut().await, Exit::Signal(9));
    drop(ended);
    assert!(begun.elapsed() < Duration::from_millis(900), "by the signal, not by the second look");
    let error = server.error_of(Exit::Signal(9)).to_string();
    assert!(error.ends_with("signal 9 killed it"), "{error}");
    stop(server, directory.path()).await;
    // Its socket and pid file were left, and are no hindrance.
    let server = serve("nbdkit", &export, directory.path()).await;
    kill(server.pid(), Signal::SIGKILL).unwrap();
    server.ended().await;
    std::mem::forget(server);
    let server = serve("nbdkit", &export, directory.path()).await;
    stop(server, directory.path()).await;
}

fn vddk(password: &str, libdir: &Path) -> Export {
    Export::Vddk {
        server: "vc.example.com".to_owned(),
        port: None,
        user: "administrator@vsphere.local".to_owned(),
        password: password.into(),
        moref: "vm-62".to_owned(),
        thumbprint: "AA:BB".to_owned(),
        libdir: libdir.to_owned(),
        file: "[ds 1] vm/disk1.vmdk".to_owned(),
        snapshot: Some("snapshot-9".to_owned()),
        transports: Some("nbdssl:nbd".to_owned()),
    }
}

/// A VMware disk arrives with snapshot and transports passed, and its password is in no argument, environment or log.
#[tokio::test]
async fn a_vddk_disk_is_served_and_its_password_is_seen_nowhere() {
    if !have(&["nbdkit", "nbdcopy", "cc"]) {
        return;
    }
    let (directory, rig) = (private(), private());
    let nbdkit = nbdkit_with_vddk(rig.path(), PASSWORD);
    let disk = rig.path().join("root/vm-62/snapshot-9/disk1.vmdk");
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    raw_disk(&disk);
    let server = try_serve(&nbdkit, &vddk(PASSWORD, rig.path()), directory.path()).await.unwrap();
    assert!(read_back(&server, &rig.path().join("copy")) == fs::read(&disk).unwrap());
    let opened = fs::read_to_string(rig.path().join("vddk.log")).unwrap();
    assert!(opened.contains("snapshot=snapshot-9") && opened.contains("transports=nbdssl:nbd"), "{opened}");

    let proc = PathBuf::from(format!("/proc/{}", server.pid()));
    let seen = |file: PathBuf| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    let (cmdline, environ) = (seen(proc.join("cmdline")), seen(proc.join("environ")));
    assert!(cmdline.contains("password=+/proc/self/fd/"), "{cmdline}");
    assert!(environ.contains(&format!("LD_LIBRARY_PATH={}/lib64", rig.path().display())), "{environ}");
    let log = seen(directory.path().join("nbdkit-1.log"));
    assert!(log.contains("vm=moref=vm-62") || log.contains("moref=vm-62"), "the log is the server's");
    for text in [cmdline, environ, log] {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    stop(server, directory.path()).await;
}

/// What a server writes does not grow with what is read of it: with a line for each request a disk of a TiB wrote 1.8 GB
/// of them (contract.md 6.4 has `-v`, and it stays). Nothing at all is written by one that serves a file of this host.
#[tokio::test]
async fn a_log_does_not_grow_with_the_requests() {
    if !have(&["nbdkit", "nbdcopy", "cc"]) {
        return;
    }
    let (directory, rig) = (private(), private());
    let disk = rig.path().join("root/vm-62/snapshot-9/disk1.vmdk");
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    raw_disk(&disk);
    let with_vddk = nbdkit_with_vddk(rig.path(), PASSWORD);
    for (program, export, most) in [
        (with_vddk, vddk(PASSWORD, rig.path()), 8 << 10),
        (find("nbdkit").unwrap(), Export::File { path: disk }, 0),
    ] {
        let files = Files::new(directory.path(), export.program(), 1);
        let (log, _) = (files.log.clone(), fs::remove_file(&files.log));
        // The log filter is there to note each request; where it exists, it does.
        let line = export.command_line(&files, Filters::default(), None);
        let server = Server::start(&program, "test", export.disk(), line, files).await.unwrap();
        let length = || fs::metadata(&log).unwrap().len();
        let grown = |request: &str| {
            let before = length();
            let uri = format!("nbd+unix:///?socket={}", server.socket().display());
            run(Command::new("nbdcopy").args(["--connections=1", "--no-extents", request, &uri, "null:"]));
            length() - before
        };
        // 10 requests, and more than 2000.
        let (few, many) = (grown("--request-size=1048576"), grown("--request-size=4096"));
        assert!(few <= most && many <= most, "{few} and {many} bytes, at most {most}: {}", export.disk());
        stop(server, directory.path()).await;
    }
}

/// The real plugin's words are repeated, the password is not.
#[tokio::test]
async fn a_wrong_password_ends_in_a_sentence_at_once() {
    if !have(&["nbdkit", "cc"]) {
        return;
    }
    let (directory, rig) = (private(), private());
    let nbdkit = nbdkit_with_vddk(rig.path(), PASSWORD);
    let begun = Instant::now();
    let export = vddk("wrong-5512", rig.path());
    let error = try_serve(&nbdkit, &export, directory.path()).await.err().unwrap().to_string();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert!(error.ends_with("nbdkit cannot serve [ds 1] vm/disk1.vmdk: VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password"), "{error}");
    // The right one, but the disk is not there: nbdkit runs, and finds out only when a client comes.
    let export = vddk(PASSWORD, rig.path());
    let error = try_serve(&nbdkit, &export, directory.path()).await.err().unwrap();
    assert!(matches!(error, ExportError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("VixDiskLib_Open: [ds 1] vm/disk1.vmdk"), "{error}");
    assert!(!error.to_string().contains(PASSWORD));
}

/// Over a real sshd the flat file is read with the agent's key or the account's password; without, the refusal is told.
#[tokio::test]
async fn an_ssh_disk_is_served_to_whom_the_host_knows() {
    let tools =
        ["nbdkit", "nbdcopy", "sshd", "ssh-agent", "ssh-add", "ssh-keygen", "openssl", "useradd", "userdel"];
    if !have(&tools) || !(nix::unistd::geteuid().is_root() || skip("only root can start an sshd")) {
        return;
    }
    let (directory, rig) = (private(), Ssh::start(PASSWORD));
    raw_disk(&rig.path("vm-flat.vmdk"));
    let agent = || Login::Agent(rig.path("agent"));
    let export = |user: &str, login| Export::Ssh {
        host: "127.0.0.1".to_owned(),
        port: Some(rig.port),
        user: user.to_owned(),
        path: rig.path("vm.vmdk").to_str().unwrap().to_owned(),
        login,
        known_hosts: Some(rig.path("known_hosts")),
    };
    let nbdkit = find("nbdkit").unwrap();
    for login in [agent(), Login::Password("wrong-5512".into())] {
        let begun = Instant::now();
        let error = try_serve(&nbdkit, &export(rig.account(), login), directory.path()).await.err().unwrap();
        assert!(matches!(error, ExportError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("authenticat"), "{error}");
        assert!(!error.to_string().contains("5512"), "{error}");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    }
    rig.add_key();
    for export in [export("root", agent()), export(rig.account(), Login::Password(PASSWORD.into()))] {
        let server = try_serve(&nbdkit, &export, directory.path()).await.unwrap();
        assert!(read_back(&server, &rig.path("copy")) == fs::read(rig.path("vm-flat.vmdk")).unwrap());
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{}/{file}", server.pid())).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(PASSWORD), "{file}");
        }
        stop(server, directory.path()).await;
    }
}

/// A client that hung up does not keep a server from ending, not even for the ten seconds before it is killed.
#[tokio::test]
async fn a_server_stops_at_once_when_its_client_hung_up() {
    if !have(&["nbdkit", "qemu-nbd", "qemu-img"]) {
        return;
    }
    let directory = private();
    raw_disk(&directory.path().join("d.raw"));
    qemu_img(directory.path(), "convert -f raw -O qcow2 d.raw d.qcow2");
    for (program, export) in [
        ("nbdkit", Export::File { path: directory.path().join("d.raw") }),
        (
            "qemu-nbd",
            Export::Image {
                path: directory.path().join("d.qcow2"),
                format: ImageFormat::Qcow2,
                window: None,
            },
        ),
    ] {
        let server = serve(program, &export, directory.path()).await;
        let mut client = UnixStream::connect(server.socket()).unwrap();
        client.read_exact(&mut [0; 18]).unwrap();
        // NBD_OPT_GO for the default export.
        client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").unwrap();
        client.read_exact(&mut [0; 20]).unwrap();
        drop(client);
        let begun = Instant::now();
        stop(server, directory.path()).await;
        assert!(begun.elapsed() < AT_ONCE, "{program}: {:?}", begun.elapsed());
    }
}

/// A filter that nbdkit lacks is not asked for; an nbdkit that hangs costs five seconds, not the job.
#[tokio::test]
async fn only_filters_that_load_are_used() {
    let directory = private();
    let nbdkit = directory.path().join("nbdkit");
    fs::write(&nbdkit, "#!/bin/sh\ncase \"$2\" in *=retry) exit 0;; *=log) exec sleep 60;; esac\nexit 1\n")
        .unwrap();
    fs::set_permissions(&nbdkit, fs::Permissions::from_mode(0o755)).unwrap();
    let begun = Instant::now();
    let retry = Filters { retry: true, ..Filters::default() };
    assert_eq!(Filters::probe(&nbdkit, "test").await, retry);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(Filters::probe(Path::new("/nowhere/nbdkit"), "test").await, Filters::default());
}
