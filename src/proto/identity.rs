//! The identity of a call: what makes a retry recognisable.

use serde::{Deserialize, Serialize};

use crate::types::Incarnation;

/// Who numbered a call, and the number. Kept over every retry of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CallIdentity {
    /// Incarnation of the handle that first sent the call.
    pub edge: Incarnation,
    /// Number of the call in that incarnation.
    pub number: u64,
}
