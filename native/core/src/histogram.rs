//! How often which values came: HdrHistogram's, and one that many threads add to.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hdrhistogram::Histogram as Hdr;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

/// Values up to this are told apart: an hour in nanoseconds.
const HIGHEST: u64 = 3_600_000_000_000;

/// Values from 1, of which the quantiles are known to three digits; to two if they were recorded by a `Recorder`.
#[derive(Debug, Clone)]
pub struct Histogram(Hdr<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self::of(3)
    }
}

impl Histogram {
    fn of(digits: u8) -> Self {
        Self(Hdr::new_with_max(HIGHEST, digits).expect("these are bounds"))
    }

    pub fn record(&mut self, value: u64) {
        self.0.saturating_record(value.max(1));
    }

    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// Takes away what came before; None if that is not part of it.
    #[must_use]
    pub fn minus(&self, before: &Self) -> Option<Self> {
        let mut rest = self.clone();
        rest.0.subtract(&before.0).ok()?;
        Some(rest)
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What this share of the values is not above.
    pub fn quantile(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    /// How many are not above.
    pub fn up_to(&self, value: u64) -> u64 {
        self.0.count_between(0, value)
    }

    /// Every value that occurs, and the share of those that are not above it.
    pub fn curve(&self) -> Vec<(u64, f64)> {
        let total = self.len() as f64;
        let mut below = 0;
        let steps = self.0.iter_recorded().map(|step| {
            below += step.count_at_value();
            (step.value_iterated_to(), below as f64 / total)
        });
        steps.collect()
    }

    /// HdrHistogram's V2 encoding, deflated.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        V2DeflateSerializer::new().serialize(&self.0, &mut out).expect("memory takes all");
        out
    }

    /// What `encode` made; None if it is something else.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let found = Deserializer::new().deserialize(&mut bytes).ok()?;
        let mut histogram = Self::default();
        histogram.0.add(&found).ok()?;
        Some(histogram)
    }
}

/// Values are told apart to one part in 2^DIGITS: HdrHistogram's layout for two decimal digits.
const DIGITS: u32 = 7;
/// Of counters, for all values below 2^42, which is above `HIGHEST`.
const COUNTERS: usize = (42 - DIGITS as usize + 1) << DIGITS;

/// Counts values with an addition for each and without a lock.
pub struct Recorder {
    counters: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { counters: (0..COUNTERS).map(|_| AtomicU64::default()).collect(), sum: AtomicU64::default() }
    }
}

impl Recorder {
    /// The sum is kept apart: whoever has many values adds it up first.
    pub fn count(&self, value: u64) {
        self.counters[counter(value.min(HIGHEST))].fetch_add(1, Relaxed);
    }

    pub fn add_to_sum(&self, sum: u64) {
        self.sum.fetch_add(sum, Relaxed);
    }

    pub fn record(&self, value: u64) {
        self.count(value);
        self.add_to_sum(value);
    }

    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    /// What was counted so far; each value stands for those that share its counter.
    pub fn histogram(&self) -> Histogram {
        let mut histogram = Histogram::of(2);
        for (i, counter) in self.counters.iter().enumerate() {
            match counter.load(Relaxed) {
                0 => {}
                count => histogram.0.saturating_record_n(middle(i).max(1), count),
            }
        }
        histogram
    }
}

/// Small values have a counter each, and every power of two from there on 2^DIGITS of them.
fn counter(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(DIGITS + 1);
    ((shift as usize) << DIGITS) + (value >> shift) as usize
}

fn middle(counter: usize) -> u64 {
    let shift = (counter >> DIGITS).saturating_sub(1);
    let first = ((counter - (shift << DIGITS)) as u64) << shift;
    first + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_again_to_one_part_in_128() {
        for value in (0..1 << 12).chain((0..42).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + (1 << bit) / 3]))
        {
            let value: u64 = u64::min(value, HIGHEST);
            let found = middle(counter(value));
            assert!(found.abs_diff(value) <= value >> DIGITS, "{value} is {found}");
        }
        assert!((1..1u64 << 20).all(|value| counter(value) - counter(value - 1) <= 1), "no counter is left out");
        assert!(counter(HIGHEST) < COUNTERS);
    }

    #[test]
    fn what_threads_record_is_all_there() {
        let recorder = Recorder::default();
        std::thread::scope(|threads| {
            for thread in 1..=4u64 {
                let recorder = &recorder;
                threads.spawn(move || (1..=10_000).for_each(|i| recorder.record(i * thread)));
            }
        });
        let histogram = recorder.histogram();
        assert_eq!(histogram.len(), 40_000);
        assert_eq!(recorder.sum(), 10 * 10_000 * 10_001 / 2);
        let half = histogram.quantile(0.5) as f64;
        assert!((half - 9_600.0).abs() < 80.0, "{half}");
        recorder.record(u64::MAX);
        assert!(recorder.histogram().quantile(1.0) >= HIGHEST / 128 * 127);
    }

    #[test]
    fn what_came_before_is_taken_away() {
        let recorder = Recorder::default();
        (1..=1000).for_each(|i| recorder.record(i));
        let before = recorder.histogram();
        (1..=10).for_each(|i| recorder.record(i * 1_000_000));
        let since = recorder.histogram().minus(&before).unwrap();
        assert_eq!((since.len(), since.up_to(900_000)), (10, 0));
        assert_eq!(since.up_to(5_500_000), 5);
        assert!(before.minus(&since).is_none());
    }
}
