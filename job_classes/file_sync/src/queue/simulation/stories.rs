//! Single stories, each with one promise.
