//! Overlays with the real qemu-img: a copy is untouched until the commit, and right after it, however often that was
//! killed on the way.
//!
//! The suite drives the library; the job around it is in `tests/real/in_place.rs`. qemu-img is waited for by its own
//! pid, so the children of other suites in this process are safe. Each test is one thread with one runtime: a tool dies
//! with the thread that started it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use virt_v2v_wrapper::domain::Placed;
use virt_v2v_wrapper::overlay::{self, Overlay, OverlayError};
use virt_v2v_wrapper::plan::{DiskFormat, TwoPhasePrograms};

/// Bytes of the test disks; not a multiple of a qcow2 cluster.
const SIZE: u64 = (24 << 20) + 4096;

/// May the test run? Without the tools it is skipped, with `CI` set it fails.
fn have() -> bool {
    let missing = ["qemu-img", "qemu-io"].into_iter().find(|tool| find(tool).is_none());
    if let Some(tool) = missing {
        assert!(std::env::var_os("CI").is_none(), "{tool} is not installed");
        // Past the harness, which hides what passing tests print.
        writeln!(std::io::stderr(), "SKIPPED: {tool} is not installed").ok();
    }
    missing.is_none()
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(tool)).find(|file| file.is_file())
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output.stdout
}

fn qemu_img(args: &[&str], files: &[&Path]) -> Vec<u8> {
    run(Command::new("qemu-img").args(args).args(files))
}

/// Commands of qemu-io.
fn write(image: &Path, format: &str, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    run(Command::new("qemu-io").args(["-f", format]).args(commands).arg(image));
}

/// A directory with programs and copied disks.
struct Bench {
    directory: tempfile::TempDir,
    programs: TwoPhasePrograms,
}

impl Bench {
    fn new() -> Self {
        let programs = TwoPhasePrograms { qemu_img: find("qemu-img").unwrap(), ..Default::default() };
        Self { directory: tempfile::tempdir().unwrap(), programs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same, with a qemu-img that commits this many bytes a second.
    fn slow(&self, rate: &str) -> TwoPhasePrograms {
        let script = format!(
            "#!/usr/bin/env bash\nif [ \"$1\" = commit ]; then shift; set -- commit -r {rate} \"$@\"; fi\n\
             exec '{}' \"$@\"\n",
            self.programs.qemu_img.display()
        );
        let path = self.path("slow-qemu-img");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        TwoPhasePrograms { qemu_img: path, ..Default::default() }
    }

    /// A copied disk with data in it.
    fn copy(&self, name: &str, format: DiskFormat) -> Placed {
        let path = self.path(name);
        qemu_img(&["create", "-q", "-f", format.as_str()], &[&path, Path::new(&SIZE.to_string())]);
        write(&path, format.as_str(), &["write -q -P 1 0 6M", "write -q -P 2 20M 4M"]);
        Placed { path, format }
    }

    /// What a conversion does: data over data, data over holes, zeros, discards.
    fn convert(&self, overlay: &Overlay) -> PathBuf {
        let commands =
            ["write -q -P 3 1M 9M", "write -q -z 3M 1M", "discard -q 20M 1M", "write -q -P 4 22M 2052k"];
        write(&overlay.path, "qcow2", &commands);
        let expected = self.path(&format!("expected-{}.img", overlay.disk));
        qemu_img(&["convert", "-O", "raw"], &[&overlay.path, &expected]);
        expected
    }

    async fn create(&self, bases: &[Placed]) -> Vec<Overlay> {
        overlay::create(&self.programs, "test", bases, &self.path("overlays")).await.unwrap()
    }
}

/// Guest-visible bytes and size are the same.
fn assert_same(expected: &Path, copy: &Placed) {
    let raw = expected.with_extension("now");
    qemu_img(&["convert", "-f", copy.format.as_str(), "-O", "raw"], &[&copy.path, &raw]);
    assert!(fs::read(expected).unwrap() == fs::read(raw).unwrap(), "{} is wrong", copy.path.display());
}

/// Rules: a copy is not written to before its commit; after it the copy is what the guest saw through the overlay;
/// the overlay stays whole, so that the commit can be repeated. Names are only names.
#[tokio::test]
async fn a_commit_makes_the_copy_what_the_overlay_showed() {
    if !have() {
        return;
    }
    let bench = Bench::new();
    let bases = [
        bench.copy("raw", DiskFormat::Raw),
        bench.copy("qcow2", DiskFormat::Qcow2),
        bench.copy("-a,b json:{} =ü 'c' %41.img", DiskFormat::Raw),
    ];
    let before: Vec<Vec<u8>> = bases.iter().map(|base| fs::read(&base.path).unwrap()).collect();
    let overlays = bench.create(&bases).await;
    let expected: Vec<PathBuf> = overlays.iter().map(|overlay| bench.convert(overlay)).collect();
    for (base, before) in bases.iter().zip(before) {
        assert!(fs::read(&base.path).unwrap() == before, "{} was written to", base.path.display());
    }
    overlay::sync(&overlays).await.unwrap();
    for (overlay, expected) in overlays.iter().zip(&expected) {
        let whole = fs::read(&overlay.path).unwrap();
        for time in ["first", "second"] {
            let mut told = Vec::new();
            overlay::commit(&bench.programs, "test", overlay, |percent| told.push(percent)).await.unwrap();
            assert_eq!(told.last(), Some(&100.0), "{time} time: {told:?}");
            assert_same(expected, &overlay.base);
            assert!(fs::read(&overlay.path).unwrap() == whole, "the {time} commit changed the overlay");
        }
    }
    overlay::remove(&bench.path("overlays")).unwrap();
    overlay::remove(&bench.path("overlays")).unwrap();
}

/// A size that is no multiple of a sector: virt-v2v and qemu see whole sectors, and nothing of the content moves.
#[tokio::test]
async fn a_copy_of_an_odd_size_keeps_its_content() {
    if !have() {
        return;
    }
    let bench = Bench::new();
    let base = Placed { path: bench.path("odd"), format: DiskFormat::Raw };
    fs::write(&base.path, vec![7; 1_000_001]).unwrap();
    let overlays = bench.create(std::slice::from_ref(&base)).await;
    write(&overlays[0].path, "qcow2", &["write -q -P 8 0 512"]);
    overlay::commit(&bench.programs, "test", &overlays[0], |_| ()).await.unwrap();
    let after = fs::read(&base.path).unwrap();
    assert!(
        after[..512].iter().all(|byte| *byte == 8) && after[512..1_000_001].iter().all(|byte| *byte == 7)
    );
    assert!(after.len() < 1_000_001 + 512, "{} bytes", after.len());
}

/// Rule: a commit may be killed at any moment, any number of times; the next one makes it right.
#[tokio::test]
async fn a_commit_killed_at_any_moment_is_repeated() {
    if !have() {
        return;
    }
    let bench = Bench::new();
    let bases = [bench.copy("raw", DiskFormat::Raw), bench.copy("qcow2", DiskFormat::Qcow2)];
    let overlays = bench.create(&bases).await;
    let expected: Vec<PathBuf> = overlays.iter().map(|overlay| bench.convert(overlay)).collect();
    let slow = bench.slow("16M");
    let mut halves = 0;
    for round in 0..12 {
        for overlay in &overlays {
            // From "not begun" to "nearly done": about a second in all.
            let moment = Duration::from_millis(70 * round);
            let furthest = Cell::new(0.0);
            let committed = overlay::commit(&slow, "test", overlay, |percent| furthest.set(percent));
            // Dropped at the time limit: killed with SIGKILL.
            let ended = tokio::time::timeout(moment, committed).await;
            halves += usize::from(ended.is_err() && furthest.get() > 0.0);
        }
    }
    assert!(halves >= 4, "only {halves} kills came in the middle of a commit");
    let overlays =
        overlay::adopt(&bench.programs, "test", &bases, &bench.path("overlays"), |_| false).await.unwrap();
    for (overlay, expected) in overlays.iter().zip(&expected) {
        overlay::commit(&bench.programs, "test", overlay, |_| ()).await.unwrap();
        assert_same(expected, &overlay.base);
    }
}

/// Rule: nobody waits any more, nothing runs any more; above all nothing that writes into a copy.
#[tokio::test]
async fn a_dropped_commit_leaves_no_process() {
    if !have() {
        return;
    }
    let bench = Bench::new();
    let overlays = bench.create(&[bench.copy("raw", DiskFormat::Raw)]).await;
    bench.convert(&overlays[0]);
    let running = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).contains(overlays[0].path.to_str().unwrap()))
    };
    let slow = bench.slow("1M");
    let begun = Cell::new(false);
    {
        let mut commit = std::pin::pin!(overlay::commit(&slow, "test", &overlays[0], |_| begun.set(true)));
        while !begun.get() {
            let limit = Duration::from_millis(50);
            assert!(tokio::time::timeout(limit, &mut commit).await.is_err(), "it was too quick");
        }
        assert!(running());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while running() {
        assert!(Instant::now() < deadline, "qemu-img runs on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Rules: overlays are only taken over for the copies they were made over; what is committed is not looked at any more;
/// a qcow2 copy that is more than untidy is refused.
#[tokio::test]
async fn overlays_are_taken_over_with_their_own_copies_only() {
    if !have() {
        return;
    }
    let bench = Bench::new();
    let bases = [bench.copy("one", DiskFormat::Qcow2), bench.copy("two", DiskFormat::Raw)];
    let overlays = bench.create(&bases).await;
    let directory = bench.path("overlays");
    let adopt = async |bases: &[Placed], committed: fn(usize) -> bool| {
        overlay::adopt(&bench.programs, "test", bases, &directory, committed).await
    };
    assert_eq!(adopt(&bases, |_| false).await.unwrap(), overlays);
    let swapped = [bases[1].clone(), bases[0].clone()];
    let error = adopt(&swapped, |_| false).await.unwrap_err();
    assert!(matches!(error, OverlayError::OtherBase { .. }), "{error}");
    let as_raw = [Placed { format: DiskFormat::Raw, ..bases[0].clone() }, bases[1].clone()];
    assert!(matches!(adopt(&as_raw, |_| false).await, Err(OverlayError::OtherBase { .. })));

    fs::remove_file(&overlays[1].path).unwrap();
    let error = adopt(&bases, |_| false).await.unwrap_err().to_string();
    assert!(error.contains("could not read") && error.contains("No such file"), "{error}");
    assert!(adopt(&bases, |disk| disk == 1).await.is_ok(), "disk 2 is committed");

    // Clusters that nobody uses are what a kill leaves: repaired.
    let mut leaking = fs::read(&bases[0].path).unwrap();
    let count = leaking[0x20000..0x30000].chunks(2).rposition(|count| count != [0, 0]).unwrap();
    leaking[0x20000 + 2 * (count + 1) + 1] = 1;
    leaking.resize((count + 2) << 16, 0);
    fs::write(&bases[0].path, leaking).unwrap();
    let check =
        || Command::new("qemu-img").args(["check", "-q"]).arg(&bases[0].path).status().unwrap().code();
    assert_eq!(check(), Some(3));
    assert!(adopt(&bases, |disk| disk == 1).await.is_ok());
    assert_eq!(check(), Some(0));
    // Clusters that are in use and counted as free: what a kill never does, and what must not be written on. The first
    // block of reference counts is the third cluster, two bytes each.
    let mut damaged = fs::read(&bases[0].path).unwrap();
    damaged[0x20000 + 2 * 8..0x20000 + 2 * 16].fill(0);
    fs::write(&bases[0].path, damaged).unwrap();
    let error = adopt(&bases, |disk| disk == 1).await.unwrap_err();
    assert!(matches!(error, OverlayError::Damaged { .. }), "{error}");
}

/// Rule: what qemu-img says is what the user reads; a directory of somebody else's is not used.
#[tokio::test]
async fn failures_say_why() {
    if !have() {
        return;
    }
    let bench = Bench::new();
    let bases = [bench.copy("raw", DiskFormat::Raw)];
    let overlays = bench.create(&bases).await;
    let again = overlay::create(&bench.programs, "test", &bases, &bench.path("overlays")).await;
    assert!(matches!(again, Err(OverlayError::Directory { .. })));
    fs::remove_file(&bases[0].path).unwrap();
    let error = overlay::commit(&bench.programs, "test", &overlays[0], |_| ()).await.unwrap_err();
    assert!(
        error.to_string().contains("could not commit") && error.to_string().contains("No such file"),
        "{error}"
    );
    let none = TwoPhasePrograms { qemu_img: "/nonexistent/qemu-img".into(), ..Default::default() };
    let error = overlay::commit(&none, "test", &overlays[0], |_| ()).await.unwrap_err();
    assert!(matches!(error, OverlayError::Start { .. }), "{error}");
}
