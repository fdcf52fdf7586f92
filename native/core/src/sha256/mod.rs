//! SHA-256 of many messages side by side.
//!
//! A `Kernel` is a way of doing it on this CPU. The one in use is the first that agrees with the
//! portable one on messages of every length around a block's edges; it is chosen at first use.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod feed;
mod kernel;
mod portable;
#[cfg(target_arch = "x86_64")]
mod shani;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use kernel::Kernel;

/// The eight words between two blocks.
pub type State = [u32; 8];

/// The state of a message that has not begun.
pub const START: State = portable::IV;

/// The rest of a message: `head` and `body` follow the `absorbed` bytes, whole blocks, that led
/// to `state`.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub state: &'a State,
    pub absorbed: u64,
    pub head: &'a [u8],
    pub body: &'a [u8],
}

struct Choice {
    kernel: Kernel,
    said: String,
}

fn choice() -> &'static Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    CHOICE.get_or_init(|| choose(Kernel::here(), |kernel| kernel.agrees(&Kernel::PORTABLE)))
}

/// The first that agrees, and which ones before it did not.
fn choose(kernels: Vec<Kernel>, agrees: impl Fn(&Kernel) -> bool) -> Choice {
    let mut refused = String::new();
    for kernel in kernels {
        if agrees(&kernel) {
            return Choice { kernel, said: format!("{}{refused}", kernel.name) };
        }
        refused += &format!(" (refused, wrong answers: {})", kernel.name);
    }
    Choice { kernel: Kernel::PORTABLE, said: format!("{}{refused}", Kernel::PORTABLE.name) }
}

/// The kernel in use, and any that were refused for a wrong answer.
pub fn kernel() -> &'static str {
    &choice().said
}

/// The state after a message's first 64 bytes.
pub fn midstate(prefix: &[u8; 64]) -> State {
    let mut state = START;
    portable::compress(&mut state, prefix);
    state
}

/// The hash of the parts, one after the other. Of three or more, all but the last are copied.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let joined;
    let (head, body): (&[u8], &[u8]) = match parts {
        [] => (&[], &[]),
        [body] => (&[], body),
        [head, body] => (head, body),
        [heads @ .., body] => {
            joined = heads.concat();
            (&joined, body)
        }
    };
    let mut out = [[0; 32]];
    many(&[Job { state: &START, absorbed: 0, head, body }], &mut out);
    out[0]
}

/// The hash of each job, in order. Messages of like length together keep all lanes busy longest.
pub fn many(jobs: &[Job], out: &mut [[u8; 32]]) {
    choice().kernel.many(jobs, out);
}

/// RFC 6962 leaf hashes: SHA-256(0x00 ‖ entry), one compression each.
pub fn leaves(entries: &[[u8; 54]], out: &mut [[u8; 32]]) {
    choice().kernel.leaves(entries, out);
}

/// RFC 6962 node hashes: SHA-256(0x01 ‖ left ‖ right) of each two neighbours in `hashes`.
pub fn nodes(hashes: &[[u8; 32]], out: &mut [[u8; 32]]) {
    choice().kernel.nodes(hashes, out);
}
