//! Both programs.
fn main() {}
