//! A reader that never rests: from the reply to the end it reads the state file as often as it can, while
//! virt-v2v prints progress quickly. A client must never see a torn, empty or missing file, nor time go backwards.
//!
//! At least 100,000 reads; `V2V_TEST_READS=1000000` for more. Nothing here asserts a time.

use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::rig::processes::Processes;
use crate::rig::sandbox::Sandbox;

/// Values of the progress that virt-v2v shows, each long enough for it to be in a state of its own.
const SHOWN: [u32; 9] = [10, 20, 30, 40, 50, 60, 70, 80, 90];

#[test]
fn a_reader_never_sees_a_torn_missing_or_older_state() {
    hammer("background", true);
}

#[test]
fn a_reader_never_sees_a_torn_missing_or_older_state_of_a_foreground_job() {
    hammer("foreground", false);
}

fn hammer(name: &str, background: bool) {
    let wanted: usize =
        std::env::var("V2V_TEST_READS").ok().and_then(|reads| reads.parse().ok()).unwrap_or(100_000);
    let mut sandbox = Sandbox::new(name);
    sandbox.configure("uci", &Map::new());
    let mut steps = vec![json!({"text": "[   9.4] Copying disk 1/1\n", "sleep_ms": 300})];
    for percent in 0..=95 {
        let pause = if SHOWN.contains(&percent) { 600 } else { 10 };
        steps.push(json!({"text": bar(percent), "to": "err", "sleep_ms": pause}));
    }
    // Long enough to be read as often as wanted: 20,000 reads a second are few for a file in the page cache.
    steps.push(json!({"sleep_ms": wanted / 20}));
    steps.push(json!({"text": "[  12.4] Creating output metadata\n"}));
    sandbox.scenario(&json!({"steps": steps}));
    let document = sandbox.substitute(&json!({
        "vm_name": "My Virtual",
        "transport_method": "vddk",
        "vmware_fingerprint": "01:23:45:67:89:AB:CD:EA:DB:EE:F0:12:34:56:78:9A:BC:DE:F0:12",
        "vmware_uri": "esx://root@127.0.0.1?no_verify=1",
        "vmware_password": "vmw-secret",
        "output_directory": "${OUT}",
        "source_disks": ["[ds] a/a.vmdk"],
        "daemonize": background,
    }));
    let mut job = sandbox.spawn(document.to_string().into_bytes());
    let reply = job.wait_reply(Duration::from_secs(60)).unwrap_or_else(|| {
        panic!("no reply: {}", String::from_utf8_lossy(&job.stderr().bytes));
    });
    let path = Path::new(reply["state_file"].as_str().expect("state_file")).to_owned();

    let over = AtomicBool::new(false);
    let total = AtomicUsize::new(0);
    let states = Mutex::new(Vec::new());
    let fault = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&path, &over, &total, &states));
        // The end of the job is seen by the reader itself; a job that never ends is given up.
        let limit = Duration::from_secs(120) + Duration::from_millis(wanted as u64 / 5);
        job.wait_finished(limit);
        over.store(true, Ordering::SeqCst);
        reader.join().expect("reader")
    });
    assert_eq!(fault, None, "after {} reads", total.load(Ordering::SeqCst));
    let states = states.into_inner().expect("states");
    let last = states.last().expect("a state");
    assert_eq!((&last["finished"], &last["failed"]), (&json!(true), &json!(false)), "{last}");
    assert!(
        total.load(Ordering::SeqCst) >= wanted,
        "only {} reads of the {wanted} wanted",
        total.load(Ordering::SeqCst)
    );

    let (mut sequence, mut whole, mut disk) = (None, 0.0, 0.0);
    for state in &states {
        let next = state["sequence"].as_u64();
        assert!(next > sequence, "sequence went from {sequence:?} to {next:?}: {state}");
        sequence = next;
        let number = |value: &Value, last: f64| {
            let next = value.as_f64().unwrap_or(last);
            assert!(next >= last, "progress fell from {last} to {next}: {state}");
            next
        };
        whole = number(&state["progress"], whole);
        disk = number(&state["disks"][0]["progress"], disk);
    }
    for shown in SHOWN {
        assert!(
            states.iter().any(|state| state["disks"][0]["progress"].as_f64() == Some(f64::from(shown))),
            "{shown} % was never shown, of {:?}",
            states.iter().map(|state| &state["disks"][0]["progress"]).collect::<Vec<_>>()
        );
    }
    let left = Processes::of(&sandbox).gone_within(Duration::from_secs(10));
    assert_eq!(left, Ok(()), "processes left");
}

/// Reads until it is over; keeps distinct states; the first thing that was wrong.
fn read_all(
    path: &Path,
    over: &AtomicBool,
    total: &AtomicUsize,
    states: &Mutex<Vec<Value>>,
) -> Option<String> {
    let mut last = Vec::new();
    let mut bytes = Vec::new();
    loop {
        // Asked before the read: the last read comes after the end.
        let done = over.load(Ordering::SeqCst);
        bytes.clear();
        let read = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
        if let Err(error) = read {
            return Some(format!("the state file could not be read: {error}"));
        }
        total.fetch_add(1, Ordering::SeqCst);
        if bytes != last {
            match serde_json::from_slice::<Value>(&bytes) {
                Ok(state) if state.is_object() => states.lock().expect("states").push(state),
                _ => return Some(format!("torn: {:?}", String::from_utf8_lossy(&bytes))),
            }
            std::mem::swap(&mut last, &mut bytes);
        }
        if done {
            return None;
        }
    }
}

fn bar(percent: u32) -> String {
    let stars = percent as usize * 40 / 100;
    format!("\u{259d} {percent:3}% [{}{}]\r", "*".repeat(stars), "-".repeat(40 - stars))
}
