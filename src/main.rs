//! The process: an allocator that frees across threads cheaply, a runtime, a command, an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    notifier::cli::run().await
}
