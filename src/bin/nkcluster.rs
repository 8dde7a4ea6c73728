//! The command `nkcluster`; see `nkcluster_programs`.

fn main() -> std::process::ExitCode {
    nkcluster_programs::main()
}
