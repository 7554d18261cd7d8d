//! The process: an allocator that frees across threads cheaply, a runtime, a command, an exit code.

use std::{
    cell::Cell,
    process::ExitCode,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often a thread of the runtime gives freed memory back to the system.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().on_thread_park(give_back).build().expect("the system starts threads");
    let code = runtime.block_on(notifier::cli::run());
    // Without waiting for its threads: one may be blocked on a standard output that nobody reads.
    runtime.shutdown_background();
    code
}

/// The allocator gives memory back as a part of allocating: after a storm that has gone nothing allocates any more,
/// and the process would stay as large as it was. Threads without work park, and there is always something that wakes
/// one of them now and then.
fn give_back() {
    thread_local! {
        static LAST: Cell<Instant> = Cell::new(Instant::now());
    }
    if LAST.get().elapsed() >= GIVE_BACK_INTERVAL {
        LAST.set(Instant::now());
        // SAFETY: may be called at any time, from any thread; what is in use stays.
        unsafe { libmimalloc_sys::mi_collect(false) };
    }
}
