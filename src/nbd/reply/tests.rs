//! No bytes make the decoders of the transmission phase panic, and none that are cut short are taken for whole.

use proptest::prelude::*;

use super::*;

fn chunk(flags: u16, kind: u16, cookie: u64, length: u32) -> Vec<u8> {
    let head = [&CHUNK_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes()].concat()
}

proptest! {
    #[test]
    fn any_bytes_give_a_value_or_a_fault(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        magic in prop_oneof![Just(SIMPLE_MAGIC), Just(CHUNK_MAGIC), any::<u32>()],
    ) {
        let _ = decode_reply(&bytes);
        let _ = decode_reply(&[&magic.to_be_bytes()[..], &bytes].concat());
        let _ = decode_hole(&bytes);
        let _ = decode_block_status(&bytes);
        let _ = decode_error(ChunkKind::Error, &bytes);
        let _ = decode_error(ChunkKind::ErrorOffset, &bytes);
        let _ = Request::decode(&bytes);
    }

    #[test]
    fn a_request_is_read_as_it_was_sent(
        flags in any::<u16>(), place in 0..7_usize, cookie in any::<u64>(), offset in any::<u64>(),
        length in any::<u32>(),
    ) {
        let request = Request { flags, command: Command::ALL[place].0, cookie, offset, length };
        let bytes = request.encode();
        prop_assert_eq!(Request::decode(&bytes), Ok(request));
        for length in 0..bytes.len() {
            prop_assert!(Request::decode(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn a_chunk_is_read_as_it_was_sent_and_never_larger_than_allowed(
        flags in any::<u16>(), cookie in any::<u64>(), length in any::<u32>(),
        number in prop_oneof![0..8_u16, 0x7ffe..0x8005_u16],
    ) {
        let bytes = chunk(flags, number, cookie, length);
        let decoded = decode_reply(&bytes);
        match decoded {
            Ok(Some(Reply::Chunk { done, kind, cookie: answered, length: payload })) => {
                prop_assert_eq!((done, answered, payload), (flags & DONE != 0, cookie, length));
                prop_assert!(kind.number() == number || (kind == ChunkKind::Error && number >= 0x8000));
                prop_assert!(length <= MAX_CHUNK + 8);
                prop_assert!(length <= MAX_SMALL_CHUNK || kind == ChunkKind::Data);
            }
            Err(Fault::Chunk(unknown)) => {
                prop_assert!(unknown == number && [3, 4, 6].contains(&number.min(6)) && number < 0x8000);
            }
            Err(Fault::TooLong { .. }) => prop_assert!(length > MAX_SMALL_CHUNK),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn the_head_of_a_reply_cut_at_any_length_is_no_reply() {
    let simple = [&SIMPLE_MAGIC.to_be_bytes()[..], &[0, 0, 0, 5], &[7; 8]].concat();
    assert!(matches!(decode_reply(&simple), Ok(Some(Reply::Simple { error: 5, .. }))));
    for length in 0..simple.len() {
        assert!(decode_reply(&simple[..length]).is_err(), "{length}");
    }
    let whole = chunk(1, 1, 7, 100);
    for length in 0..whole.len() {
        let decoded = decode_reply(&whole[..length]);
        assert_eq!(decoded.is_err(), length < SIMPLE_LENGTH, "{length}: {decoded:?}");
        assert!(!matches!(decoded, Ok(Some(_))), "{length}");
    }
}

#[test]
fn the_payload_of_a_chunk_cut_at_any_length_is_a_fault() {
    let error = [&[0, 0, 0, 5, 0, 2][..], b"no", &[0; 8]].concat();
    let hole = [9; 12];
    for length in 0..error.len() {
        assert!(decode_error(ChunkKind::ErrorOffset, &error[..length]).is_err(), "{length}");
    }
    for length in 0..hole.len() {
        assert!(decode_hole(&hole[..length]).is_err(), "{length}");
    }
    let status = [1; 4 + 16];
    for length in 0..status.len() {
        let decoded = decode_block_status(&status[..length]);
        assert_eq!(decoded.is_ok(), length == 4 || length == 12, "{length}");
    }
    let said = decode_error(ChunkKind::ErrorOffset, &error).unwrap();
    assert_eq!((said.errno, said.message.as_str(), said.offset), (Errno::InputOutput, "no", Some(0)));
    assert_eq!(decode_error(ChunkKind::Error, &[0; 6]), Err(Fault::NoError));
}
