//! See the chapter in `src/docs`.
