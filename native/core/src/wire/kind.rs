//! What messages there are.

pub const HELLO: u32 = 1;
pub const APPEND: u32 = 2;
pub const APPEND_MANY: u32 = 3;
pub const READ: u32 = 4;
pub const GET: u32 = 5;
pub const TAIL: u32 = 6;
pub const CREDIT: u32 = 7;
pub const STOP: u32 = 8;
pub const STREAMS: u32 = 9;
pub const INFO: u32 = 10;
pub const PING: u32 = 11;
pub const VERIFY: u32 = 12;

pub const WELCOME: u32 = 65;
pub const RECEIPTS: u32 = 66;
pub const RECORDS: u32 = 67;
pub const END: u32 = 68;
pub const RESULT: u32 = 69;
pub const ERROR: u32 = 70;

/// The id of what is about the connection and not about a request.
pub const NOBODY: u32 = u32::MAX;
