//! See the chapter in `src/docs`.

pub mod entry;
pub mod identity;
