//! An append's records, taken out of Python's hands at once.
use std::sync::Arc;

use kimberlite_core::record::{self, LARGEST_BATCH, LARGEST_BATCH_BYTES, Record, append_header};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyMapping, PySet, PyString, PyTuple, PyType};

use crate::errors;

/// Larger than any limit on a batch, and small enough that lengths fit in 32 bits.
const LARGEST: usize = 1 << 30;

static RECORD: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The class of `kimberlite.records`.
pub fn record_type(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    RECORD.import(py, "kimberlite.records", "Record")
}

/// The records of one append to one stream, encoded.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Batch {
    pub inner: Arc<record::Batch>,
}

#[pymethods]
impl Batch {
    fn __len__(&self) -> usize {
        self.inner.ends.len()
    }

    /// Bytes of its records as they are stored.
    #[getter]
    fn size(&self) -> usize {
        self.inner.bytes.len()
    }

    /// Its last record as it is stored.
    #[getter]
    fn last<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.inner.record(self.inner.ends.len() - 1))
    }

    /// Without its first records, of which it has more.
    fn behind(&self, first: usize) -> Self {
        let start = self.inner.start(first);
        let ends = self.inner.ends[first..].iter().map(|end| end - start as u32).collect();
        let batch = record::Batch { bytes: self.inner.bytes[start..].to_vec(), ends, ..record::Batch::default() };
        Self { inner: Arc::new(batch) }
    }

    /// Its records as a batch each.
    fn split(&self) -> Vec<Self> {
        let records = 0..self.inner.ends.len();
        records.map(|i| Self { inner: Arc::new(record::Batch::of(self.inner.record(i))) }).collect()
    }

    /// They, one after another.
    #[getter]
    fn stored<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.bytes)
    }
}

fn invalid(message: impl AsRef<str>) -> PyErr {
    Python::attach(|py| errors::raise(py, "Invalid", message.as_ref()))
}

fn nanoseconds(value: &Bound<'_, PyAny>) -> PyResult<i64> {
    let unfit = |_| invalid("an event time does not fit in 64 bits of ns");
    if value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>() {
        return value.extract().map_err(unfit);
    }
    let wrong = |_| invalid("an event time is an int of ns or an aware datetime");
    let tzinfo = value.getattr("tzinfo").map_err(wrong)?;
    if tzinfo.is_none() {
        return Err(invalid("an event time must be aware: it has no time zone"));
    }
    let nanoseconds = value.py().import("kimberlite.records")?.getattr("nanoseconds")?;
    nanoseconds.call1((value,)).map_err(wrong)?.extract().map_err(unfit)
}

fn headers_of(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    let pairs = if let Ok(mapping) = value.cast::<PyMapping>() { mapping.items()?.into_any() } else { value.clone() };
    let wrong = || invalid("headers are pairs of a str and bytes");
    for pair in pairs.try_iter().map_err(|_| wrong())? {
        let pair = pair?;
        let pair = pair.cast::<PyTuple>().map_err(|_| wrong())?;
        if pair.len() != 2 {
            return Err(wrong());
        }
        let (name, value) = (pair.get_item(0)?, pair.get_item(1)?);
        let name = name.cast::<PyString>().map_err(|_| wrong())?;
        let name = name.to_cow().map_err(|_| invalid("a header's name has no lone surrogates"))?;
        let value = value.cast::<PyBytes>().map_err(|_| wrong())?.as_bytes();
        if name.is_empty() || name.len() > record::LONGEST_HEADER || value.len() > LARGEST {
            return Err(invalid("a header's name has 1 to 65,535 bytes"));
        }
        append_header(out, &name, value);
    }
    Ok(())
}

fn bytes_of<'a>(what: &str, value: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    let bytes = value.cast::<PyBytes>().map_err(|_| invalid(format!("a record's {what} is bytes")))?;
    Ok(bytes.as_bytes())
}

fn push(batch: &mut record::Batch, item: &Bound<'_, PyAny>, headers: &mut Vec<u8>) -> PyResult<()> {
    headers.clear();
    if let Ok(payload) = item.cast_exact::<PyBytes>() {
        return push_checked(batch, &Record { key: None, headers, event_time: None, payload: payload.as_bytes() });
    }
    let wrong = || invalid("a record is bytes or a kimberlite.Record");
    if let Ok(payload) = item.cast::<PyBytes>() {
        return push_checked(batch, &Record { key: None, headers, event_time: None, payload: payload.as_bytes() });
    }
    if !item.is_instance(record_type(item.py())?)? {
        return Err(wrong());
    }
    let fields = item.cast::<PyTuple>().map_err(|_| wrong())?;
    let (payload, key) = (fields.get_item(0)?, fields.get_item(1)?);
    let payload = bytes_of("payload", &payload)?;
    let key = if key.is_none() { None } else { Some(bytes_of("key", &key)?) };
    headers_of(&fields.get_item(2)?, headers)?;
    let event_time = fields.get_item(3)?;
    let event_time = if event_time.is_none() { None } else { Some(nanoseconds(&event_time)?) };
    push_checked(batch, &Record { key, headers, event_time, payload })
}

fn push_checked(batch: &mut record::Batch, record: &Record) -> PyResult<()> {
    if batch.bytes.len() + record.length() > LARGEST {
        return Err(Python::attach(|py| errors::raise(py, "LimitExceeded", "the batch is larger than 1 GiB")));
    }
    batch.push(record);
    Ok(())
}

fn encoded(records: &Bound<'_, PyAny>) -> PyResult<record::Batch> {
    let mut batch = record::Batch::default();
    let mut headers = Vec::new();
    if let Ok(payload) = records.cast_exact::<PyBytes>() {
        batch.bytes.reserve(payload.as_bytes().len() + 24);
        push(&mut batch, records, &mut headers)?;
    } else if let Ok(list) = records.cast_exact::<PyList>() {
        batch.ends.reserve(list.len());
        if let Some(first) = list.iter().next()
            && let Ok(first) = first.cast_exact::<PyBytes>()
        {
            batch.bytes.reserve(list.len() * (first.as_bytes().len() + 24));
        }
        for item in list.iter() {
            push(&mut batch, &item, &mut headers)?;
        }
    } else if records.is_instance_of::<PyBytes>() || records.is_instance(record_type(records.py())?)? {
        push(&mut batch, records, &mut headers)?;
    } else if records.is_instance_of::<PyString>() {
        return Err(invalid("records are bytes, not str: encode the text first"));
    } else if records.cast::<PyMapping>().is_ok() || records.is_instance_of::<PySet>() {
        return Err(invalid("records are a sequence: a mapping or a set is none"));
    } else {
        let items = records
            .try_iter()
            .map_err(|_| invalid("records are bytes, a kimberlite.Record, or a sequence of either"))?;
        for item in items {
            push(&mut batch, &item?, &mut headers)?;
        }
    }
    if batch.ends.is_empty() {
        return Err(invalid("there are no records to append"));
    }
    Ok(batch)
}

/// The records of one append, within the limits: Invalid or LimitExceeded say what is wrong.
pub fn checked_batch(py: Python<'_>, records: &Bound<'_, PyAny>) -> PyResult<Arc<record::Batch>> {
    let batch = encoded(records)?;
    let (count, size) = (batch.ends.len(), batch.bytes.len());
    if count > LARGEST_BATCH {
        let message = format!("a batch has at most {LARGEST_BATCH} records, not {count}");
        return Err(errors::raise(py, "LimitExceeded", &message));
    }
    if size > LARGEST_BATCH_BYTES {
        let message = format!("a batch has at most {LARGEST_BATCH_BYTES} bytes, not {size}");
        return Err(errors::raise(py, "LimitExceeded", &message));
    }
    Ok(Arc::new(batch))
}

/// The records of one append: bytes, a Record, or a sequence of either.
#[pyfunction]
pub fn encode(py: Python<'_>, records: &Bound<'_, PyAny>) -> PyResult<Batch> {
    Ok(Batch { inner: checked_batch(py, records)? })
}
