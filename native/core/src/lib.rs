//! The pure core of Kimberlite: bytes in, bytes out. It has never heard of Python.
