//! `--checks` and `--check-NAME`: does this host have what a conversion needs? (contract.md 8.2)
//!
//! Exit code 0 or 1; what is missing is said on stdout. An unknown name is 1 and silent, as it always was.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::log::chain;
use crate::preflight;
use crate::site::Site;

/// What a check found: nothing, or a sentence.
type Finding = Result<(), String>;

type Check = (&'static str, fn(&Site) -> Finding);

/// All checks, in the order of `--checks`. The last three are the old program's.
const CHECKS: [Check; 9] = [
    ("virt-v2v", virt_v2v),
    ("virt-v2v-in-place", virt_v2v_in_place),
    ("nbdkit-vddk", nbdkit_vddk),
    ("libguestfs", libguestfs),
    ("virtio-win", virtio_win),
    ("kvm", kvm),
    ("ovirt-version", ovirt_version),
    ("rhv-version", ovirt_version),
    ("rhv-guest-tools", virtio_win),
];

const QUICK: Duration = Duration::from_secs(30);
/// libguestfs-test-tool boots an appliance: half a minute in software emulation, more on a busy host.
const APPLIANCE: Duration = Duration::from_secs(600);
/// The first vdsm with all that an import needs: oVirt 4.2.4 (contract.md 8.2).
const VDSM: [u32; 3] = [4, 20, 31];

/// Prints the names.
pub(super) fn list(out: &mut impl Write) -> u8 {
    let listed = CHECKS.iter().try_for_each(|(name, _)| writeln!(out, "{name}"));
    u8::from(listed.is_err())
}

/// Runs one check.
pub(super) fn run(name: &str, out: &mut impl Write) -> u8 {
    let Some((_, check)) = CHECKS.iter().find(|(known, _)| *known == name) else { return 1 };
    let found = match Site::load(&|name| std::env::var_os(name)) {
        Ok(site) => check(&site),
        Err(error) => Err(chain(&error)),
    };
    let Err(missing) = found else { return 0 };
    // The exit code says it too; a closed stdout loses only the sentence.
    let _ = writeln!(out, "{missing}");
    1
}

fn virt_v2v(site: &Site) -> Finding {
    let program = program(site.virt_v2v.as_deref(), "virt-v2v")?;
    answer(Command::new(program).arg("--machine-readable"), QUICK).map(drop)
}

fn virt_v2v_in_place(site: &Site) -> Finding {
    let program = program(site.virt_v2v_in_place.as_deref(), "virt-v2v-in-place")?;
    answer(Command::new(program).arg("--version"), QUICK).map(drop)
}

fn nbdkit_vddk(site: &Site) -> Finding {
    let program = program(site.nbdkit.as_deref(), "nbdkit")?;
    answer(Command::new(program).args(["--dump-plugin", "vddk"]), QUICK)
        .map_err(|said| format!("nbdkit has no vddk plugin: {said}"))?;
    if !site.vddk_libdir.is_dir() {
        return Err(format!(
            "The VDDK library is not in {}: unpack it there or set vddk_libdir",
            site.vddk_libdir.display()
        ));
    }
    Ok(())
}

fn libguestfs(site: &Site) -> Finding {
    let mut command = Command::new(program(None, "libguestfs-test-tool")?);
    command.env("LIBGUESTFS_BACKEND", "direct");
    if let Some(settings) = &site.libguestfs_backend_settings {
        command.env("LIBGUESTFS_BACKEND_SETTINGS", settings);
    }
    answer(&mut command, APPLIANCE).map(drop).map_err(|said| {
        format!("The libguestfs appliance does not boot: {said}. Without a working /dev/kvm set libguestfs_backend_settings = \"force_tcg\"")
    })
}

fn virtio_win(site: &Site) -> Finding {
    preflight::windows_drivers(site.virtio_win.as_deref())
}

/// A /dev/kvm may exist, run a boot sector, and hang in the first kernel; libguestfs then hangs without a word. So a
/// kernel must come up: without a root file system it panics, which ends qemu.
fn kvm(_site: &Site) -> Finding {
    if !Path::new("/dev/kvm").exists() {
        return Err("There is no /dev/kvm: conversions run in slow software emulation".to_owned());
    }
    let qemu = ["qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm"]
        .into_iter()
        .find_map(|name| program(None, name).ok())
        .ok_or("qemu-system-x86_64 is not installed")?;
    let kernel =
        kernel().ok_or("There is no readable kernel in /boot or /lib/modules: libguestfs needs one")?;
    let mut command = Command::new(qemu);
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        "max",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1 root=/dev/none", "-kernel"])
        .arg(kernel);
    let advice = "set libguestfs_backend_settings = \"force_tcg\"";
    match answer(&mut command, QUICK) {
        Ok(console) if console.contains("Linux version") => Ok(()),
        Ok(_) => Err(format!("/dev/kvm runs no kernel: {advice}")),
        Err(said) => Err(format!("/dev/kvm does not work ({said}): {advice}")),
    }
}

fn kernel() -> Option<PathBuf> {
    let in_boot = files_in(Path::new("/boot"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    let in_modules = files_in(Path::new("/lib/modules")).into_iter().map(|path| path.join("vmlinuz"));
    in_boot.chain(in_modules).find(|path| std::fs::File::open(path).is_ok())
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(listing) = std::fs::read_dir(directory) else { return Vec::new() };
    listing.flatten().map(|entry| entry.path()).collect()
}

fn ovirt_version(_site: &Site) -> Finding {
    let Ok(rpm) = program(None, "rpm") else {
        return Err("No rpmUtils package, cannot probe vdsm versions".to_owned());
    };
    let version = answer(Command::new(rpm).args(["-q", "--qf", "%{version}", "vdsm"]), QUICK);
    let numbers =
        |text: String| -> Vec<u32> { text.trim().split('.').map_while(|part| part.parse().ok()).collect() };
    match version.map(numbers) {
        Ok(version) if version.as_slice() >= VDSM.as_slice() => Ok(()),
        _ => Err("Minimal required oVirt/RHV version is 4.2.4".to_owned()),
    }
}

fn program(configured: Option<&Path>, name: &str) -> Result<PathBuf, String> {
    let elsewhere = ["/usr/libexec", "/usr/lib/virt-v2v"].map(Path::new);
    crate::site::find_program(configured, name, &elsewhere, std::env::var_os("PATH").as_deref())
        .map_err(|error| chain(&error))
}

/// Runs a command within a time limit; its stdout, or what it said last.
fn answer(command: &mut Command, limit: Duration) -> Result<String, String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = tempfile::tempfile().and_then(|file| Ok((file.try_clone()?, file.try_clone()?, file)));
    let (out, err, mut file) = output.map_err(|error| format!("no temporary file: {error}"))?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = command.spawn().map_err(|error| format!("{name} does not start: {error}"))?;
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                // Killed and reaped; a process stuck in the kernel is not waited for.
                child.kill().map_err(|error| error.to_string())?;
                return Err(format!("{name} did not answer within {} s", limit.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let said = read_from_start(&mut file).map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(said);
    }
    let told = |line: &&str| !line.trim().is_empty();
    let error = said.lines().find(|line| line.contains("error"));
    let last = error.or_else(|| said.lines().rfind(told)).unwrap_or("it said nothing");
    Err(format!("{name}: {status}: {last}"))
}

fn read_from_start(file: &mut std::fs::File) -> std::io::Result<String> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
