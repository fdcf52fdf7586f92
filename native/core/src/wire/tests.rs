use super::append::{Append, Part, Refused, put_one, put_several};
use super::cursor::{Cursor, DEEPEST, MOST_NODES, Make, Malformed, Parsed, Put, Value, make};
use super::import::{Import, pick_runs, put_import, take_runs};
use super::inbox::{Inbox, Unfit};
use super::receipts::{Ending, Place, put_answer, put_ending, put_place, take_answer, take_ending, take_place};
use super::records::{RunHead, Runs, take_record};
use super::{HEADER, Header, frames, put_message};
use crate::record::{Batch, LARGEST_BATCH, Record, append_header};

struct Nothing;

impl Make for Nothing {
    type Made = ();
    fn leaf(&mut self, _: Value) {}
    fn array(&mut self, _: Vec<()>) {}
    fn map(&mut self, _: Vec<(&str, ())>) {}
}

fn check(bytes: &[u8]) -> Parsed<()> {
    make(bytes, &mut Nothing)
}

fn records() -> Batch {
    let mut headers = Vec::new();
    append_header(&mut headers, "type", b"placed");
    append_header(&mut headers, "type", b"");
    let mut batch = Batch::default();
    for length in [0, 1, 31, 255, 256, 65_535, 65_536] {
        let payload = vec![7; length];
        batch.push(&Record { key: None, headers: &[], event_time: None, payload: &payload });
        batch.push(&Record { key: Some(b""), headers: &[], event_time: None, payload: &payload });
        batch.push(&Record { key: Some(b"k"), headers: &headers, event_time: Some(i64::MIN), payload: &payload });
        batch.push(&Record { key: None, headers: &[], event_time: Some(length as i64), payload: &payload });
    }
    batch
}

fn one(batch: &Batch, since: Option<u64>) -> Vec<u8> {
    let mut body = Vec::new();
    put_one(&mut body, ("tenant/orders", batch, Some(1 << 62)), Some((b"me", 5, since)), Some("group"));
    body
}

#[test]
fn an_append_arrives_as_it_was_sent() {
    let batch = records();
    for since in [None, Some(0), Some(1 << 40)] {
        let body = one(&batch, since);
        check(&body).unwrap();
        assert_eq!(Append::to_one(&body).unwrap().since, since);
    }
    let body = one(&batch, None);
    let Append { parts, producer, sync, .. } = Append::to_one(&body).unwrap();
    let [Part { stream, batch: arrived, expect }] = &parts[..] else { panic!("it is to one stream") };
    assert_eq!(
        (*stream, *expect, producer, sync),
        ("tenant/orders", Some(1 << 62), Some((&b"me"[..], 5)), Some("group"))
    );
    assert_eq!((&arrived.bytes, &arrived.ends), (&batch.bytes, &batch.ends));

    let mut body = Vec::new();
    put_several(&mut body, &[("a", &batch, None), ("b", &batch, Some(0))], None, None);
    let Append { parts, producer, sync, .. } = Append::to_several(&body).unwrap();
    let seen: Vec<_> = parts.iter().map(|part| (part.stream, part.expect, part.batch.bytes == batch.bytes)).collect();
    assert_eq!((seen, producer, sync), (vec![("a", None, true), ("b", Some(0), true)], None, None));
}

#[test]
fn an_append_that_is_cut_or_goes_on_is_malformed() {
    let mut batch = Batch::default();
    batch.push(&Record { key: Some(b"k"), headers: &[], event_time: Some(-5), payload: b"payload" });
    let body = one(&batch, Some(3));
    for length in 0..body.len() {
        assert!(matches!(Append::to_one(&body[..length]), Err(Refused::Malformed(_))), "{length}");
    }
    let longer = [&body[..], &[0xc0]].concat();
    assert!(matches!(Append::to_one(&longer), Err(Refused::Malformed(_))));
}

#[test]
fn no_altered_byte_makes_an_append_panic_or_large() {
    let body = one(&records(), Some(3))[..400].to_vec();
    for place in 0..body.len() {
        for value in 0..=255 {
            let mut altered = body.clone();
            altered[place] = value;
            drop(Append::to_one(&altered));
            drop(Append::to_several(&altered));
            let _ = check(&altered);
        }
    }
}

#[test]
fn what_an_append_may_not_have_is_refused() {
    let body = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut body = Vec::new();
        body.put_array(5);
        body.put_text("s");
        put(&mut body);
        (0..3).for_each(|_| body.put_nil());
        body
    };
    let none = body(&|out| out.put_array(0));
    assert!(matches!(Append::to_one(&none), Err(Refused::Invalid(_))));
    let many = body(&|out| {
        out.put_array(LARGEST_BATCH + 1);
        (0..=LARGEST_BATCH).for_each(|_| out.put_bytes(b""));
    });
    assert!(matches!(Append::to_one(&many), Err(Refused::TooLarge(_))));
    let nameless = body(&|out| {
        out.put_array(1);
        out.put_array(4);
        out.put_bytes(b"");
        out.put_nil();
        out.put_array(1);
        out.put_array(2);
        out.put_text("");
        out.put_bytes(b"");
        out.put_nil();
    });
    assert!(matches!(Append::to_one(&nameless), Err(Refused::Malformed(_))));
    assert!(matches!(Append::to_several(b"\x93\x90\xc0\xc0"), Err(Refused::Invalid(_))));
    for text in [&b"\x95\xa1s\x91\xa1x\xc0\xc0\xc0"[..], b"\x95\xc4\x01s\x91\xc4\x01x\xc0\xc0\xc0", b"\x95\xa1\xff"] {
        assert!(matches!(Append::to_one(text), Err(Refused::Malformed(_))), "{text:x?}");
    }
}

#[test]
fn a_value_that_no_message_may_be_is_malformed() {
    let deep = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
    assert_eq!(check(&deep(DEEPEST)), Ok(()));
    assert!(check(&deep(DEEPEST + 1)).is_err());
    assert!(check(&deep(1 << 20)).is_err());

    let wide = |count: usize| {
        let mut body = Vec::new();
        body.put_array(count);
        body.resize(body.len() + count, 0x80);
        body
    };
    assert_eq!(check(&wide(MOST_NODES - 1)), Ok(()));
    assert!(check(&wide(MOST_NODES)).is_err());
    assert!(check(&wide(8 << 20)).is_err());

    let bad: [&[u8]; 14] = [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc0\xc0",
        b"\xd4\x01\x00",
        b"\xc7\x00\x01",
        b"\xca\x7f\xc0\x00\x00",
        b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\xa1\xff",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\x01\x02",
    ];
    for body in bad {
        assert!(check(body).is_err(), "{body:x?}");
    }
    for good in [
        &b"\xc0"[..],
        b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"\x82\xa1a\x01\xa1b\x02",
        b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(check(good), Ok(()), "{good:x?}");
    }
}

#[test]
fn numbers_are_read_as_they_were_put() {
    for number in [0, 1, 127, 128, 255, 256, 65_535, 65_536, u32::MAX.into(), 1 << 32, i64::MAX as u64, u64::MAX] {
        let mut body = Vec::new();
        body.put_count(number);
        assert_eq!(Cursor::new(&body).count(), Ok(number));
    }
    for number in [0, -1, -32, -33, -128, i64::MIN, i64::MAX] {
        let mut body = Vec::new();
        body.put_integer(number);
        assert_eq!(Cursor::new(&body).integer(), Ok(number));
    }
    assert_eq!(Cursor::new(b"\xff").count(), Err(Malformed("a number is below 0")));
}

#[test]
fn runs_arrive_as_they_were_sent() {
    let batch = records();
    let all: Vec<Record> = (0..batch.ends.len()).map(|i| Record::decode(batch.record(i)).unwrap().0).collect();
    let mut runs = Runs::default();
    runs.push("a", (5, 70), u64::MAX, all.iter().copied());
    runs.push("b", (0, 99), 3, all[..1].iter().copied());
    let message = runs.message(12);
    let (head, body) = message.split_first_chunk().unwrap();
    assert_eq!(Header::decode(head), Header { length: body.len(), kind: super::kind::RECORDS, id: 12 });
    check(body).unwrap();
    let mut cursor = Cursor::new(body);
    assert_eq!(cursor.array(), Ok(2));
    let head = RunHead::take(&mut cursor).unwrap();
    assert_eq!(head, RunHead { stream: "a", offset: 5, position: 70, timestamp: u64::MAX, records: all.len() });
    let mut headers = Vec::new();
    for record in &all {
        assert_eq!(&take_record(&mut cursor, &mut headers).unwrap(), record);
    }
    assert_eq!(RunHead::take(&mut cursor).unwrap().stream, "b");
    assert_eq!(&take_record(&mut cursor, &mut headers).unwrap(), &all[0]);
    assert_eq!(cursor.end(), Ok(()));
}

#[test]
fn receipts_arrive_as_they_were_sent() {
    let ending =
        Ending { timestamp: 1, durable: true, tree_size: 2, root: [3; 32], chain: [4; 32], incarnation: 5, group: 6 };
    let place = Place { first_offset: 7, last_offset: 8, first_position: 9, last_position: 12, mac: [10; 16] };
    let mut body = Vec::new();
    put_ending(&mut body, &ending, 1);
    put_answer(&mut body, 11, 1);
    put_place(&mut body, &place);
    check(&body).unwrap();
    let mut cursor = Cursor::new(&body);
    assert_eq!(take_ending(&mut cursor), Ok((ending, 1)));
    assert_eq!(take_answer(&mut cursor), Ok((11, 1)));
    assert_eq!(take_place(&mut cursor), Ok(place));
    assert_eq!(cursor.end(), Ok(()));
}

/// Messages of these lengths through an inbox in pieces of this size; what it took at most.
fn through(lengths: &[usize], piece: usize) -> usize {
    let mut sent = Vec::new();
    for (i, &length) in lengths.iter().enumerate() {
        put_message(&mut sent, i as u32, 2 * i as u32, |out| out.resize(out.len() + length, i as u8));
    }
    let (mut inbox, mut rest, mut seen, mut most) = (Inbox::new(64, 1000), &sent[..], 0, 0);
    while !rest.is_empty() {
        let room = inbox.room();
        let count = room.len().min(piece).min(rest.len());
        assert!(count > 0, "there is always room");
        room[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        inbox.arrived(count);
        while let Some((header, body)) = inbox.next().unwrap() {
            assert_eq!(header, Header { length: lengths[seen], kind: seen as u32, id: 2 * seen as u32 });
            assert!(body.iter().all(|&byte| byte == seen as u8) && body.len() == lengths[seen]);
            inbox.take(header);
            seen += 1;
        }
        inbox.make_room();
        most = most.max(inbox.capacity());
    }
    assert_eq!(seen, lengths.len());
    assert!(inbox.is_empty());
    assert_eq!(inbox.capacity(), 64);
    most
}

#[test]
fn messages_come_out_of_an_inbox_whole_however_they_arrive() {
    for piece in [1, 2, 11, 12, 13, 63, 64, 65, 5_000] {
        assert_eq!(through(&[1; 30], piece), 64);
        assert!(through(&[1, 52, 51, 53, 5, 1], piece) <= 128);
        assert!(through(&[1000, 1, 1000, 300, 1], piece) <= HEADER + 1000);
    }
}

#[test]
fn what_is_announced_costs_nothing_before_it_arrives() {
    for length in [0, 1001, u32::MAX as usize] {
        let mut inbox = Inbox::new(64, 1000);
        inbox.room()[..HEADER].copy_from_slice(&Header { length, kind: 1, id: 1 }.encode());
        inbox.arrived(HEADER);
        assert_eq!(inbox.next(), Err(Unfit(length)));
        assert_eq!(inbox.capacity(), 64);
    }
    let mut inbox = Inbox::new(64, 1000);
    inbox.room()[..HEADER].copy_from_slice(&Header { length: 1000, kind: 1, id: 1 }.encode());
    inbox.arrived(HEADER);
    assert_eq!(inbox.next(), Ok(None));
    inbox.make_room();
    assert_eq!(inbox.capacity(), 64);
}

#[test]
fn what_is_imported_arrives_as_it_was_sent() {
    let batch = records();
    let cases = [(Some(7), Some(&batch), None), (None, Some(&batch), Some("lost")), (Some(0), None, Some(""))];
    for (time, records, gap) in cases {
        let mut body = Vec::new();
        put_import(&mut body, "tenant/orders", 1 << 62, time, records, gap);
        check(&body).unwrap();
        let taken = Import::take(&body).unwrap().unwrap();
        assert_eq!((taken.stream, taken.offset, taken.time, taken.gap), ("tenant/orders", 1 << 62, time, gap));
        assert_eq!(taken.batch.map(|batch| batch.bytes), records.map(|batch| batch.bytes.clone()));
        for length in (0..body.len()).step_by(body.len() / 500 + 1) {
            assert!(matches!(Import::take(&body[..length]), Err(Refused::Malformed(_))), "{length}");
        }
        assert!(Import::take(&[&body[..], &[0xc0]].concat()).is_err());
    }
    assert!(matches!(Import::take(&[0xc0]), Ok(None)));
    let refused = |gap: Option<&str>| {
        let mut body = Vec::new();
        put_import(&mut body, "s", 1, None, None, gap);
        Import::take(&body).unwrap_err()
    };
    assert!(matches!(refused(None), Refused::Malformed(_)));
    assert!(matches!(refused(Some(&"x".repeat(256))), Refused::Invalid(_)));
}

#[test]
fn runs_that_follow_each_other_are_one_and_some_are_picked() {
    let record = |payload| Record { key: None, headers: &[], event_time: None, payload };
    let runs = [("a", 5, 10, 7, 2), ("a", 7, 12, 7, 1), ("b", 0, 13, 7, 1), ("a", 8, 14, 8, 3), ("a", 12, 17, 8, 1)];
    let mut message = Runs::default();
    for (stream, offset, position, time, count) in runs {
        message.push(stream, (offset, position), time, vec![record(b"x"); count].into_iter());
    }
    let message = message.message(1);
    let body = &message[HEADER..];
    let joined: Vec<_> = take_runs(body)
        .unwrap()
        .iter()
        .map(|run| (run.head.stream, run.head.offset, run.head.timestamp, run.batch.ends.len()))
        .collect();
    assert_eq!(joined, [("a", 5, 7, 3), ("b", 0, 7, 1), ("a", 8, 8, 3), ("a", 12, 8, 1)]);
    let all = pick_runs(body, |_| true).unwrap();
    assert_eq!((&all.body[..], all.records, all.last), (body, 8, (12, 17)));
    let some = pick_runs(body, |stream| stream == "b").unwrap();
    assert_eq!((some.records, some.last), (1, (12, 17)));
    assert_eq!(take_runs(&some.body).unwrap().len(), 1);
    for length in 0..body.len() {
        assert!(take_runs(&body[..length]).is_err() && pick_runs(&body[..length], |_| true).is_err());
    }
    for place in 0..body.len() {
        for value in 0..=255 {
            let mut altered = body.to_vec();
            altered[place] = value;
            drop(take_runs(&altered));
            drop(pick_runs(&altered, |_| true));
            drop(Import::take(&altered));
        }
    }
}

#[test]
fn a_frame_opens_behind_the_one_it_was_sealed_behind() {
    let body: Vec<u8> = (0..100_000u32).map(|i| (i / 100) as u8).collect();
    let frame = frames::seal(2, &body, &[1; 32]);
    assert!(frame.len() < body.len() / 10);
    let opened = |frame: &[u8], previous: &[u8; 32]| {
        let (head, text) = frame.split_first_chunk().unwrap();
        frames::open(head, text, previous)
    };
    assert_eq!(opened(&frame, &[1; 32]), Some((2, body)));
    assert_eq!(opened(&frame, &[2; 32]), None);
    for place in 0..frame.len() {
        let mut altered = frame.clone();
        altered[place] ^= 0x10;
        assert_eq!(opened(&altered, &[1; 32]), None, "byte {place}");
    }
    assert_eq!(opened(&frame[..frame.len() - 1], &[1; 32]), None);
    assert_eq!(opened(&frames::seal(0, b"", &[0; 32]), &[0; 32]), Some((0, vec![])));
}
