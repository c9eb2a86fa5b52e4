//! Volumes that are attached to the conversion server, as devices of this host: what KVM does on a real one. Nova's fake driver
//! and the fake cloud attach nothing.
//!
//! A thread asks which volumes are attached and where their bytes are, and keeps `/dev/disk/by-id/virtio-<20 characters>`
//! for each as a link to a loop device over them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const BY_ID: &str = "/dev/disk/by-id";

pub struct Plugger {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Where the device of a volume is.
pub fn device(volume: &str) -> PathBuf {
    Path::new(BY_ID).join(format!("virtio-{}", &volume[..20]))
}

impl Plugger {
    /// `attached` gives the volumes of the server, with their files; `None`: it cannot be told now. It is asked so often.
    pub fn start(
        every: Duration,
        mut attached: impl FnMut() -> Option<BTreeMap<String, PathBuf>> + Send + 'static,
    ) -> Self {
        fs::create_dir_all(BY_ID).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut plugged: BTreeMap<String, Option<String>> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                if let Some(wanted) = attached() {
                    let gone: Vec<String> =
                        plugged.keys().filter(|volume| !wanted.contains_key(*volume)).cloned().collect();
                    for volume in gone {
                        unplug(&volume, plugged.remove(&volume).flatten());
                    }
                    for (volume, file) in wanted {
                        plugged.entry(volume.clone()).or_insert_with(|| plug(&volume, &file));
                    }
                }
                std::thread::sleep(every);
            }
            for (volume, device) in plugged {
                unplug(&volume, device);
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Plugger {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The loop device; `None`: there is none here, and the file itself has to do.
fn plug(volume: &str, file: &Path) -> Option<String> {
    let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
    let made = made.ok().filter(|made| made.status.success());
    let made = made.map(|made| String::from_utf8_lossy(&made.stdout).trim().to_owned());
    let link = device(volume);
    fs::remove_file(&link).ok();
    symlink(made.as_deref().map_or(file, Path::new), &link).unwrap();
    made
}

fn unplug(volume: &str, device_of: Option<String>) {
    fs::remove_file(device(volume)).ok();
    if let Some(device) = device_of {
        Command::new("losetup").args(["--detach", &device]).status().ok();
    }
}
