//! The pure core of Kimberlite: bytes in, bytes out. It has never heard of Python.
pub mod format;
pub mod group;
pub mod histogram;
pub mod index;
pub mod keys;
pub mod load;
pub mod log;
pub mod producers;
pub mod record;
pub mod salts;
pub mod salvage;
pub mod sha256;
pub mod system;
pub mod tree;
pub mod wire;
