//! The process: an allocator that frees across threads cheaply, a runtime, a command, an exit code.

use std::{
    cell::Cell,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often freed memory is given back to the system. The allocator does it as a part of allocating: after a storm
/// that has gone nothing allocates any more, and the process would stay as large as it was.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    thread::spawn(give_back);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().on_thread_park(give_back_own).build().expect("the system starts threads");
    let code = runtime.block_on(notifier::cli::run());
    // Without waiting for its threads: one may be blocked on a standard output that nobody reads.
    runtime.shutdown_background();
    code
}

/// What a thread has allocated stays with it until it looks, also when all of it was freed by others: so a runtime's
/// thread looks before it rests.
fn give_back_own() {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    if LAST.get().is_none_or(|last| now.duration_since(last) >= GIVE_BACK_INTERVAL) {
        LAST.set(Some(now));
        // SAFETY: may be called at any time, from any thread; what is in use stays.
        unsafe { libmimalloc_sys::mi_collect(false) };
    }
}

/// All of what no thread has any more, on a thread of its own: whoever serves clients would stand still for it.
fn give_back() {
    loop {
        thread::sleep(GIVE_BACK_INTERVAL);
        // SAFETY: as above.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }
}
