//! A watch for a secret: in arguments, environments and files, from the start of a job to its end.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::job::Process;
use crate::lab::{self, Site};

/// Looks at every process of a job and every file it makes, again and again, for a secret.
pub struct SecretWatch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    looks: Arc<Mutex<(usize, usize)>>,
    thread: std::thread::JoinHandle<()>,
    directories: Vec<PathBuf>,
    forms: Vec<Vec<u8>>,
}

impl SecretWatch {
    /// Starts looking.
    pub fn new(site: &Site, secret: &str) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let looks = Arc::new(Mutex::new((0, 0)));
        let mark = site.mark().into_bytes();
        let forms = forms(secret);
        let directories: Vec<PathBuf> =
            ["state", "log", "tmp", "output"].map(|name| site.path(name)).to_vec();
        let thread = std::thread::spawn({
            let (stop, seen, looks) = (stop.clone(), seen.clone(), looks.clone());
            let (forms, small) = (forms.clone(), vec![directories[0].clone(), directories[2].clone()]);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut processes = 0;
                    for process in Process::all() {
                        if !lab::contains(&process.environ, &mark) {
                            continue;
                        }
                        processes += 1;
                        for (place, bytes) in
                            [("arguments", &process.cmdline), ("environment", &process.environ)]
                        {
                            if holds(bytes, &forms) {
                                seen.lock().unwrap().push(format!("{place} of {process:?}"));
                            }
                        }
                    }
                    scan(&small, &forms, &seen);
                    let mut looks = looks.lock().unwrap();
                    *looks = (looks.0 + 1, looks.1.max(processes));
                    drop(looks);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        });
        Self { stop, seen, looks, thread, directories, forms }
    }

    /// The job is over: the secret was nowhere, and is in no file now.
    pub fn assert_never_seen(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        scan(&self.directories, &self.forms, &self.seen);
        let (looks, processes) = *self.looks.lock().unwrap();
        assert!(
            looks > 20 && processes >= 3,
            "the watch saw too little: {looks} looks, {processes} processes"
        );
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.dedup();
        assert!(seen.is_empty(), "the secret was seen in: {seen:#?}");
    }
}

/// The secret as it is, and as JSON, XML, a URI and Rust's `{:?}` write it.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let json = json!(secret).to_string();
    let xml = ["&amp;", "&lt;", "&gt;", "&quot;", "&apos;"].iter().zip(["&", "<", ">", "\"", "'"]);
    let xml = xml.fold(secret.to_owned(), |text, (entity, character)| text.replace(character, entity));
    let kept = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let uri = secret.bytes().map(|byte| match kept(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    let forms =
        [secret.to_owned(), json.trim_matches('"').to_owned(), xml, uri.collect(), format!("{secret:?}")];
    forms.map(String::into_bytes).to_vec()
}

fn holds(bytes: &[u8], forms: &[Vec<u8>]) -> bool {
    forms.iter().any(|form| lab::contains(bytes, form))
}

/// Files up to 32 MiB (disks and the appliance's overlays are larger: they are the guest's own data).
fn scan(directories: &[PathBuf], forms: &[Vec<u8>], seen: &Mutex<Vec<String>>) {
    for file in directories.iter().flat_map(|directory| lab::files(directory)) {
        let regular = fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_file() && meta.len() <= 32 << 20);
        if regular && fs::read(&file).is_ok_and(|bytes| holds(&bytes, forms)) {
            seen.lock().unwrap().push(file.display().to_string());
        }
    }
}
