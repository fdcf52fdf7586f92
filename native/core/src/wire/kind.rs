//! What messages there are.

macro_rules! kinds {
    ($($name:ident = $number:literal)*) => {
        $(pub const $name: u32 = $number;)*

        /// All of them, by their names.
        pub const ALL: [(&str, u32); [$($number),*].len()] = [$((stringify!($name), $name)),*];
    };
}

kinds! {
    HELLO = 1
    APPEND = 2
    APPEND_MANY = 3
    READ = 4
    GET = 5
    TAIL = 6
    CREDIT = 7
    STOP = 8
    STREAMS = 9
    INFO = 10
    PING = 11
    VERIFY = 12
    METRICS = 13
    RETAIN = 14
    ERASE = 15
    ROTATE = 16
    IMPORT = 17

    WELCOME = 65
    RECEIPTS = 66
    RECORDS = 67
    END = 68
    RESULT = 69
    ERROR = 70
    PART = 71
}

/// The id of what is about the connection and not about a request.
pub const NOBODY: u32 = u32::MAX;
