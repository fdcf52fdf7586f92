//! The Python face of the core: convert, release the GIL, map errors.
use pyo3::prelude::*;

mod batch;
mod buffer;
mod crypto;
mod errors;
mod histogram;
mod inbox;
mod limits;
mod load;
mod log;
mod messages;
mod meters;
mod moving;
mod pool;
mod records;
mod ring;
mod session;
mod values;
mod writer;

#[pymodule]
mod _native {
    #[pymodule_export]
    const LARGEST_BATCH: usize = kimberlite_core::record::LARGEST_BATCH;
    #[pymodule_export]
    const LARGEST_BATCH_BYTES: usize = kimberlite_core::record::LARGEST_BATCH_BYTES;
    #[pymodule_export]
    const HIGHEST: u64 = kimberlite_core::format::HIGHEST;
    #[pymodule_export]
    const HASHES_HEADER: usize = kimberlite_core::format::HASHES_HEADER;
    /// Of a stored record beside key, headers and payload, and of a header beside name and value.
    #[pymodule_export]
    const RECORD_HEADER: usize = kimberlite_core::format::RECORD_HEADER;
    #[pymodule_export]
    const HEADER_HEAD: usize = kimberlite_core::record::HEADER_HEAD;
    #[pymodule_export]
    const LONGEST_HEADER: usize = kimberlite_core::record::LONGEST_HEADER;
    #[pymodule_export]
    const LONGEST_PRODUCER: usize = kimberlite_core::record::LONGEST_PRODUCER;
    #[pymodule_export]
    const LONGEST_REASON: usize = kimberlite_core::system::LONGEST_REASON;
    #[pymodule_export]
    const KINDS: [(&str, u32); kimberlite_core::wire::kind::ALL.len()] = kimberlite_core::wire::kind::ALL;
    /// Bytes in front of a message's body.
    #[pymodule_export]
    const HEADER: usize = kimberlite_core::wire::HEADER;
    #[pymodule_export]
    const NOBODY: u32 = kimberlite_core::wire::kind::NOBODY;
    /// In front of the text of a frame of an export, and of a frame's body.
    #[pymodule_export]
    const FRAME_HEAD: usize = kimberlite_core::wire::frames::HEAD;
    #[pymodule_export]
    const LARGEST_FRAME: usize = kimberlite_core::wire::frames::LARGEST;
    #[pymodule_export]
    const OVERHEAD: usize = kimberlite_core::group::OVERHEAD;
    #[pymodule_export]
    use super::batch::{Batch, encode};
    #[pymodule_export]
    use super::buffer::Buffer;
    #[pymodule_export]
    use super::crypto::{blake3, derive, key_id, xaes_open, xaes_seal};
    #[pymodule_export]
    use super::histogram::Histogram;
    #[pymodule_export]
    use super::inbox::Inbox;
    #[pymodule_export]
    use super::limits::Limits;
    #[pymodule_export]
    use super::load::Swarm;
    #[pymodule_export]
    use super::log::{
        Frame, Log, Packing, Proving, Resume, Salvage, Scrub, Sealed, Search, Segment, closes, encode_repair,
        header_damage,
    };
    #[pymodule_export]
    use super::messages::{decode_append, decode_receipts, encode_append, encode_message};
    #[pymodule_export]
    use super::meters::Meters;
    #[pymodule_export]
    use super::moving::{decode_import, decode_runs, encode_import, open_frame, pick_runs, seal_frame};
    #[pymodule_export]
    use super::pool::{Pool, Request};
    #[pymodule_export]
    use super::records::decode_records;
    #[pymodule_export]
    use super::ring::Ring;
    #[pymodule_export]
    use super::session::Session;
    #[pymodule_export]
    use super::values::{pack, unpack};
    #[pymodule_export]
    use super::writer::{Writer, file_system, punch};
}
