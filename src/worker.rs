//! See the chapter in `src/docs`.

pub mod adoption;
pub mod backoff;
pub mod journal;
pub mod outcomes;
pub mod tasks;
