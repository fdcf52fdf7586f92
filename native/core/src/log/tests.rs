//! The log against a list of everything that was appended to it.

mod bounds;
mod bytes;
mod erasing;
mod forging;
mod packing;
mod published;
mod reading;
mod replaying;
mod retention;
mod scrubbing;
mod state;
mod texts;
mod together;
mod world;
