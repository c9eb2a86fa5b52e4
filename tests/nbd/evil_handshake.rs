//! Handshakes: each wrong one is an error with a sentence, none a panic, a wait or an open export.

use virt_v2v_wrapper::nbd::error::Error;
use virt_v2v_wrapper::nbd::wire::{self, Fault, answer, option};

use super::run;
use super::script::{CONTEXT, Offer, greeting, handshake_with, option_reply};

fn offered() -> Vec<Offer> {
    let blocks = Some([512, 4096, 1 << 20]);
    vec![
        Offer::default(),
        Offer { structured: false, ..Offer::default() },
        Offer { blocks, ..Offer::default() },
    ]
}

fn error_of(bytes: &[u8]) -> Error {
    run(handshake_with(bytes)).err().expect("an error")
}

#[test]
fn a_handshake_in_order_opens_the_export_with_what_it_offers() {
    for offer in offered() {
        let export = run(async { *handshake_with(&offer.handshake()).await.expect("open").export() });
        assert_eq!(export.size(), offer.size);
        assert_eq!((export.has_allocation(), export.is_structured()), (offer.structured, offer.structured));
        assert_eq!(export.blocks().minimum, offer.blocks.map_or(1, |blocks| blocks[0]));
        assert!(export.can_flush() && export.can_fast_zero() && export.can_multi_conn());
        assert!(!export.is_read_only() && !export.is_rotational());
    }
}

#[test]
fn a_server_that_closes_after_any_byte_of_the_handshake_is_an_error() {
    for offer in offered() {
        let whole = offer.handshake();
        for length in 0..whole.len() {
            let error = error_of(&whole[..length]);
            assert!(matches!(error, Error::Lost { .. }), "{length}: {error}");
        }
    }
}

#[test]
fn no_changed_byte_of_the_handshake_makes_it_panic_or_wait() {
    let whole = Offer { blocks: Some([512, 4096, 1 << 20]), ..Offer::default() }.handshake();
    run(async {
        for place in 0..whole.len() {
            for changed in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[place] = changed;
                let _ = handshake_with(&bytes).await;
            }
        }
    });
}

#[test]
fn a_server_that_refuses_is_told_in_a_sentence() {
    let before =
        [greeting(3), Offer::default().structured_reply(), Offer::default().context_reply()].concat();
    for (kind, text, sentence) in [
        (answer::UNKNOWN, "", "has no export \"\""),
        (answer::UNKNOWN, "no such thing", "has no export \"\": no such thing"),
        (answer::TLS_REQUIRED, "", "insists on TLS"),
        (answer::UNSUPPORTED, "", "does not know NBD_OPT_GO"),
        (answer::POLICY, "", "forbids the export"),
        (answer::SHUTDOWN, "", "is shutting down"),
        (answer::BLOCK_SIZE_REQUIRED, "", "other block sizes"),
        (answer::ERROR | 77, "", "0x8000004d"),
    ] {
        let reply = option_reply(option::GO, kind, text.as_bytes());
        let error = error_of(&[before.clone(), reply].concat());
        assert!(matches!(error, Error::Refused { .. }) && error.ends_connection(), "{error:?}");
        assert!(error.to_string().starts_with("NBD server /nowhere "), "{error}");
        assert!(error.to_string().contains(sentence), "{error}");
    }
}

#[test]
fn old_handshakes_are_refused_in_a_sentence() {
    let old = [&wire::INIT_MAGIC.to_be_bytes()[..], &wire::OLDSTYLE_MAGIC.to_be_bytes(), &[0; 136]].concat();
    for (bytes, sentence) in [(old, "oldstyle"), (greeting(0), "fixed newstyle")] {
        let error = error_of(&bytes);
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains(sentence), "{error}");
    }
}

#[test]
fn what_the_protocol_forbids_is_named() {
    let offer = Offer::default();
    let (structured, context) = (offer.structured_reply(), offer.context_reply());
    let selected = |name: &str| {
        let data = [&CONTEXT.to_be_bytes()[..], name.as_bytes()].concat();
        option_reply(option::SET_META_CONTEXT, answer::META_CONTEXT, &data)
    };
    let go = |kind, data: &[u8]| option_reply(option::GO, kind, data);
    let start = [greeting(3), structured.clone()].concat();
    let ready = [start.clone(), context].concat();
    let huge = {
        let mut bytes = go(answer::INFO, &[]);
        bytes[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes
    };
    let flood = go(answer::INFO, &[0, 1]).repeat(1000);
    let acknowledged = |option| option_reply(option, answer::ACK, &[]);
    let (set, ack) = (acknowledged(option::SET_META_CONTEXT), acknowledged(option::GO));
    let long = u32::MAX.into();
    for (bytes, fault) in [
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), Fault::NotNbd),
        ([ready.clone(), ack.clone()].concat(), Fault::NoExport),
        ([ready.clone(), flood].concat(), Fault::TooMany("replies to an option")),
        ([ready.clone(), go(4, &[])].concat(), Fault::OptionReply { option: option::GO, kind: 4 }),
        (
            [ready.clone(), go(answer::INFO, &[0, 0, 1]), ack].concat(),
            Fault::Short("information about the export"),
        ),
        ([ready.clone(), structured].concat(), Fault::OtherOption { sent: 7, answered: 8 }),
        ([start.clone(), selected("qemu:dirty-bitmap:x"), set.clone()].concat(), Fault::Context),
        ([start, selected("base:allocation").repeat(2), set].concat(), Fault::Context),
        ([ready.clone(), go(answer::ACK, &[1])].concat(), Fault::Surplus("an acknowledgement")),
        (
            [ready, huge].concat(),
            Fault::TooLong { what: "an option reply", length: long, most: wire::MAX_OPTION_REPLY.into() },
        ),
    ] {
        match error_of(&bytes) {
            Error::Protocol { fault: found, .. } => assert_eq!(found, fault),
            other => panic!("{fault:?}: {other}"),
        }
    }
}
