//! Hashes, key derivation and sealing of small things, for the vault and the small files.
use crate::log::exactly;
use kimberlite_core::keys::{self, NONCE, Xaes};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// BLAKE3 of some bytes, keyed if there is a key.
#[pyfunction]
#[pyo3(signature = (data, key=None))]
pub fn blake3<'py>(py: Python<'py>, data: &[u8], key: Option<&[u8]>) -> PyResult<Bound<'py, PyBytes>> {
    let hash = match key {
        None => ::blake3::hash(data),
        Some(key) => ::blake3::keyed_hash(&exactly(key, "key")?, data),
    };
    Ok(PyBytes::new(py, hash.as_bytes()))
}

/// HKDF-SHA-256, empty salt, 32 bytes.
#[pyfunction]
pub fn derive<'py>(py: Python<'py>, key: &[u8], info: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &keys::derive(key, &[info]))
}

#[pyfunction]
pub fn key_id<'py>(py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &keys::key_id(&exactly(key, "key")?)))
}

/// XAES-256-GCM: ciphertext and tag.
#[pyfunction]
pub fn xaes_seal<'py>(
    py: Python<'py>,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    text: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let mut out = text.to_vec();
    let tag = Xaes::new(&exactly(key, "key")?).seal(&exactly::<NONCE>(nonce, "nonce")?, aad, &mut out);
    out.extend(tag);
    Ok(PyBytes::new(py, &out))
}

/// The plaintext, or None if it does not open.
#[pyfunction]
pub fn xaes_open<'py>(
    py: Python<'py>,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    text: &[u8],
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let mut out = text.to_vec();
    let plain = Xaes::new(&exactly(key, "key")?).open(&exactly::<NONCE>(nonce, "nonce")?, aad, &mut out);
    Ok(plain.ok().map(|plain| PyBytes::new(py, plain)))
}
