//! The process: an allocator that frees across threads cheaply, a runtime, a command, an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system starts threads");
    let code = runtime.block_on(notifier::cli::run());
    // Without waiting for its threads: one may be blocked on a standard output that nobody reads.
    runtime.shutdown_background();
    code
}
