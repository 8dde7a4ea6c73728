//! Writes the first inputs into `tests/fuzz/corpus`; what lies there beside them stays.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    for (target, name, content) in nkcluster_fuzz::seeds::seeds() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(format!("seed-{name}")), content)?;
    }
    Ok(())
}
