//! The chapters of the documentation.

#[doc = include_str!("docs/architecture.md")]
pub mod architecture {}

#[doc = include_str!("docs/protocol.md")]
pub mod protocol {}

#[doc = include_str!("docs/job_classes.md")]
pub mod job_classes {}

#[doc = include_str!("docs/distributed_copy.md")]
pub mod distributed_copy {}

#[doc = include_str!("docs/operations.md")]
pub mod operations {}

#[doc = include_str!("docs/benches.md")]
pub mod benches {}

#[doc = include_str!("docs/coverage.md")]
pub mod coverage {}

#[doc = include_str!("docs/changelog.md")]
pub mod changelog {}
