//! VMware: the real virt-v2v and libvirt against a simulated vCenter, and nbdkit with a stand-in for the VDDK plugin
//! (tests/rigs). The VDDK itself, its transports and its error texts are not tested here: it cannot be redistributed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::disks;
use crate::lab::{self, Server, Site, V2V};
use crate::secrets::SecretWatch;

pub const PASSWORD: &str = "Zx81-!pass word'\"$-7431";

/// Go, its vSphere simulator, a C compiler, openssl: what the vCenter and the stand-in are made with.
pub fn have() -> bool {
    lab::have(V2V)
        && lab::have(&["go", "cc", "openssl"])
        && (Path::new("/usr/share/gocode/src/github.com/vmware/govmomi/simulator").is_dir()
            || lab::skip("govmomi's simulator is not installed; packaging/install test"))
}

/// The simulator and the stand-in, built once into the target directory.
fn rigs() -> &'static (PathBuf, PathBuf) {
    static RIGS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    RIGS.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (vcsim, plugin) = (directory.join("vcsim-cbt"), directory.join("nbdkit-vddk-plugin.so"));
        lab::run(
            Command::new("go")
                .current_dir(lab::repository("tests/rigs/vcsim-cbt"))
                .env("GO111MODULE", "off")
                .env("GOPATH", "/usr/share/gocode")
                .env("GOCACHE", directory.join("go-cache"))
                .args(["build", "-o"])
                .args([&vcsim, Path::new(".")]),
        );
        lab::run(
            Command::new("cc")
                .args(["-O2", "-Wall", "-shared", "-fPIC", "-o"])
                .args([&plugin, &lab::repository("tests/rigs/nbdkit-vddk.c")]),
        );
        (vcsim, plugin)
    })
}

/// A vCenter with one machine, `DC0_H0_VM0`, and nbdkit taught the word `vddk`.
pub struct Vcenter {
    _server: Server,
    control: PathBuf,
    uri: String,
    thumbprint: String,
}

impl Vcenter {
    /// Serves these raw images as the disks of a machine that is switched off.
    pub fn start(site: &mut Site, disks: &[PathBuf]) -> Self {
        Self::start_with(site, disks, json!({"off": true}))
    }

    /// The same with these keys of the simulator's configuration (tests/rigs/vcsim-cbt/main.go).
    pub fn start_with(site: &mut Site, disks: &[PathBuf], mut machine: Value) -> Self {
        let (vcsim, plugin) = rigs();
        let (certificate, key) = (site.path("sim/cert.pem"), site.path("sim/key.pem"));
        lab::run(
            Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-days",
                    "30",
                    "-subj",
                    "/CN=127.0.0.1",
                ])
                .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
                .args([&key, Path::new("-out"), &certificate])
                .stderr(Stdio::null()),
        );
        let print = lab::run(
            Command::new("openssl")
                .args(["x509", "-noout", "-fingerprint", "-sha1", "-in"])
                .arg(&certificate),
        );
        let thumbprint = String::from_utf8(print).unwrap().trim().rsplit('=').next().unwrap().to_owned();
        let common = json!({"vm": "DC0_H0_VM0", "disks": disks, "guest": "debian10_64Guest", "memory": 1024});
        machine.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        fs::write(site.path("sim/vms.json"), json!([machine]).to_string()).unwrap();
        let control = site.path("sim/control");
        fs::create_dir(site.path("sim/tmp")).unwrap();
        let mut server = Server::start(
            Command::new(vcsim)
                .env("TMPDIR", site.path("sim/tmp"))
                .args(["-l", "127.0.0.1:0", "-user"])
                .arg(format!("administrator@vsphere.local:{PASSWORD}"))
                .arg("-root")
                .arg(site.path("sim/root"))
                .arg("-config")
                .arg(site.path("sim/vms.json"))
                .arg("-control")
                .arg(&control)
                .arg("-cert")
                .arg(&certificate)
                .arg("-key")
                .arg(&key)
                .stdout(Stdio::piped()),
        );
        let mut ready = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready
            .trim()
            .strip_prefix("READY https://")
            .and_then(|url| url.strip_suffix("/sdk"))
            .unwrap_or_else(|| panic!("the simulator said {ready:?}"));

        // nbdkit looks for plugins in one built-in directory only; this needs no root and leaves the machine alone.
        fs::create_dir(site.path("sim/bin")).unwrap();
        let nbdkit = lab::find("nbdkit").unwrap();
        let script = format!(
            "#!/usr/bin/env bash\nargs=()\nfor a in \"$@\"; do [ \"$a\" = vddk ] && a='{}'; args+=(\"$a\"); done\nexec '{}' \"${{args[@]}}\"\n",
            plugin.display(),
            nbdkit.display()
        );
        let front = site.path("sim/bin/nbdkit");
        fs::write(&front, script).unwrap();
        lab::run(Command::new("chmod").arg("755").arg(&front));
        fs::write(site.path("sim/password"), PASSWORD).unwrap();
        for (name, value) in [
            ("PATH", lab::path_with(&site.path("sim/bin"))),
            ("VDDK_SIM_ROOT", site.text("sim/root")),
            ("VDDK_SIM_LOG", site.text("sim/vddk.log")),
            ("VDDK_SIM_PASSWORD_FILE", site.text("sim/password")),
            ("VDDK_SIM_THUMBPRINT", thumbprint.clone()),
        ] {
            site.set(name, value);
        }
        let uri = format!("vpx://administrator%40vsphere.local@{address}/DC0/DC0_H0?no_verify=1");
        Self { _server: server, control, uri, thumbprint }
    }

    /// What the machine looks like: power, directory, `snapshots`, `change_tracking`, `disks`.
    pub fn machine(&self) -> Value {
        let mut socket = UnixStream::connect(&self.control).unwrap();
        write!(socket, "POST /dump HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// A client's document for the machine.
    pub fn document(&self, site: &Site, disks: usize) -> Value {
        let source_disks: Vec<String> =
            (1..=disks).map(|number| format!("[LocalDS_0] DC0_H0_VM0/disk{number}.vmdk")).collect();
        json!({
            "vm_name": "DC0_H0_VM0",
            "transport_method": "vddk",
            "vmware_uri": self.uri,
            "vmware_fingerprint": self.thumbprint,
            "vmware_password": PASSWORD,
            "source_disks": source_disks,
            "output_directory": site.path("output"),
        })
    }
}

/// Every disk of a VMware guest arrives under the name the client gave, with the guest's memory; the password is in no
/// argument, environment, log, state or file while the job runs, nor afterwards.
#[test]
fn a_vmware_guest_arrives_and_its_password_is_seen_nowhere() {
    if !have() {
        return;
    }
    let mut site = Site::new();
    site.guest("vm", &[]);
    disks::noise(&site.path("guest/noise.img"), 32);
    let disks = [site.path("guest/vm-disk1.img"), site.path("guest/noise.img")];
    let vcenter = Vcenter::start(&mut site, &disks);
    let document = vcenter.document(&site, 2);
    let watch = SecretWatch::new(&site, PASSWORD);
    let mut job = site.start(&document);
    let state = job.assert_converted(2);
    watch.assert_never_seen();
    let paths: Vec<&Value> = state["disks"].as_array().unwrap().iter().map(|disk| &disk["path"]).collect();
    assert_eq!(paths, document["source_disks"].as_array().unwrap().iter().collect::<Vec<_>>());
    disks::assert_is_converted(&site.path("output/DC0_H0_VM0-sda"));
    disks::assert_same_content((&disks[1], "raw"), (&site.path("output/DC0_H0_VM0-sdb"), "raw"));
    let xml = fs::read_to_string(site.path("output/DC0_H0_VM0.xml")).unwrap();
    assert!(xml.contains("<memory unit='KiB'>1048576</memory>"), "{xml}");
    let opened = fs::read_to_string(site.path("sim/vddk.log")).unwrap();
    assert!(opened.contains("user=administrator@vsphere.local"), "{opened}");
}

/// A wrong password ends the job with a sentence of the source's, not with the password.
#[test]
fn a_wrong_password_fails_the_job_and_is_not_repeated() {
    if !have() {
        return;
    }
    let mut site = Site::new();
    site.guest("vm", &[]);
    let disks = [site.path("guest/vm-disk1.img")];
    let vcenter = Vcenter::start(&mut site, &disks);
    let mut document = vcenter.document(&site, 1);
    document["vmware_password"] = json!("not-the-password-5512");
    let mut job = site.start(&document);
    let message = job.assert_failed();
    assert!(!message.contains("5512"), "{message}");
    assert!(!job.logs().contains("5512"), "{}", job.logs());
}

/// Cancelled while a disk is being copied: virt-v2v's pid is enough, and the partial disks are removed.
#[test]
fn term_to_the_pid_during_the_copy_leaves_nothing() {
    if !have() {
        return;
    }
    let mut site = Site::new();
    site.guest("vm", &[]);
    disks::noise(&site.path("guest/noise.img"), 64);
    // Slow from here on: no file system, so only the copy reads there.
    site.set("VDDK_SIM_DELAY_US", "2000000");
    site.set("VDDK_SIM_DELAY_FROM", (128 << 20 | 1).to_string());
    let long = site.path("guest/long.img");
    lab::run(Command::new("qemu-img").args(["create", "-q", "-f", "raw"]).arg(&long).arg("192M"));
    lab::run(
        Command::new("dd")
            .arg(format!("if={}", site.text("guest/noise.img")))
            .arg(format!("of={}", long.display()))
            .args(["bs=1M", "seek=128", "conv=notrunc", "status=none"]),
    );
    let disks = [site.path("guest/vm-disk1.img"), long];
    let vcenter = Vcenter::start(&mut site, &disks);
    let mut job = site.start(&vcenter.document(&site, 2));
    job.until_message("Copying disk 2/2");
    let state = job.until("a partial second disk", |job, _| job.site.path("output/DC0_H0_VM0-sdb").exists());
    lab::signal(i32::try_from(state["pid"].as_i64().unwrap()).unwrap(), nix::sys::signal::Signal::SIGTERM);
    job.assert_failed();
}
