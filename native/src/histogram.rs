//! How often which values came.
use kimberlite_core::histogram;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Values from 1, such as times in nanoseconds, of which the quantiles are known to three digits.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Histogram(pub histogram::Histogram);

#[pymethods]
impl Histogram {
    #[new]
    fn new() -> Self {
        Self(histogram::Histogram::default())
    }

    /// What `encode` made.
    #[staticmethod]
    fn decode(encoded: &[u8]) -> PyResult<Self> {
        let found = histogram::Histogram::decode(encoded);
        found.map(Self).ok_or_else(|| PyValueError::new_err("this is no histogram"))
    }

    /// HdrHistogram's V2 encoding, deflated.
    fn encode<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.encode())
    }

    fn __len__(&self) -> usize {
        self.0.len() as usize
    }

    fn plus(&self, other: &Self) -> Self {
        let mut sum = self.0.clone();
        sum.add(&other.0);
        Self(sum)
    }

    /// What came since; ValueError if this is not where it began.
    fn minus(&self, before: &Self) -> PyResult<Self> {
        let rest = self.0.minus(&before.0);
        rest.map(Self).ok_or_else(|| PyValueError::new_err("the other is no part of this one"))
    }

    /// What this share of the values is not above.
    fn quantile(&self, share: f64) -> u64 {
        self.0.quantile(share)
    }

    /// How many are not above each of these.
    fn up_to(&self, bounds: Vec<u64>) -> Vec<u64> {
        bounds.into_iter().map(|bound| self.0.up_to(bound)).collect()
    }

    /// Every value that occurs, and the share of those that are not above it.
    fn curve(&self) -> Vec<(u64, f64)> {
        self.0.curve()
    }
}
