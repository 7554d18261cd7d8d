//! The process: an allocator that frees across threads cheaply, a runtime, a command, an exit code.

use std::{process::ExitCode, thread, time::Duration};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often freed memory is given back to the system. The allocator does it as a part of allocating: after a storm
/// that has gone nothing allocates any more, and the process would stay as large as it was.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    thread::spawn(give_back);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system starts threads");
    let code = runtime.block_on(notifier::cli::run());
    // Without waiting for its threads: one may be blocked on a standard output that nobody reads.
    runtime.shutdown_background();
    code
}

/// On a thread of its own: whoever serves clients would stand still for it.
fn give_back() {
    loop {
        thread::sleep(GIVE_BACK_INTERVAL);
        // SAFETY: may be called at any time, from any thread; what is in use stays.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }
}
