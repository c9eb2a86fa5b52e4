//! Block status that lies, and requests that the server must never see.

use std::sync::Arc;

use virt_v2v_wrapper::extent::{Extent, Kind};
use virt_v2v_wrapper::nbd::Options;
use virt_v2v_wrapper::nbd::budget::Budget;
use virt_v2v_wrapper::nbd::client::Zeroes;
use virt_v2v_wrapper::nbd::error::Error;

use super::evil_replies::{PIPE, read, standard};
use super::run;
use super::script::{CONTEXT, Offer, connected, data, failure, simple, status};

#[test]
fn block_status_that_does_not_advance_or_lies_ends_in_an_error() {
    for (descriptors, context) in [
        (vec![], CONTEXT),
        (vec![(0, 0)], CONTEXT),
        (vec![(4096, 0), (0, 3), (4096, 0)], CONTEXT),
        (vec![(1 << 20, 0), (4096, 0)], CONTEXT),
        (vec![(1 << 20, 0)], CONTEXT + 1),
    ] {
        run(async {
            let (client, mut server, _) = standard().await;
            let serve = async {
                let (request, _) = server.request().await;
                server.send(&status(request.cookie, context, &descriptors)).await;
            };
            let (answer, ()) = tokio::join!(client.extents(0, 1 << 20), serve);
            assert!(matches!(answer, Err(Error::Protocol { .. })), "{descriptors:?}: {answer:?}");
        });
    }
}

#[test]
fn block_status_is_asked_for_until_the_range_is_covered_and_cut_at_its_end() {
    run(async {
        let (client, mut server, _) = standard().await;
        let serve = async {
            for (offset, descriptors) in
                [(4096, vec![(4096, 0), (4096, 1)]), (12288, vec![(4096, 2)]), (16384, vec![(u32::MAX, 3)])]
            {
                let (request, _) = server.request().await;
                assert_eq!((request.offset, request.length), (offset, (20480 - offset) as u32));
                server.send(&status(request.cookie, CONTEXT, &descriptors)).await;
            }
        };
        let (answer, ()) = tokio::join!(client.extents(4096, 16384), serve);
        let expected = [
            Extent::new(4096, 8192, Kind::Data),
            Extent::new(12288, 4096, Kind::Zero),
            Extent::new(16384, 4096, Kind::Hole),
        ];
        assert_eq!(answer.unwrap().as_slice(), expected);
    });
}

#[test]
fn a_range_whose_block_status_fails_is_data_and_the_rest_is_still_asked_for() {
    const MIB: u64 = 1 << 20;
    run(async {
        let (client, mut server, _) = standard().await;
        let serve = async {
            // Whole: fails. Then in parts of 64 MiB, of which the last, odd one fails again.
            for (offset, length, fails) in
                [(0, 100 * MIB, true), (0, 64 * MIB, false), (64 * MIB, 36 * MIB, true)]
            {
                let (request, _) = server.request().await;
                assert_eq!((request.offset, u64::from(request.length)), (offset, length));
                let reply = if fails {
                    failure(true, request.cookie, 22, "QueryAllocatedBlocks")
                } else {
                    status(request.cookie, CONTEXT, &[(length as u32, 3)])
                };
                server.send(&reply).await;
            }
        };
        let (answer, ()) = tokio::join!(client.extents(0, 100 * MIB), serve);
        let expected = [Extent::new(0, 64 * MIB, Kind::Hole), Extent::new(64 * MIB, 36 * MIB, Kind::Data)];
        assert_eq!(answer.unwrap().as_slice(), expected);
    });
}

#[test]
fn block_status_that_ends_within_a_block_leaves_the_rest_of_the_block_data() {
    run(async {
        let offer = Offer { blocks: Some([4096, 4096, 1 << 20]), ..Offer::default() };
        let (client, mut server) = connected(&offer, &Options::default(), PIPE).await;
        let serve = async {
            let (request, _) = server.request().await;
            server.send(&status(request.cookie, CONTEXT, &[(1000, 3)])).await;
            let (request, _) = server.request().await;
            assert_eq!(request.offset, 4096);
            server.send(&status(request.cookie, CONTEXT, &[(4096, 3)])).await;
        };
        let (answer, ()) = tokio::join!(client.extents(0, 8192), serve);
        let expected = [
            Extent::new(0, 1000, Kind::Hole),
            Extent::new(1000, 3096, Kind::Data),
            Extent::new(4096, 4096, Kind::Hole),
        ];
        assert_eq!(answer.unwrap().as_slice(), expected);
    });
}

#[test]
fn requests_keep_to_the_block_sizes_or_are_refused_unsent() {
    run(async {
        let offer = Offer { size: 10_000, blocks: Some([512, 4096, 4096]), ..Offer::default() };
        let (client, mut server) = connected(&offer, &Options::default(), PIPE).await;
        let budget = Budget::new(1 << 20);
        let refused = read(&client, &budget, 100, 512).await.unwrap_err();
        assert!(matches!(refused, Error::Unaligned { minimum: 512, .. }), "{refused}");
        let refused = client.write_zeroes(9728, 512, Zeroes::default()).await.unwrap_err();
        assert!(matches!(refused, Error::BeyondEnd { size: 10_000, .. }), "{refused}");
        let refused = client.trim(u64::MAX - 511, 512).await.unwrap_err();
        assert!(matches!(refused, Error::BeyondEnd { .. }), "{refused}");
        let serve = async {
            // What is split, with the odd end of the export as its end.
            for (offset, length) in [(512, 4096), (4608, 4096), (8704, 1296)] {
                let (request, _) = server.request().await;
                assert_eq!((request.offset, request.length), (offset, length));
                let bytes = vec![offset as u8 ^ length as u8; length as usize];
                server.send(&data(true, request.cookie, offset, &bytes)).await;
            }
            for (offset, length) in [(512, 4096), (4608, 512)] {
                let (request, sent) = server.request().await;
                assert_eq!((request.offset, request.length, request.flags), (offset, length, 1));
                assert_eq!(sent.len(), length as usize);
                server.send(&simple(0, request.cookie)).await;
            }
        };
        let ask = async {
            let buffer = read(&client, &budget, 512, 9488).await.unwrap();
            assert!(buffer[8192..].iter().all(|byte| *byte == 8704_u64 as u8 ^ 1296_u32 as u8));
            client.write(512, &Arc::new(buffer), 0..4608, true).await.unwrap();
        };
        tokio::join!(ask, serve);
    });
}

#[test]
fn what_the_server_does_not_offer_is_refused_unsent() {
    run(async {
        let offer = Offer { flags: 1, structured: false, ..Offer::default() };
        let (client, _server) = connected(&offer, &Options::default(), PIPE).await;
        let refusals = [
            client.flush().await,
            client.trim(0, 512).await,
            client.write_zeroes(0, 512, Zeroes::default()).await,
            client.block_status(0, 512).await.map(drop),
            client.write(0, &Arc::new(Budget::new(4096).buffer(1).await), 0..1, true).await,
        ];
        for refusal in refusals {
            assert!(matches!(refusal, Err(Error::NotOffered { .. })), "{refusal:?}");
        }
        // Without block status everything is data.
        assert_eq!(client.extents(5, 10).await.unwrap().as_slice(), [Extent::new(5, 10, Kind::Data)]);
    });
}
