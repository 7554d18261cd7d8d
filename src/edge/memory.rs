//! How much memory there is and how much is used, so that a node refuses clients before the kernel ends it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Shared, metric};

/// How often memory is looked at: a connect storm of 2,000 a second needs some 10 MiB meanwhile.
const LOOK: Duration = Duration::from_millis(500);
/// From this part of the limit on nobody is let in: the rest is for those who are there.
const FULL: f64 = 0.9;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Whose memory is counted against the limit.
enum Limit {
    /// All of the control group's, as the kernel does before it ends somebody.
    ControlGroup(ControlGroup, u64),
    /// This process'.
    Process(u64),
}

impl Limit {
    fn new(configured: u64) -> Option<Self> {
        if configured > 0 {
            return Some(Self::Process(configured));
        }
        let group = ControlGroup::own().and_then(|group| Some((group.max()?, group)));
        group.map(|(max, group)| Self::ControlGroup(group, max)).or_else(|| machine_bytes().map(Self::Process))
    }

    /// How much is used, 0 to 1.
    fn used(&self) -> Option<f64> {
        let (used, limit) = match self {
            Self::ControlGroup(group, limit) => (group.used()?, *limit),
            Self::Process(limit) => (process_bytes()?, *limit),
        };
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        Some(used as f64 / limit.max(1) as f64)
    }
}

/// A control group of version 2.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// This process'. In a container that is the root, as the container sees it.
    fn own() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_matches('/');
        let dirs = [Path::new(CGROUPS).join(own), CGROUPS.into()];
        dirs.into_iter().find(|dir| dir.join("memory.max").is_file()).map(Self)
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    /// `None` also where it has no limit.
    fn max(&self) -> Option<u64> {
        self.read("memory.max")?.trim().parse().ok()
    }

    /// Without the files that the kernel keeps only as long as nobody needs the room.
    fn used(&self) -> Option<u64> {
        let current: u64 = self.read("memory.current")?.trim().parse().ok()?;
        let stat = self.read("memory.stat")?;
        let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse().ok()?;
        Some(current.saturating_sub(files))
    }
}

/// Keeps admission told, for as long as it is polled.
pub(super) async fn watch(shared: Arc<Shared>) {
    let limit = Limit::new(shared.config.memory_bytes_max);
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        // Systems without these files have no limit that could be known.
        let Some(used) = limit.as_ref().and_then(Limit::used) else { continue };
        metric::memory(used);
        shared.admission.memory_full(used >= FULL);
    }
}

/// The memory that this process may use: its control group's limit, else the machine's.
pub(super) fn available_bytes() -> Option<u64> {
    ControlGroup::own().and_then(|group| group.max()).or_else(machine_bytes)
}

fn machine_bytes() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

fn process_bytes() -> Option<u64> {
    kib(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The bytes of a line such as `VmRSS:   1234 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix(name))?.trim().split(' ').next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_kib() {
        assert_eq!(kib("VmPeak:\t9 kB\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(kib("VmRSS:\n", "VmRSS:"), None);
    }

    #[test]
    fn a_control_group_counts_what_the_kernel_cannot_drop() {
        let dir = tempfile::tempdir().unwrap();
        let group = ControlGroup(dir.path().to_owned());
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.max", "max\n");
        assert_eq!(group.max(), None);
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 10\ninactive_file 400\nactive_file 100\n");
        assert_eq!(group.max(), Some(1000));
        let used = Limit::ControlGroup(group, 1000).used().unwrap();
        assert!((used - 0.5).abs() < 1e-9, "{used}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_some_of_what_there_is() {
        let used = Limit::new(0).unwrap().used().unwrap();
        assert!(used > 0.0 && used < 1.0, "{used}");
        assert!(Limit::new(4096).unwrap().used().unwrap() > 1.0);
    }
}
