//! Any bytes as a server's side of the handshake: an open export or an error, never a panic or a wait.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virt_v2v_wrapper::nbd::handshake::negotiate;
use virt_v2v_wrapper::nbd::{Address, Options};

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let address = Address::Unix("/fuzz".into());
    let (mut reader, mut writer) = (bytes, tokio::io::sink());
    let options = Options::default();
    let _ = runtime.block_on(negotiate(&mut reader, &mut writer, &address, "disk", &options));
});
