//! `nkcluster-node`
