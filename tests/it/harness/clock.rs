//! Nodes whose clock is wrong: `clock.c` in front of the C library.

use tempfile::TempDir;

use super::{
    command::COMMAND_DEADLINE,
    node::Builder,
    process::{Process, command},
};

/// What puts clocks off, compiled.
pub struct WrongClocks(TempDir);

impl WrongClocks {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (source, library) = (directory.path().join("clock.c"), directory.path().join("clock.so"));
        std::fs::write(&source, include_str!("clock.c")).expect("a writable directory");
        let mut compiler = command("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(library).arg(source).arg("-ldl");
        Process::run("cc", compiler, COMMAND_DEADLINE).await.ok();
        Self(directory)
    }

    /// A node whose wall clock is so many seconds ahead, or behind. Nothing that takes time takes longer or shorter.
    pub fn off_by(&self, seconds: i64, builder: Builder) -> Builder {
        let library = self.0.path().join("clock.so");
        let builder = builder.env("LD_PRELOAD", library.to_str().expect("UTF-8"));
        builder.env("CLOCK_OFFSET", &seconds.to_string())
    }
}
