//! A second source of changed blocks with data of its own: a qcow2 image with persistent dirty bitmaps. What VMware's change
//! ids are to a machine, a bitmap of each round is to the image; qemu keeps them, nbdinfo reads them.

use std::cell::Cell;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Output};
use std::rc::Rc;

use serde_json::Value;
use virt_v2v_wrapper::copy::ledger::{Identity, Ledger};
use virt_v2v_wrapper::copy::reader::{Reader, Serving};
use virt_v2v_wrapper::copy::{Copied, CopyError, Job};
use virt_v2v_wrapper::export::{Export, Filters};
use virt_v2v_wrapper::extent::Extents;
use virt_v2v_wrapper::source::local::ImageFormat;

use super::rig::{MIB, Rig};
use crate::exports::site::{find, have};

const SIZE: u64 = 37 * MIB + 1536;

fn run(program: &str, arguments: &[&str], image: &Path) -> String {
    let Output { status, stdout, stderr } =
        Command::new(find(program).unwrap()).args(arguments).arg(image).output().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// What the guest does in a round: data over data, data into holes, zeros, a discard, the odd tail.
fn write(image: &Path, round: u64) {
    let pattern = 0x11 + round;
    let commands = [
        format!("write -P {pattern} {} 70000", 3 * MIB + 512 * round),
        format!("write -P {pattern} {} 512", 20 * MIB + round * MIB),
        format!("write -z {} {}", 5 * MIB + round * 65_536, 300_000 / 512 * 512),
        format!("discard {} {MIB}", (8 + round) * MIB),
        format!("write -P {pattern} {} 1536", SIZE - 1536),
    ];
    let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
    commands.iter().for_each(|command| arguments.extend(["-c", command.as_str()]));
    run("qemu-io", &arguments, image);
}

/// From now on changes are in the bitmap of this round, and no more in that of the round before.
fn begin(image: &Path, round: u64) {
    let name = |round: u64| format!("round-{round}");
    let bitmap = |option: &str, round: u64| {
        let status = Command::new(find("qemu-img").unwrap())
            .args(["bitmap", option])
            .arg(image)
            .arg(name(round))
            .status()
            .unwrap();
        assert!(status.success(), "{option} {round}");
    };
    bitmap("--add", round);
    if round > 0 {
        bitmap("--disable", round - 1);
    }
}

/// What changed while this round's bitmap was the one.
fn changed(image: &Path, round: u64) -> Vec<(u64, u64)> {
    let name = format!("round-{round}");
    let Output { status, stdout, stderr } = Command::new(find("nbdinfo").unwrap())
        .args(["--json", &format!("--map=qemu:dirty-bitmap:{name}"), "--", "["])
        .arg(find("qemu-nbd").unwrap())
        .args(["-r", "-f", "qcow2", "-B", &name])
        .arg(image)
        .arg("]")
        .output()
        .unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let extents: Vec<Value> = serde_json::from_slice(&stdout).unwrap();
    let dirty = extents.iter().filter(|extent| extent["type"].as_u64().unwrap() & 1 == 1);
    dirty.map(|extent| (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap())).collect()
}

/// The whole image, or what changed of it.
async fn copy(rig: &Rig, image: &Path, areas: Option<&[(u64, u64)]>) -> Result<Copied, CopyError> {
    let serving = Serving {
        program: find("qemu-nbd").unwrap(),
        tag: "test".into(),
        export: Export::Image { path: image.to_owned(), format: ImageFormat::Qcow2, window: None },
        filters: Filters::default(),
        library_path: None,
        private: rig.path("private"),
        number: 7,
        connections: NonZeroUsize::MIN,
    };
    let reader = Reader::new(serving, rig.patience.clone(), Rc::new(Cell::new(1 << 20)));
    let size = reader.open().await?;
    let path = rig.path("ledger");
    let resumed = path.exists();
    let identity = Identity { source: image.display().to_string(), ..rig.identity("disk", size) };
    let ledger = if resumed { Ledger::open(&path)? } else { Ledger::create(&path, identity)? };
    let target = rig.target("disk", size, resumed).await?;
    let job = Rc::new(Job {
        reader,
        target,
        ledger,
        verify: true,
        resumed: false,
        shared: rig.shared(),
        tell: Box::new(|_| ()),
    });
    match areas {
        None => job.round(job.reader.extents(size).await?).await?,
        Some(areas) => job.delta(Extents::from_changed_areas(areas.iter().copied(), size)).await?,
    }
    let copied = job.seal().await?;
    Rc::into_inner(job).unwrap().close().await?;
    Ok(copied)
}

#[test]
fn rounds_by_dirty_bitmaps_end_in_the_image_as_it_was_last() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    let image = rig.path("disk.qcow2");
    let size = SIZE.to_string();
    assert!(
        Command::new(find("qemu-img").unwrap())
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&image)
            .arg(&size)
            .status()
            .unwrap()
            .success()
    );
    write(&image, 0);
    begin(&image, 0);
    let mut last = rig.run(copy(&rig, &image, None)).unwrap();
    for round in 0..4 {
        write(&image, round + 1);
        begin(&image, round + 1);
        let areas = changed(&image, round);
        let listed: u64 = areas.iter().map(|(_, length)| length).sum();
        assert!((1..8 * MIB).contains(&listed), "{listed} bytes are said to have changed: {areas:?}");
        let copied = rig.run(copy(&rig, &image, Some(&areas))).unwrap();
        assert_ne!(copied, last);
        let raw = rig.path("now.raw");
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image.to_str().unwrap()], &raw);
        assert!(fs::read(&raw).unwrap() == fs::read(rig.copy_of("disk")).unwrap(), "round {round}");
        last = copied;
    }
}
