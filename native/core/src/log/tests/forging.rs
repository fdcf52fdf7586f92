//! Groups that somebody wrote who has the segment's salt: every check is right, and still something is wrong.

use super::published::{SHAPES, grow};
use super::world::{Random, World, empty_log, keys, state};
use crate::format::{
    Damage, GROUP_HEADER, GroupHeader, HIGHEST, Hash, RUN_HEADER, SEGMENT_HEADER, check, padded, put, u32_at,
};
use crate::keys::{GroupKey, TAG};
use crate::log::{Log, Replayed, Segment, Stop};

/// The bytes of one group with its padding, and where they are.
pub struct Forged {
    pub bytes: Vec<u8>,
    place: u64,
    salt: Hash,
    tagged: bool,
    pub runs: Vec<(usize, usize)>,
}

impl Forged {
    fn new(world: &World, place: u64) -> Self {
        let file = world.files[0].bytes();
        let length = u32_at(&file, place as usize + 8) as usize;
        let bytes = file[place as usize..place as usize + padded(length)].to_vec();
        let mut at = GROUP_HEADER;
        let runs = (0..u32_at(&bytes, 36)).map(|_| {
            let length = u32_at(&bytes, at) as usize;
            at += length;
            (at - length, length)
        });
        Self { runs: runs.collect(), bytes, place, salt: world.header(0).salt, tagged: world.shape.tagged }
    }

    /// Makes the header's check right.
    fn check(&mut self) {
        let check = check(&self.salt, &self.bytes[..96], self.place);
        put(&mut self.bytes, 96, check);
    }

    /// Makes header, runs, chain and tag agree.
    pub fn chain(&mut self) {
        self.check();
        let mut hashes = Vec::new();
        let mut at = self.runs.last().map_or(GROUP_HEADER, |(at, length)| at + length);
        for &(start, length) in &self.runs {
            let hash = *blake3::hash(&self.bytes[start..start + length]).as_bytes();
            put(&mut self.bytes, at, check(&self.salt, &hash, self.place + start as u64));
            hashes.push(hash);
            at += 8;
        }
        let previous: Hash = self.bytes[64..96].try_into().unwrap();
        let chain = GroupHeader::chain(&self.bytes, &previous, blake3::hash(hashes.as_flattened()).as_bytes());
        put(&mut self.bytes, at, chain);
        if self.tagged {
            put(&mut self.bytes, at + 32, GroupKey::new(&[9; 32]).tag(&chain));
        }
    }
}

/// A log that has followed a world up to, and without, this group; and where the group is.
fn before(world: &World, group: u64) -> (Log, Segment, u64) {
    let log = empty_log(world.shape, 0);
    let segment = Segment::active(world.header(0), world.files[0].clone());
    log.enter(&segment).unwrap();
    let data = &world.files[0].bytes()[SEGMENT_HEADER..];
    let replayed = log.replay(&segment, SEGMENT_HEADER as u64, data, group - 1, &mut keys);
    assert_eq!(replayed.stop, Stop::Done);
    (log, segment, replayed.place)
}

/// A world of one segment whose groups have one run each of streams 0, 1 (plain), 2 (encrypted), in this order.
pub fn plain_world(tagged: bool) -> World {
    let mut world = World::new(SHAPES[usize::from(tagged)], 5);
    world.add_stream(false);
    world.add_stream(true);
    for _ in 0..4 {
        for stream in [1, 2] {
            let mut batch = crate::record::Batch::default();
            let record = crate::record::Record { key: Some(b"k"), headers: b"", event_time: None, payload: b"payload" };
            (0..3).for_each(|_| batch.push(&record));
            world.append(vec![(stream, batch)], None, false);
        }
        world.settle();
    }
    world
}

fn add(bytes: &mut [u8], at: usize, by: i64) {
    let value = crate::format::u64_at(bytes, at).wrapping_add_signed(by);
    put(bytes, at, value.to_le_bytes());
}

type Edit = fn(&mut [u8]);

/// What replaying group 3 answers when its bytes are changed and made to agree so far.
pub fn answer(world: &World, edit: impl Fn(&mut Forged), agree: fn(&mut Forged)) -> Stop {
    answer_at(world, 3, edit, agree)
}

fn answer_at(world: &World, group: u64, edit: impl Fn(&mut Forged), agree: fn(&mut Forged)) -> Stop {
    let (log, segment, place) = before(world, group);
    let untouched = state(&log);
    let mut forged = Forged::new(world, place);
    edit(&mut forged);
    agree(&mut forged);
    let Replayed { place: stopped, stop } = log.replay(&segment, place, &forged.bytes, group, &mut keys);
    assert!(stopped == place || matches!(stop, Stop::Closed | Stop::Done));
    if matches!(stop, Stop::Bad(_)) {
        assert_eq!(state(&log), untouched);
    }
    if matches!(stop, Stop::Bad(_) | Stop::Damaged(_)) {
        assert_eq!((log.durable(), log.end()), (untouched.durable, untouched.end));
    }
    stop
}

#[test]
fn a_group_header_with_a_wrong_field_is_refused_with_the_field_that_is_wrong() {
    let chain = "the chain hash is wrong";
    let cases: [(Edit, &str); 23] = [
        (|b| put(b, 16, u64::MAX.to_le_bytes()), "the group's numbers run over"),
        (|b| b[0] ^= 1, "no group starts here"),
        (|b| put(b, 8, 135u32.to_le_bytes()), "the group's length is too small"),
        (|b| b[12] = 2, "unnamed bytes are not zero"),
        (|b| b[60] = 1, "unnamed bytes are not zero"),
        (|b| b[63] = 1, "unnamed bytes are not zero"),
        (|b| add(b, 16, 1), "the group's number is not the next one"),
        (|b| add(b, 16, -1), "the group claims to be durable itself"),
        (|b| put(b, 40, 3u64.to_le_bytes()), "the group claims to be durable itself"),
        (|b| put(b, 40, 1u64.to_le_bytes()), chain),
        (|b| add(b, 24, 1), "the group's position is not the next one"),
        (|b| add(b, 24, -1), "the group's position is not the next one"),
        (|b| put(b, 24, u64::MAX.to_le_bytes()), "the group's numbers run over"),
        (|b| put(b, 16, HIGHEST.to_le_bytes()), "the group's numbers run over"),
        (|b| put(b, 24, HIGHEST.to_le_bytes()), "the group's numbers run over"),
        (|b| put(b, 48, (HIGHEST + 1).to_le_bytes()), "the group's numbers run over"),
        (|b| put(b, 32, 0u32.to_le_bytes()), "runs and records disagree"),
        (|b| put(b, 32, 1u32.to_le_bytes()), "runs and records disagree"),
        (|b| put(b, 48, 1u64.to_le_bytes()), "the group's time is before the last one's"),
        (|b| add(b, 48, 1), chain),
        (|b| add(b, 56, 1), chain),
        (|b| b[64] ^= 1, "the chain is broken"),
        (|b| b[95] ^= 1, "the chain is broken"),
    ];
    for tagged in [false, true] {
        let world = plain_world(tagged);
        for (i, (edit, what)) in cases.iter().enumerate() {
            let stop = answer(&world, |forged| edit(&mut forged.bytes), Forged::check);
            assert_eq!(stop, Stop::Bad(Damage(what)), "case {i}");
        }
        let more_records = answer(&world, |f| add(&mut f.bytes, 32, 1), Forged::check);
        assert_eq!(more_records, Stop::Bad(Damage("the runs do not add up to the group's records")));
        let unchecked = answer(&world, |f| f.bytes[50] ^= 1, |_| ());
        assert_eq!(unchecked, Stop::Bad(Damage("the group header's check is wrong")));
        let cut = answer(&world, |f| put(&mut f.bytes, 36, 1000u32.to_le_bytes()), Forged::check);
        assert_eq!(cut, Stop::Bad(Damage("the group's length is too small")));
    }
}

#[test]
fn a_closing_group_without_its_tag_is_cut_short() {
    for tagged in [false, true] {
        let mut world = plain_world(tagged);
        world.seal(true);
        world.publish();
        let none = answer_at(&world, 5, |f| put(&mut f.bytes, 8, 136u32.to_le_bytes()), Forged::check);
        let short = if tagged { Stop::Bad(Damage("the group is cut short")) } else { Stop::Closed };
        assert_eq!(std::mem::discriminant(&none), std::mem::discriminant(&short));
        assert!(!tagged || none == short, "{none:?}");
    }
}

#[test]
fn a_trailer_and_a_padding_that_are_wrong_are_refused() {
    for tagged in [false, true] {
        let world = plain_world(tagged);
        let tag = if tagged { TAG } else { 0 };
        let cases = [
            (tag + 32 + 16, "a run's check is wrong"),
            (tag + 32 + 1, "a run's check is wrong"),
            (tag + 32, "the chain hash is wrong"),
            (tag + 1, "the chain hash is wrong"),
        ];
        let spoil = |behind: usize| {
            let edit = move |f: &mut Forged| {
                let length = u32_at(&f.bytes, 8) as usize;
                f.bytes[length - behind] ^= 1;
            };
            answer(&world, edit, |_| ())
        };
        for (behind, what) in cases {
            assert_eq!(spoil(behind), Stop::Bad(Damage(what)));
        }
        if tagged {
            let what = "the tag is wrong: this group was not sealed with the group key";
            assert_eq!((spoil(TAG), spoil(1)), (Stop::Bad(Damage(what)), Stop::Bad(Damage(what))));
        }
        let first = |f: &mut Forged| {
            let length = u32_at(&f.bytes, 8) as usize;
            f.bytes[length] = 1;
        };
        assert_eq!(answer(&world, first, |_| ()), Stop::Bad(Damage("the padding is not zero")));
        let last = |f: &mut Forged| *f.bytes.last_mut().unwrap() = 1;
        assert_eq!(answer(&world, last, |_| ()), Stop::Bad(Damage("the padding is not zero")));
    }
}

#[test]
fn a_run_with_a_wrong_field_is_refused_before_and_after_its_group_is_made_to_agree() {
    let (bad, damaged) = (|what| Stop::Bad(Damage(what)), |what| Stop::Damaged(Damage(what)));
    let contradict = "the fields of a run contradict each other";
    // Which run, which edit of it, and what is answered when everything above it agrees.
    let cases: [(usize, Edit, Stop); 25] = [
        (0, |r| put(r, 0, 87u32.to_le_bytes()), bad("a run's length is wrong")),
        (0, |r| put(r, 0, u32::MAX.to_le_bytes()), bad("a run's length is wrong")),
        (0, |r| put(r, 4, 7u32.to_le_bytes()), damaged("a run's stream was never declared")),
        (
            1,
            |r| {
                put(r, 4, 1u32.to_le_bytes());
                add(r, 16, 3);
            },
            damaged("a run's mode is not its stream's"),
        ),
        (1, |r| put(r, 4, 1u32.to_le_bytes()), damaged("a run's offset is not the next one")),
        (1, |r| put(r, 4, 0u32.to_le_bytes()), bad(contradict)),
        (0, |r| r[8] = 4, bad(contradict)),
        (0, |r| r[8] = 8, bad(contradict)),
        (1, |r| r[8] |= 2, bad(contradict)),
        (1, |r| r[8] ^= 4, damaged("an encrypted run does not open with its stream's key")),
        (0, |r| r[9] = 1, bad("unnamed bytes of a run are not zero")),
        (0, |r| r[11] = 1, bad("unnamed bytes of a run are not zero")),
        (0, |r| r[39] = 1, bad("unnamed bytes of a run are not zero")),
        (0, |r| put(r, 12, 0u32.to_le_bytes()), bad("a run has no records")),
        (1, |r| put(r, 12, u32::MAX.to_le_bytes()), bad("a run's length is wrong")),
        (0, |r| add(r, 16, 1), damaged("a run's offset is not the next one")),
        (0, |r| add(r, 24, 1), bad("a run's position is not the next one")),
        (0, |r| put(r, 16, HIGHEST.to_le_bytes()), bad("a run's numbers run over")),
        (1, |r| put(r, 16, u64::MAX.to_le_bytes()), bad("a run's numbers run over")),
        (0, |r| put(r, 32, 1u32.to_le_bytes()), damaged("a run's length is wrong")),
        (1, |r| put(r, 32, 1u32.to_le_bytes()), bad(contradict)),
        (0, |r| r[40] = 1, bad(contradict)),
        (1, |r| r[40] ^= 1, damaged("a run was encrypted with another key than its stream's")),
        (1, |r| r[87] = 1, bad(contradict)),
        (1, |r| r[RUN_HEADER] ^= 1, damaged("an encrypted run does not open with its stream's key")),
    ];
    for tagged in [false, true] {
        let world = plain_world(tagged);
        for (i, (run, edit, stop)) in cases.iter().enumerate() {
            let change = |forged: &mut Forged| {
                let (at, length) = forged.runs[*run];
                edit(&mut forged.bytes[at..at + length]);
            };
            assert_eq!(answer(&world, change, Forged::chain), *stop, "case {i}");
            let touched = answer(&world, change, Forged::check);
            assert!(matches!(touched, Stop::Bad(_)), "case {i}: {touched:?}");
        }
    }
}

#[test]
fn a_forged_salt_of_a_plain_run_is_sound_by_itself_and_changes_the_root() {
    let world = plain_world(false);
    let (log, segment, place) = before(&world, 3);
    let mut forged = Forged::new(&world, place);
    let at = forged.runs[0].0;
    forged.bytes[at + 60] ^= 1;
    forged.chain();
    assert_eq!(log.replay(&segment, place, &forged.bytes, 3, &mut keys).stop, Stop::Done);
    let (right, ..) = before(&world, 4);
    assert_eq!(log.root().0, right.root().0);
    assert_ne!(log.root().1, right.root().1);
    assert_ne!(log.end().chain, right.end().chain);
}

#[test]
fn nothing_of_a_replay_counts_from_the_first_bad_group_on() {
    let mut random = Random(77);
    for seed in 0..6 {
        let world = grow(SHAPES[seed as usize % 4], seed + 200, 50);
        let file = world.files[0].bytes();
        let log = empty_log(world.shape, 0);
        let segment = Segment::active(world.header(0), world.files[0].clone());
        log.enter(&segment).unwrap();
        let all = log.replay(&segment, SEGMENT_HEADER as u64, &file[SEGMENT_HEADER..], u64::MAX, &mut keys);
        assert_eq!(all.place, file.len() as u64);
        let index = segment.index();
        let index = index.lookup(&segment).unwrap();
        for _ in 0..12 {
            let at = SEGMENT_HEADER + random.below((file.len() - SEGMENT_HEADER) as u64) as usize;
            let mut bad = file.clone();
            bad[at] ^= 1 << random.below(8);
            let groups = (world.header(0).first_group..).map_while(|number| index.group_of_number(number));
            let hit = groups.take_while(|group| group.place as usize <= at).last().unwrap();
            let log = empty_log(world.shape, 0);
            let segment = Segment::active(world.header(0), world.files[0].clone());
            log.enter(&segment).unwrap();
            let replayed = log.replay(&segment, SEGMENT_HEADER as u64, &bad[SEGMENT_HEADER..], u64::MAX, &mut keys);
            assert!(matches!(replayed.stop, Stop::Bad(_)), "{replayed:?}");
            assert_eq!((replayed.place, log.expected().number), (hit.place as u64, hit.number));
            assert_eq!((log.durable(), log.root().0), (hit.position, hit.position));
        }
    }
}

#[test]
fn an_incarnation_may_rise_stays_and_never_falls() {
    let world = plain_world(true);
    let (log, segment, place) = before(&world, 3);
    let mut forged = Forged::new(&world, place);
    put(&mut forged.bytes, 56, 5u32.to_le_bytes());
    forged.chain();
    let risen = log.replay(&segment, place, &forged.bytes, 3, &mut keys);
    assert_eq!((risen.stop, log.end().incarnation), (Stop::Done, 5));
    let snapshot = log.snapshot(0, risen.place, &segment.header.salt, 0);
    let restored = empty_log(world.shape, 0);
    restored.restore(&snapshot, &mut keys).unwrap();
    for log in [&log, &restored] {
        let mut out = vec![0; crate::group::OVERHEAD];
        let sealed = log.seal(&segment, risen.place, 3, 0, true, &mut out);
        assert_eq!((sealed.number, sealed.incarnation, u32_at(&out, 56)), (4, 5, 5));
        assert_eq!(log.end().incarnation, 5);
    }
    // The fourth group follows the third that was forged, and is of the incarnation before.
    let (log, segment, _) = before(&world, 3);
    assert_eq!(log.replay(&segment, place, &forged.bytes, 3, &mut keys).stop, Stop::Done);
    world.files[0].write(place as usize, &forged.bytes);
    let mut fallen = Forged::new(&world, risen.place);
    put(&mut fallen.bytes, 64, log.end().chain);
    fallen.chain();
    let stop = log.replay(&segment, risen.place, &fallen.bytes, 4, &mut keys).stop;
    assert_eq!(stop, Stop::Damaged(Damage("the group's incarnation falls")));
}
