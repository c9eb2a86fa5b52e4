//! A read is complete when each of its bytes came once, and otherwise an error, whatever the order of its chunks.

use proptest::prelude::*;

use super::super::reply::Errno;
use super::*;

const OFFSET: u64 = 1 << 40;
const LENGTH: u32 = 64;

fn read() -> Answer {
    Answer::new(Command::Read, OFFSET, LENGTH, Some(7))
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

fn status(context: u32, descriptors: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for (length, flags) in descriptors {
        payload.extend([length.to_be_bytes(), flags.to_be_bytes()].concat());
    }
    payload
}

proptest! {
    #[test]
    fn chunks_in_any_order_are_taken_when_each_byte_comes_once(
        cuts in prop::collection::btree_set(1..LENGTH, 0..12),
        order in any::<prop::sample::Index>(),
        seed in prop::collection::vec(any::<u64>(), 13),
        without in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let edges: Vec<u32> = std::iter::once(0).chain(cuts).chain([LENGTH]).collect();
        let mut chunks: Vec<(u64, u32, u32)> =
            edges.windows(2).zip(seed).map(|(pair, key)| (key, pair[0], pair[1] - pair[0])).collect();
        chunks.sort_unstable();
        let turn = order.index(chunks.len());
        chunks.rotate_left(turn);
        let missing = without.map(|index| chunks.remove(index.index(chunks.len())));
        let mut answer = read();
        for (key, start, length) in chunks {
            let expected = start as usize..(start + length) as usize;
            let at = OFFSET + u64::from(start);
            if key % 2 == 0 {
                prop_assert_eq!(answer.place(at, length.into()), Ok(expected));
            } else {
                prop_assert_eq!(answer.take(ChunkKind::Hole, &hole(at, length), false), Ok(Some(expected)));
            }
        }
        let expected = missing.map_or(Ok(Outcome::Done), |(_, _, length)| Err(Fault::Missing(length.into())));
        prop_assert_eq!(answer.finish(), expected);
    }

    #[test]
    fn any_chunks_agree_with_a_map_of_bytes(
        chunks in prop::collection::vec((0..LENGTH as u64 + 4, 0..24_u64), 0..10),
    ) {
        let mut answer = read();
        let mut come = [false; LENGTH as usize];
        for (start, length) in chunks {
            let end = start + length;
            let placed = answer.place(OFFSET + start, length);
            if length == 0 || end > LENGTH.into() {
                let outside = matches!(placed, Err(Fault::Outside { .. }));
                prop_assert!(outside);
            } else if come[start as usize..end as usize].contains(&true) {
                prop_assert_eq!(placed, Err(Fault::Twice(OFFSET + start)));
            } else {
                prop_assert_eq!(placed, Ok(start as usize..end as usize));
                come[start as usize..end as usize].fill(true);
            }
        }
        prop_assert_eq!(answer.finish() == Ok(Outcome::Done), come.iter().all(|byte| *byte));
    }

    #[test]
    fn any_payload_of_any_chunk_gives_a_value_or_a_fault(
        payload in prop::collection::vec(any::<u8>(), 0..40), done in any::<bool>(), command in 0..7_usize,
    ) {
        for kind in [ChunkKind::None, ChunkKind::Data, ChunkKind::Hole, ChunkKind::BlockStatus,
            ChunkKind::Error, ChunkKind::ErrorOffset]
        {
            let mut answer = Answer::new(Command::ALL[command].0, OFFSET, LENGTH, Some(7));
            let _ = answer.take(kind, &payload, done);
            let _ = answer.finish();
        }
    }
}

#[test]
fn an_error_anywhere_makes_the_whole_read_fail_with_the_first_cause() {
    let mut answer = read();
    answer.place(OFFSET, 64).unwrap();
    let error = |errno: u32, text: &[u8]| [&errno.to_be_bytes()[..], &[0, text.len() as u8], text].concat();
    answer.take(ChunkKind::Error, &error(5, b"bad disk"), false).unwrap();
    answer.take(ChunkKind::Error, &error(22, b""), true).unwrap();
    let Ok(Outcome::Failed(said)) = answer.finish() else { panic!() };
    assert_eq!((said.errno, said.message.as_str()), (Errno::InputOutput, "bad disk"));
}

#[test]
fn only_the_last_descriptor_may_run_over_the_end_and_all_must_advance() {
    let ask = || Answer::new(Command::BlockStatus, OFFSET, LENGTH, Some(7));
    let mut answer = ask();
    answer.take(ChunkKind::BlockStatus, &status(7, &[(60, 0), (u32::MAX, 3)]), true).unwrap();
    assert_eq!(answer.finish(), Ok(Outcome::Status(vec![(60, 0), (u32::MAX, 3)])));
    for (context, descriptors) in [
        (7, &[][..]),
        (7, &[(0, 0)]),
        (7, &[(8, 0), (0, 3), (8, 0)]),
        (7, &[(64, 0), (1, 0)]),
        (8, &[(64, 0)]),
    ] {
        let taken = ask().take(ChunkKind::BlockStatus, &status(context, descriptors), true);
        assert!(taken.is_err(), "{descriptors:?}");
    }
    assert_eq!(ask().finish(), Err(Fault::NoProgress));
    assert!(read().take(ChunkKind::BlockStatus, &status(7, &[(64, 0)]), true).is_err());
}

#[test]
fn a_read_in_countless_pieces_is_refused_rather_than_remembered() {
    let mut answer = Answer::new(Command::Read, 0, 32 << 20, None);
    let refused = (0..1_000_000).map(|at| answer.place(at * 2, 1)).find_map(Result::err);
    assert_eq!(refused, Some(Fault::TooMany("pieces of a read")));
}
