//! Any bytes as replies to requests in flight: each request ends, and all memory is given back.
//!
//! The first byte chooses structured or simple replies. Cookies are 1 to 4.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use virt_v2v_wrapper::nbd::budget::Budget;
use virt_v2v_wrapper::nbd::client::Client;
use virt_v2v_wrapper::nbd::wire::{self, answer, option};
use virt_v2v_wrapper::nbd::{Address, Options};

const MEMORY: usize = 1 << 20;
const REQUESTS: usize = 4;

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let numbers = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&wire::OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, data].concat()
}

fn handshake(structured: bool) -> Vec<u8> {
    let greeting = [&wire::INIT_MAGIC.to_be_bytes()[..], &wire::OPTION_MAGIC.to_be_bytes(), &[0, 3]].concat();
    let kind = if structured { answer::ACK } else { answer::UNSUPPORTED };
    let mut bytes = [greeting, option_reply(option::STRUCTURED_REPLY, kind, &[])].concat();
    if structured {
        let context = [&7_u32.to_be_bytes()[..], wire::BASE_ALLOCATION.as_bytes()].concat();
        bytes.extend(option_reply(option::SET_META_CONTEXT, answer::META_CONTEXT, &context));
        bytes.extend(option_reply(option::SET_META_CONTEXT, answer::ACK, &[]));
    }
    let export = [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &[0x09, 0x6d]].concat();
    bytes.extend(option_reply(option::GO, answer::INFO, &export));
    bytes.extend(option_reply(option::GO, answer::ACK, &[]));
    bytes
}

async fn play(structured: bool, bytes: &[u8]) {
    let (ours, mut theirs) = duplex(1 << 20);
    let (reader, writer) = split(ours);
    theirs.write_all(&handshake(structured)).await.expect("room in the pipe");
    let address = Address::Unix("/fuzz".into());
    let client = Client::over(reader, writer, &address, "", &Options::default()).await.expect("in order");
    let budget = Budget::new(MEMORY);
    // Also the options of the handshake are still in the pipe.
    let options = if structured { 4 + 16 + 43 + 24 } else { 4 + 16 + 24 };
    let serve = async {
        let mut said = vec![0; options + 28 * if structured { REQUESTS } else { REQUESTS - 1 }];
        theirs.read_exact(&mut said).await.expect("all requests");
        // The client closes early when it has had enough.
        let _ = theirs.write_all(bytes).await;
        drop(theirs);
    };
    let read = async |offset| client.read(offset, budget.buffer(64).await).await.is_ok();
    let _ = tokio::join!(read(0), read(64), client.flush(), client.block_status(0, 4096), serve);
    assert_eq!((client.in_flight(), budget.available()), (0, MEMORY));
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let playing = async {
        tokio::time::timeout(Duration::from_secs(10), play(first & 1 == 1, rest)).await.expect("it waits");
    };
    tokio::task::LocalSet::new().block_on(&runtime, playing);
});
