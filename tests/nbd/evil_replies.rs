//! Replies: a request ends with exactly what the server owes it, or with an error; never with less, never not at all.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use virt_v2v_wrapper::nbd::Options;
use virt_v2v_wrapper::nbd::budget::{Budget, Buffer};
use virt_v2v_wrapper::nbd::client::Client;
use virt_v2v_wrapper::nbd::error::Error;
use virt_v2v_wrapper::nbd::reply::{CHUNK_MAGIC, ChunkKind, Command, Errno};
use virt_v2v_wrapper::nbd::wire::Fault;

use super::script::{CONTEXT, Offer, Server, chunk, connected, data, failure, hole, simple, status};
use super::{all, run};

/// Room in the pipe, enough for everything that a test sends.
pub const PIPE: usize = 1 << 20;

/// A server that can do everything.
pub async fn standard() -> (Client, Server, Budget) {
    let (client, server) = connected(&Offer::default(), &Options::default(), PIPE).await;
    (client, server, Budget::new(1 << 20))
}

/// A read into memory that holds something else.
pub async fn read(client: &Client, budget: &Budget, offset: u64, length: usize) -> Result<Buffer, Error> {
    let mut buffer = budget.buffer(length).await;
    buffer.fill(0xee);
    client.read(offset, buffer).await
}

/// One read of 8 bytes at 100, whose cookie is 1, answered with these bytes; the server stays.
async fn read_answered(offer: &Offer, reply: &[u8]) -> Result<Vec<u8>, Error> {
    let (client, mut server) = connected(offer, &Options::default(), PIPE).await;
    let budget = Budget::new(1 << 20);
    let serve = async {
        server.request().await;
        server.send(reply).await;
    };
    let (answered, ()) = tokio::join!(read(&client, &budget, 100, 8), serve);
    if let Err(Error::Protocol { .. }) = &answered {
        assert!(client.lost().is_some(), "a server that broke the protocol is still trusted");
    }
    answered.map(|buffer| buffer.to_vec())
}

#[test]
fn chunks_of_data_and_holes_in_any_order_make_the_read() {
    let pieces = [data(false, 1, 100, b"ab"), hole(false, 1, 102, 3), data(false, 1, 105, b"cde")];
    let end = chunk(true, ChunkKind::None, 1, &[]);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let reply = [order.map(|place| pieces[place].clone()).concat(), end.clone()].concat();
        assert_eq!(run(read_answered(&Offer::default(), &reply)).unwrap(), b"ab\0\0\0cde");
    }
}

#[test]
fn replies_that_the_protocol_forbids_fail_the_read_and_name_the_fault() {
    let huge = |kind: ChunkKind| {
        let mut bytes = chunk(true, kind, 1, &[]);
        bytes[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes
    };
    let done = chunk(true, ChunkKind::None, 1, &[]);
    let outside = |offset, length| Fault::Outside { offset, length };
    let structured = Offer::default();
    for (reply, fault) in [
        (
            [[0x12, 0x34, 0x56, 0x78].as_slice(), &[0; 16]].concat(),
            Fault::Magic { what: "a reply", found: 0x1234_5678 },
        ),
        (simple(0, 77), Fault::Cookie(77)),
        (data(true, 77, 100, b"abcdefgh"), Fault::Cookie(77)),
        ([data(true, 1, 100, b"abcdefgh"), done.clone()].concat(), Fault::Cookie(1)),
        (simple(0, 1), Fault::Simple),
        (done.clone(), Fault::Missing(8)),
        (data(true, 1, 100, b"abcdefg"), Fault::Missing(1)),
        ([data(false, 1, 101, b"bcdefgh"), done.clone()].concat(), Fault::Missing(1)),
        (data(true, 1, 100, b"abcdefghi"), outside(100, 9)),
        (data(true, 1, 99, b"abcdefgh"), outside(99, 8)),
        (data(true, 1, u64::MAX, b"abcdefgh"), outside(u64::MAX, 8)),
        (data(true, 1, 104, b""), outside(104, 0)),
        (hole(true, 1, 100, 9), outside(100, 9)),
        (hole(true, 1, 100, u32::MAX), outside(100, u32::MAX.into())),
        ([data(false, 1, 100, b"abcd"), data(true, 1, 103, b"defgh")].concat(), Fault::Twice(103)),
        ([hole(false, 1, 100, 8), data(true, 1, 100, b"abcdefgh")].concat(), Fault::Twice(100)),
        ([data(false, 1, 104, b"efgh"), hole(true, 1, 100, 5)].concat(), Fault::Twice(100)),
        (chunk(false, ChunkKind::None, 1, &[]), Fault::Chunk(0)),
        (chunk(true, ChunkKind::None, 1, b"x"), Fault::Surplus("an empty chunk")),
        (chunk(true, ChunkKind::Data, 1, b"short"), Fault::Short("a data chunk")),
        (status(1, CONTEXT, &[(8, 0)]), Fault::Chunk(5)),
        (failure(true, 1, 0, ""), Fault::NoError),
        (
            huge(ChunkKind::Data),
            Fault::TooLong { what: "a reply chunk", length: u32::MAX.into(), most: (64 << 20) + 8 },
        ),
        (
            huge(ChunkKind::Error),
            Fault::TooLong { what: "a reply chunk", length: u32::MAX.into(), most: (8 << 20) + 4 },
        ),
    ] {
        match run(read_answered(&structured, &reply)) {
            Err(Error::Protocol { fault: found, .. }) => assert_eq!(found, fault),
            // Two replies: the first one is in order and the second one ends the connection.
            Ok(bytes) => assert!(fault == Fault::Cookie(1) && bytes == b"abcdefgh", "{fault:?}"),
            Err(other) => panic!("{fault:?}: {other}"),
        }
    }
}

#[test]
fn simple_replies_carry_the_data_where_structured_ones_were_not_agreed() {
    let offer = Offer { structured: false, ..Offer::default() };
    let reply = [simple(0, 1), b"abcdefgh".to_vec()].concat();
    assert_eq!(run(read_answered(&offer, &reply)).unwrap(), b"abcdefgh");
    let error = run(read_answered(&offer, &simple(5, 1))).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::InputOutput));
    let error = run(read_answered(&offer, &data(true, 1, 100, b"abcdefgh"))).unwrap_err();
    let found = u64::from(CHUNK_MAGIC);
    assert!(
        matches!(&error, Error::Protocol { fault: Fault::Magic { found: magic, .. }, .. } if *magic == found),
        "{error}"
    );
}

#[test]
fn an_error_chunk_in_the_middle_fails_that_read_with_the_servers_words_and_no_other() {
    run(async {
        let (client, mut server, budget) = standard().await;
        let serve = async {
            server.request().await;
            server.send(&data(false, 1, 100, b"ab")).await;
            server.send(&failure(false, 1, 5, "the disk\n is bad")).await;
            server.send(&data(false, 1, 102, b"cd")).await;
            server.send(&failure(true, 1, 28, "")).await;
            server.request().await;
            server.send(&data(true, 2, 0, b"next")).await;
        };
        let ask = async {
            let error = read(&client, &budget, 100, 8).await.unwrap_err();
            let text =
                "NBD server /nowhere: read of 8 bytes at 100 failed: input/output error (the disk  is bad)";
            assert_eq!(error.to_string(), text);
            assert!(!error.ends_connection());
            assert_eq!(&read(&client, &budget, 0, 4).await.unwrap()[..], b"next");
        };
        tokio::join!(ask, serve);
    });
}

#[test]
fn a_server_that_closes_after_any_byte_of_a_reply_fails_all_that_wait_and_all_that_come() {
    let reply = [data(false, 1, 0, b"abcd"), hole(true, 1, 4, 4), data(false, 2, 8, b"efghijkl")].concat();
    for length in 0..=reply.len() {
        run(async {
            let (client, mut server, budget) = standard().await;
            let serve = async {
                for _ in 0..3 {
                    server.request().await;
                }
                server.send(&reply[..length]).await;
                server.stream.shutdown().await.expect("shutdown");
            };
            let reads = all((0..3).map(|at| read(&client, &budget, at * 8, 8)));
            let (answers, ()) = tokio::join!(reads, serve);
            let first_is_whole = length >= data(false, 1, 0, b"abcd").len() + hole(true, 1, 4, 4).len();
            for (place, answer) in answers.into_iter().enumerate() {
                match answer {
                    Ok(buffer) => assert!(place == 0 && first_is_whole && buffer[..] == *b"abcd\0\0\0\0"),
                    Err(error) => {
                        assert!(matches!(error, Error::Lost { .. }), "{error}");
                        assert!(place > 0 || !first_is_whole);
                    }
                }
            }
            assert!(matches!(client.flush().await, Err(Error::Lost { .. })), "{length}");
            assert_eq!((client.in_flight(), budget.available()), (0, 1 << 20));
        });
    }
}

#[test]
fn replies_find_their_request_by_cookie_whatever_their_order() {
    run(async {
        let (client, mut server, budget) = standard().await;
        let serve = async {
            let mut requests = Vec::new();
            for _ in 0..20 {
                requests.push(server.request().await.0);
            }
            for request in requests.iter().rev() {
                let start = request.offset.to_be_bytes();
                server.send(&data(false, request.cookie, request.offset + 4, &start[4..])).await;
            }
            for request in &requests {
                let start = request.offset.to_be_bytes();
                server.send(&data(true, request.cookie, request.offset, &start[..4])).await;
            }
        };
        let reads = all((0..20).map(|at| read(&client, &budget, at * 1000, 8)));
        let (answers, ()) = tokio::join!(reads, serve);
        for (at, answer) in (0..20_u64).zip(answers) {
            assert_eq!(answer.unwrap()[..], (at * 1000).to_be_bytes());
        }
    });
}

#[test]
fn a_dropped_read_keeps_its_memory_until_its_reply_is_drained_and_harms_no_other() {
    run(async {
        let (client, mut server, budget) = standard().await;
        let dropped =
            tokio::time::timeout(Duration::from_millis(20), read(&client, &budget, 0, 100_000)).await;
        assert!(dropped.is_err());
        assert_eq!(client.in_flight(), 1);
        assert!(budget.available() < 1 << 20, "memory that is still written to was given back");
        let serve = async {
            server.request().await;
            // Half before and half after the next request was sent.
            server.send(&data(false, 1, 0, &[1; 50_000])).await;
            server.request().await;
            server.send(&data(true, 1, 50_000, &[2; 50_000])).await;
            server.send(&data(true, 2, 7, b"right")).await;
        };
        let (answer, ()) = tokio::join!(read(&client, &budget, 7, 5), serve);
        assert_eq!(&answer.unwrap()[..], b"right");
        assert_eq!((client.in_flight(), budget.available()), (0, 1 << 20));
    });
}

#[test]
fn a_write_dropped_at_any_moment_leaves_whole_requests_on_the_wire() {
    for polls in 1..8 {
        run(async {
            // A pipe so small that a write is always caught in the middle.
            let (client, mut server) = connected(&Offer::default(), &Options::default(), 100).await;
            let budget = Budget::new(1 << 20);
            let mut buffer = budget.buffer(1000).await;
            buffer.fill(7);
            let buffer = Arc::new(buffer);
            {
                let mut write = Box::pin(client.write(0, &buffer, 0..1000, false));
                for _ in 0..polls {
                    let polled =
                        std::future::poll_fn(|context| std::task::Poll::Ready(write.as_mut().poll(context)));
                    assert!(polled.await.is_pending());
                    tokio::task::yield_now().await;
                }
            }
            let serve = async {
                let (request, sent) = server.request().await;
                assert_eq!((request.command, sent), (Command::Write, vec![7; 1000]));
                server.send(&simple(0, request.cookie)).await;
                let (request, _) = server.request().await;
                assert_eq!(request.command, Command::Flush);
                server.send(&simple(0, request.cookie)).await;
            };
            let (flushed, ()) = tokio::join!(client.flush(), serve);
            flushed.unwrap();
            assert_eq!(client.in_flight(), 0);
        });
    }
}

#[test]
fn no_more_requests_are_in_flight_than_allowed() {
    run(async {
        let options = Options { requests: 3, ..Options::default() };
        let (client, mut server) = connected(&Offer::default(), &options, PIPE).await;
        let serve = async {
            for round in 0..10 {
                let (request, _) = server.request().await;
                assert!(client.in_flight() <= 3 && (round > 6 || client.in_flight() == 3));
                server.send(&simple(0, request.cookie)).await;
            }
        };
        let (answers, ()) = tokio::join!(all((0..10).map(|_| client.flush())), serve);
        assert!(answers.iter().all(Result::is_ok));
    });
}

#[test]
fn a_disconnect_waits_for_the_server_to_close_and_for_what_was_dropped() {
    run(async {
        let (client, mut server, budget) = standard().await;
        let dropped = tokio::time::timeout(Duration::from_millis(20), read(&client, &budget, 0, 5)).await;
        assert!(dropped.is_err());
        let serve = async {
            server.request().await;
            assert_eq!(server.request().await.0.command, Command::Disconnect);
            server.send(&data(true, 1, 0, b"later")).await;
            drop(server);
        };
        let (end, ()) = tokio::join!(client.disconnect(), serve);
        end.unwrap();

        let (client, mut server, _) = standard().await;
        let flush = async {
            let dropped = tokio::time::timeout(Duration::from_millis(20), client.flush()).await;
            assert!(dropped.is_err());
            client.disconnect().await
        };
        let close = async {
            server.request().await;
            server.request().await;
            drop(server);
        };
        let (end, ()) = tokio::join!(flush, close);
        assert!(matches!(end, Err(Error::Lost { .. })), "an unanswered flush is no clean end");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_bytes_after_the_handshake_make_it_panic_or_wait(
        frames in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                (any::<bool>(), 1..4_u64, 0..40_u64, prop::collection::vec(any::<u8>(), 0..20))
                    .prop_map(|(done, cookie, offset, bytes)| data(done, cookie, offset, &bytes)),
                (any::<bool>(), 1..4_u64, 0..40_u64, 0..20_u32)
                    .prop_map(|(done, cookie, offset, length)| hole(done, cookie, offset, length)),
                (1..4_u64, prop::collection::vec((0..20_u32, 0..5_u32), 0..5))
                    .prop_map(|(cookie, descriptors)| status(cookie, CONTEXT, &descriptors)),
                (0..2_u32, 1..4_u64).prop_map(|(error, cookie)| simple(error, cookie)),
            ],
            0..8,
        ),
    ) {
        run(async {
            let (client, mut server, budget) = standard().await;
            let serve = async {
                for _ in 0..3 {
                    server.request().await;
                }
                server.send(&frames.concat()).await;
                drop(server);
            };
            let reads = all([0, 20].map(|at| read(&client, &budget, at, 20)));
            let ((_, _), ()) = tokio::join!(async { tokio::join!(reads, client.block_status(0, 40)) }, serve);
            assert_eq!((client.in_flight(), budget.available()), (0, 1 << 20));
        });
    }
}
