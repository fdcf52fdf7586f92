//! Texts of runs that contradict what stands around them, under checks, chain and seals that are right.

use std::sync::Arc;

use super::forging::{Forged, answer, plain_world};
use super::world::stream_key;
use crate::format::{Damage, RUN_HEADER, RunHeader, put};
use crate::index::{GroupEntry, RunEntry, SegmentIndex};
use crate::keys::{StreamKeys, TAG, domain};
use crate::log::{Failure, Index, Stop, Window};

type Edit = fn(&mut [u8]);

const PLAIN: usize = 0;
const ENCRYPTED: usize = 1;

/// Opens the encrypted run, lets its clear part and its inner part be changed, and seals it again under its nonce.
fn reseal(forged: &mut Forged, clear: Edit, inner: Edit) {
    let (at, length) = forged.runs[ENCRYPTED];
    let run = &mut forged.bytes[at..at + length];
    let header = RunHeader::decode(run).unwrap();
    let keys = StreamKeys::new(&stream_key(2));
    let associated = |run: &[u8]| [&domain("kimberlite/run/1")[..], &[1; 16], &run[..header.text()]].concat();
    let mut text = run[header.text()..].to_vec();
    keys.seal.open(header.nonce(), &associated(run), &mut text).unwrap();
    text.truncate(text.len() - TAG);
    clear(&mut run[..header.text()]);
    inner(&mut text);
    let tag = keys.seal.seal(header.nonce(), &associated(run), &mut text);
    text.extend(tag);
    run[header.text()..].copy_from_slice(&text);
}

#[test]
fn a_sealed_run_whose_insides_disagree_with_its_outside_is_damage() {
    let lengths = "the lengths in a run are wrong";
    let cases: [(Edit, Edit, &str); 12] = [
        (|clear| clear[RUN_HEADER] ^= 1, |_| (), "a commitment does not match its record"),
        (|clear| *clear.last_mut().unwrap() ^= 1, |_| (), "a commitment does not match its record"),
        (|clear| clear[8] ^= 4, |_| (), "an encrypted run and its header disagree on where the batch ends"),
        (|_| (), |inner| inner[0] -= 1, lengths),
        (|_| (), |inner| inner[4] += 1, lengths),
        (|_| (), |inner| put(inner, 4, u32::MAX.to_le_bytes()), lengths),
        (|_| (), |inner| *inner.last_mut().unwrap() = 1, "the padding in a run is wrong"),
        (|_| (), |inner| inner[0] += 1, "a compressed run does not expand"),
        (|_| (), |inner| inner[8] = 2, "an encrypted run holds several batches"),
        (|_| (), |inner| inner[12] = 2, "a run's batches do not add up to its records"),
        (|_| (), |inner| inner[16] = 4, "a batch entry is wrong"),
        (|_| (), |inner| inner[17] = 4, "unnamed flags of a record are set"),
    ];
    for tagged in [false, true] {
        let world = plain_world(tagged);
        for (i, (clear, inner, what)) in cases.iter().enumerate() {
            let stop = answer(&world, |forged| reseal(forged, *clear, *inner), Forged::chain);
            assert_eq!(stop, Stop::Damaged(Damage(what)), "case {i}");
        }
        assert_eq!(answer(&world, |forged| reseal(forged, |_| (), |_| ()), Forged::chain), Stop::Done);
    }
}

#[test]
fn a_plain_text_that_does_not_hold_its_records_is_damage() {
    let (entries, sum) = ("a run's batch entries are wrong", "a run's batches do not add up to its records");
    let cases: [(Edit, &str); 9] = [
        (|text| text[0] = 0, entries),
        (|text| put(text, 0, u32::MAX.to_le_bytes()), entries),
        (|text| put(text, 4, 0u32.to_le_bytes()), "a batch entry is wrong"),
        (|text| text[4] = 2, sum),
        (|text| put(text, 4, u32::MAX.to_le_bytes()), sum),
        (|text| text[8] = 5, "a batch entry is wrong"),
        (|text| text[9] = 4, "unnamed flags of a record are set"),
        (|text| text[9] = 0, "a record without a key has one"),
        (|text| text[18] += 1, "a record is cut short"),
    ];
    let world = plain_world(false);
    for (i, (edit, what)) in cases.iter().enumerate() {
        let change = |forged: &mut Forged| {
            let (at, length) = forged.runs[PLAIN];
            edit(&mut forged.bytes[at + RUN_HEADER..at + length]);
        };
        let stop = answer(&world, change, Forged::chain);
        assert_eq!(stop, Stop::Damaged(Damage(what)), "case {i}");
    }
}

#[test]
fn a_run_that_is_not_what_the_index_says_is_damage() {
    let world = plain_world(true);
    let segment = &world.segments[0];
    let (header, index) = (segment.header, segment.index());
    let index = index.lookup(segment).unwrap();
    let group = index.group_of_number(1).unwrap();
    let runs = [0, 1].map(|position| index.run_of_position(position).unwrap());
    assert_eq!((runs[0].stream, runs[1].stream), (0, 1));
    let read = |group: GroupEntry, runs: &[RunEntry]| {
        let wrong = SegmentIndex::new(&header);
        wrong.append_group(&group, runs).unwrap();
        *segment.index.write().unwrap() = Arc::new(Index::Active(Box::new(wrong)));
        world.log.run_at(runs[1].position, &mut Window::default(), 0).map(drop)
    };
    let wrongs: [fn(&mut RunEntry); 4] =
        [|run| (run.stream, run.offset) = (0, 1), |run| run.offset += 1, |run| run.length += 1, |run| run.records -= 1];
    for (i, wrong) in wrongs.iter().enumerate() {
        let mut runs = runs;
        wrong(&mut runs[1]);
        let found = read(group, &runs);
        assert!(matches!(found, Err(Failure::Damaged { group: 1, .. })), "case {i}: {found:?}");
    }
    assert!(read(group, &runs).is_ok());
}
