//! The NBD client against servers that lie (in-process, byte by byte) and against real nbdkit and qemu-nbd.
//!
//! These suites know the library's inside: a copy that ran through the whole program could not tell which of a
//! million replies was wrong. Real servers are skipped with a printed reason where the tools are missing, but not
//! when `CI` is set.
#![allow(clippy::print_stdout)] // A test that is skipped says why.

/// Handshakes that are wrong, refused or cut short.
mod evil_handshake;
/// Replies that are wrong, late, reordered or cut short.
mod evil_replies;
/// Block status that lies, and requests that the server must never see.
mod evil_requests;
/// Real servers: what is read, written and told is right.
mod real;
/// Real servers that fail, insist or die.
mod real_failures;
/// The server's side of the wire.
mod script;
/// Starting and killing real servers.
mod servers;

use std::time::Duration;

use virt_v2v_wrapper::nbd::Address;

/// Runs a test on one thread; nothing here may take long.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("it hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited)
}

/// An address that only shows in messages.
fn nowhere() -> Address {
    Address::Unix("/nowhere".into())
}

/// Polls all at the same time; the results in the same order.
async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
