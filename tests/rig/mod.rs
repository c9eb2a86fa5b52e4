//! Support of the suites. It knows the program's public surface only.
//!
//! * [`sandbox`] is one job's private surroundings: directories, site configuration, fake virt-v2v
//! * [`job`] is one run of the program: its streams, its state file as it changes, its processes
//! * [`processes`] finds in `/proc` what belongs to a job
//! * [`root`] is a root directory of its own for one program
//! * [`matching`] compares JSON with what is expected of it, and says where they differ
//! * [`always`] holds the rules that no job may break, whatever it is asked to do

pub mod always;
pub mod job;
pub mod matching;
pub mod processes;
pub mod root;
pub mod sandbox;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Asks until the answer is `Some`, or the time is over.
pub fn poll<T>(limit: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The JSON in a file that must be there.
pub fn json_file(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the file is there")).expect("it holds JSON")
}
