//! Job class `files`.
