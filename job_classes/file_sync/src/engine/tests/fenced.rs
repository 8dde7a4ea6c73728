//! What a revoked attempt does, at every step.
