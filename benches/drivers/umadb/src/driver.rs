//! Drives UmaDB: a connection for each client, an append without a condition for each batch.
//!
//! The work and the line that is printed are those of the drivers in Go, whose `load` says what they mean.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use umadb_client::{AsyncUmaDbClient, UmaDbClient};
use umadb_dcb::{DcbEvent, DcbEventStoreAsync};

/// Different batches of a client that are appended in turn.
const READY: usize = 16;
/// After the last batch was sent.
const PATIENCE: Duration = Duration::from_secs(60);

type Problem = Box<dyn std::error::Error + Send + Sync>;
type Batches = Arc<Vec<Vec<DcbEvent>>>;

struct Load {
    address: String,
    clients: usize,
    depth: usize,
    batch: usize,
    size: usize,
    seconds: f64,
    warm: f64,
}

impl Load {
    /// From `-name value` and so on.
    fn new(words: &[String]) -> Result<Load, Problem> {
        let given: HashMap<&str, &str> =
            words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
        let find = |name: &str| given.get(name).copied().ok_or(format!("{name} is missing"));
        Ok(Load {
            address: find("-address")?.to_string(),
            clients: find("-clients")?.parse()?,
            depth: find("-depth")?.parse()?,
            batch: find("-batch")?.parse()?,
            size: find("-size")?.parse()?,
            seconds: find("-seconds")?.parse()?,
            warm: find("-warm")?.parse()?,
        })
    }
}

/// Batches since the start, and nanoseconds of each that counts.
#[derive(Default)]
struct Tally {
    acknowledged: u64,
    took: Vec<u64>,
}

async fn keep_one_in_flight(
    client: Arc<AsyncUmaDbClient>,
    batches: Batches,
    mut turn: usize,
    begin: Instant,
    end: Instant,
) -> Result<Tally, Problem> {
    let mut tally = Tally::default();
    let mut sent = Instant::now();
    while sent < end {
        client.append(batches[turn % READY].clone(), None, None).await?;
        let now = Instant::now();
        tally.acknowledged += 1;
        if begin <= now && now < end {
            tally.took.push((now - sent).as_nanos() as u64);
        }
        sent = now;
        turn += 1;
    }
    Ok(tally)
}

async fn drive(load: &Load) -> Result<Tally, Problem> {
    let url = format!("http://{}", load.address);
    let mut clients = Vec::new();
    let mut all = Tally::default();
    for _ in 0..load.clients {
        let client = UmaDbClient::new(url.clone()).connect_async().await?;
        let batches = batches(load)?;
        client.append(batches[0].clone(), None, None).await?;
        all.acknowledged += 1;
        clients.push((Arc::new(client), batches));
    }
    let begin = Instant::now() + Duration::from_secs_f64(load.warm);
    let end = begin + Duration::from_secs_f64(load.seconds);
    let mut lanes = JoinSet::new();
    for (client, batches) in &clients {
        for turn in 0..load.depth {
            lanes.spawn(keep_one_in_flight(client.clone(), batches.clone(), turn, begin, end));
        }
    }
    while let Some(ended) = lanes.join_next().await {
        let tally = ended??;
        all.acknowledged += tally.acknowledged;
        all.took.extend(tally.took);
    }
    Ok(all)
}

/// Of random bytes.
fn batches(load: &Load) -> Result<Batches, Problem> {
    let mut random = File::open("/dev/urandom")?;
    let mut batches = Vec::new();
    for _ in 0..READY {
        let mut batch = Vec::new();
        for _ in 0..load.batch {
            let mut record = vec![0; load.size];
            random.read_exact(&mut record)?;
            batch.push(DcbEvent::default().event_type("record").data(record));
        }
        batches.push(batch);
    }
    Ok(Arc::new(batches))
}

/// The position of the last event; they begin at 1 and have no gaps.
async fn stored(load: &Load) -> Result<u64, Problem> {
    let client = UmaDbClient::new(format!("http://{}", load.address)).connect_async().await?;
    Ok(client.head().await?.unwrap_or(0))
}

/// The smallest of the sorted samples that at least so many of a thousand do not exceed.
fn quantile(samples: &[u64], thousandths: usize) -> u64 {
    samples[(samples.len() * thousandths).div_ceil(1000).max(1) - 1]
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Problem> {
    let load = Load::new(&std::env::args().skip(1).collect::<Vec<_>>())?;
    let patience = Duration::from_secs_f64(load.warm + load.seconds) + PATIENCE;
    let mut all = tokio::time::timeout(patience, drive(&load)).await??;
    if all.took.is_empty() {
        return Err(format!("nothing was answered in {} s", load.seconds).into());
    }
    all.took.sort_unstable();
    println!(
        r#"{{"acknowledged":{},"counted":{},"p50":{},"p99":{},"p999":{},"stored":{}}}"#,
        all.acknowledged,
        all.took.len(),
        quantile(&all.took, 500),
        quantile(&all.took, 990),
        quantile(&all.took, 999),
        stored(&load).await?
    );
    Ok(())
}
