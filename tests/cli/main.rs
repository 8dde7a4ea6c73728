//! `nkcluster`
