//! See the chapter in `src/docs`.

pub mod admission;
pub mod establish;
