//! No bytes make the handshake's decoders panic, and none that are cut short are taken for whole.

use proptest::prelude::*;

use super::*;

fn greeting(flags: u16) -> Vec<u8> {
    [&INIT_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn option_reply(option: u32, kind: u32, length: u32) -> Vec<u8> {
    let numbers = [option, kind, length].map(u32::to_be_bytes).concat();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers].concat()
}

proptest! {
    #[test]
    fn any_bytes_give_a_value_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode_greeting(&bytes);
        let _ = decode_option_reply(&bytes);
        let _ = decode_info(&bytes);
        let _ = decode_context(&bytes);
        prop_assert!(text(&bytes).chars().all(|char| !char.is_control()));
    }

    #[test]
    fn an_option_reply_is_what_was_sent_and_never_longer_than_allowed(
        option in any::<u32>(), kind in any::<u32>(), length in any::<u32>(),
    ) {
        let decoded = decode_option_reply(&option_reply(option, kind, length));
        if length <= MAX_OPTION_REPLY {
            prop_assert_eq!(decoded, Ok(OptionReply { option, kind, length }));
        } else {
            let too_long = matches!(decoded, Err(Fault::TooLong { .. }));
            prop_assert!(too_long);
        }
    }
}

#[test]
fn a_message_cut_at_any_length_or_with_a_byte_more_is_a_fault() {
    let info = [&[0, 0][..], &[1; 8], &[2; 2]].concat();
    let sizes = [&[0, 3][..], &[1; 12]].concat();
    type Decode = fn(&[u8]) -> bool;
    let cases: [(Vec<u8>, Decode); 4] = [
        (greeting(3), |bytes| decode_greeting(bytes).is_ok()),
        (option_reply(7, 1, 0), |bytes| decode_option_reply(bytes).is_ok()),
        (info, |bytes| decode_info(bytes).is_ok()),
        (sizes, |bytes| decode_info(bytes).is_ok()),
    ];
    for (whole, decodes) in cases {
        assert!(decodes(&whole), "{whole:?}");
        for length in 0..whole.len() {
            assert!(!decodes(&whole[..length]), "{length} of {whole:?}");
        }
        assert!(!decodes(&[&whole[..], &[0]].concat()), "{whole:?}");
    }
}

#[test]
fn an_oldstyle_server_is_told_from_something_else() {
    let old = [&INIT_MAGIC.to_be_bytes()[..], &OLDSTYLE_MAGIC.to_be_bytes(), &[0, 0]].concat();
    assert_eq!(decode_greeting(&old), Ok(Greeting::Old));
    assert_eq!(decode_greeting(b"SSH-2.0-OpenSSH_9.2p1"), Err(Fault::NotNbd));
}

#[test]
fn an_option_holds_its_name_and_lengths() {
    let option = encode_option(option::GO, &encode_go("ab"));
    assert_eq!(option, b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02ab\0\x01\0\x03");
    let context = encode_context("ab", "x:y");
    assert_eq!(context, b"\0\0\0\x02ab\0\0\0\x01\0\0\0\x03x:y");
}

#[test]
fn a_servers_words_are_bounded_and_on_one_line() {
    let words = text(&[b"no\r\n\x1b[31mway".as_slice(), &[b'!'; 70_000]].concat());
    assert!(words.starts_with("no   [31mway!!") && words.len() <= 300, "{words:?}");
}
