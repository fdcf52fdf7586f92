use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Swarm;
use super::client::{Client, Failure, Pace, Work};
use crate::histogram::Histogram;
use crate::record::{Batch, Record};
use crate::wire::append::Append;
use crate::wire::cursor::Put;
use crate::wire::receipts::{Ending, Place, put_answer, put_ending, put_place};
use crate::wire::{HEADER, Header, kind, put_message};

fn batch(records: usize) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..records {
        batch.push(&Record { key: None, headers: &[], event_time: None, payload: b"some" });
    }
    batch
}

fn appends(depth: u32) -> Client {
    let batches = Arc::new(Work::batches(&[&batch(3), &batch(3)]));
    Client::new(Work::Append { stream: "s".into(), batches, sync: None, next: 0 }, depth)
}

fn requests(mut bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() {
        let header = Header::decode(head);
        found.push((header, rest[..header.length].to_vec()));
        bytes = &rest[header.length..];
    }
    found
}

fn receipts(ids: &[u32]) -> Vec<u8> {
    let ending =
        Ending { timestamp: 1, durable: true, tree_size: 9, root: [0; 32], chain: [0; 32], incarnation: 1, group: 1 };
    let mut out = Vec::new();
    put_message(&mut out, kind::RECEIPTS, kind::NOBODY, |out| {
        put_ending(out, &ending, ids.len());
        for id in ids {
            put_answer(out, *id, 1);
            let place = Place { first_offset: 0, last_offset: 2, first_position: 0, last_position: 2, mac: [0; 16] };
            put_place(out, &place);
        }
    });
    out
}

fn take(client: &mut Client, message: &[u8], now: u64) -> Result<(), Failure> {
    let [(header, body)] = &requests(message)[..] else { panic!("one message") };
    client.take(*header, body, now)
}

#[test]
fn without_a_pace_every_slot_is_used_and_used_again() {
    let mut client = appends(2);
    let mut out = Vec::new();
    client.ask(100, &mut out);
    let asked = requests(&out);
    assert_eq!(asked.len(), 2);
    for (header, body) in &asked {
        assert_eq!(header.kind, kind::APPEND);
        assert_eq!(Append::to_one(body).unwrap().parts[0].batch.ends.len(), 3);
    }
    take(&mut client, &receipts(&[asked[1].0.id]), 350).unwrap();
    assert_eq!((client.tally.requests, client.tally.records, client.open()), (1, 3, 1));
    assert_eq!(client.tally.times.quantile(1.0), 250);
    out.clear();
    client.ask(400, &mut out);
    assert_eq!(requests(&out).len(), 1);
}

#[test]
fn with_a_pace_a_request_that_had_to_wait_is_as_old_as_it_was_due() {
    let mut client = appends(1);
    client.pace = Some(Pace { due: 1_000, interval: 1_000 });
    let mut out = Vec::new();
    client.ask(999, &mut out);
    assert!(out.is_empty());
    client.ask(1_000, &mut out);
    let id = requests(&out)[0].0.id;
    assert_eq!(client.due(), None);
    take(&mut client, &receipts(&[id]), 5_000).unwrap();
    assert_eq!(client.due(), Some(2_000));
    client.ask(5_000, &mut out);
    take(&mut client, &receipts(&[id]), 5_500).unwrap();
    assert_eq!(client.tally.times.curve().iter().map(|(ns, _)| *ns / 100).collect::<Vec<_>>(), [35, 40]);
}

#[test]
fn answers_to_what_was_not_asked_and_refusals_end_it() {
    let mut client = appends(1);
    assert!(matches!(take(&mut client, &receipts(&[0]), 1), Err(Failure::Malformed(_))));
    assert!(matches!(take(&mut client, &receipts(&[7]), 1), Err(Failure::Malformed(_))));
    let mut refusal = Vec::new();
    put_message(&mut refusal, kind::ERROR, 0, |out| out.put_nil());
    assert!(matches!(take(&mut client, &refusal, 1), Err(Failure::Refused(body)) if body == [0xc0]));
}

#[test]
fn reads_go_round() {
    let mut client = Client::new(Work::Read { next: 20, end: 32, batch: 10 }, 3);
    let mut out = Vec::new();
    client.ask(1, &mut out);
    let starts: Vec<_> = requests(&out)
        .iter()
        .map(|(_, body)| {
            let at = body.windows(5).position(|part| part == b"start").unwrap();
            body[at + 5]
        })
        .collect();
    assert_eq!(starts, [20, 0, 10]);
}

#[test]
fn a_swarm_asks_until_it_is_told_not_to_and_waits_for_what_is_open() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let server = thread::spawn(move || {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            match theirs.read(&mut chunk).unwrap() {
                0 => return,
                count => bytes.extend_from_slice(&chunk[..count]),
            }
            for (header, _) in requests(&bytes) {
                theirs.write_all(&receipts(&[header.id])).unwrap();
            }
            bytes.clear();
        }
    });
    let mut swarm = Swarm::default();
    swarm.add(ours.into(), appends(1));
    swarm.run(Duration::from_millis(20), true).unwrap();
    assert!(!swarm.run(Duration::from_secs(5), false).unwrap());
    let tally = swarm.clients().next().unwrap().tally.clone();
    assert!(tally.requests > 10 && tally.records == 3 * tally.requests);
    drop(swarm);
    server.join().unwrap();
}

#[test]
fn times_are_what_they_were_when_they_are_encoded_and_added() {
    let mut times = Histogram::default();
    (1..=1000).for_each(|ns| times.record(ns * 1000));
    let again = Histogram::decode(&times.encode()).unwrap();
    assert_eq!(again.quantile(0.5), times.quantile(0.5));
    let mut sum = again.clone();
    sum.add(&times);
    assert_eq!((sum.len(), sum.quantile(0.99)), (2000, times.quantile(0.99)));
    assert_eq!(sum.curve().last().unwrap().1, 1.0);
    assert!(Histogram::decode(b"nothing").is_none());
}
