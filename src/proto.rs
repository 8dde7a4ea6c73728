//! See the chapter in `src/docs`.

pub mod auth;
