//! Statistics of the machine, measured on the blocking pool.

use std::sync::Arc;
use std::time::Duration;

use sysinfo::{Disk, Disks, MemoryRefreshKind, RefreshKind, System};

use super::shared::Shared;
use crate::connection::unix_time_ms;
use crate::types::{DiskStats, NodeStats};

/// The first measurement (checklist N5.1); the others follow every `stats_time`.
const FIRST: Duration = Duration::from_secs(1);
/// Disks that are told.
const DISKS_MAX: usize = 32;

pub(super) async fn run(shared: Arc<Shared>) {
    let mut pause = FIRST.min(shared.config.stats_time);
    loop {
        tokio::time::sleep(pause).await;
        let measured = tokio::task::spawn_blocking(measure).await;
        match measured {
            Ok(mut stats) => {
                let mut state = shared.lock();
                stats.tasks = u32::try_from(state.tasks.len()).unwrap_or(u32::MAX);
                state.stats = Some(stats);
                drop(state);
                shared.publish();
            }
            Err(error) => tracing::warn!(%error, "the machine could not be measured"),
        }
        pause = shared.config.stats_time;
    }
}

/// What the system does not tell is zero or empty.
fn measure() -> NodeStats {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let (memory_total, memory_used) = System::new_with_specifics(memory).map_or((0, 0), |system| {
        let total = system.total_memory();
        (total, total.saturating_sub(system.available_memory()))
    });
    let (load1, load5, load15) = System::load_average().map_or((0.0, 0.0, 0.0), |load| (load.one, load.five, load.fifteen));
    let disks = Disks::new_with_refreshed_list().map(|disks| disks.iter().take(DISKS_MAX).map(disk_stats).collect());
    NodeStats {
        cpus: std::thread::available_parallelism().map_or(0, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        load1,
        load5,
        load15,
        memory_total,
        memory_used,
        disks: disks.unwrap_or_default(),
        tasks: 0,
        os: std::env::consts::OS.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms: unix_time_ms(),
    }
}

fn disk_stats(disk: &Disk) -> DiskStats {
    let size = disk.total_space();
    let used = size.saturating_sub(disk.available_space());
    let used_percent = if size == 0 { 0.0 } else { (used as f64 * 1000.0 / size as f64).round() / 10.0 };
    DiskStats { path: disk.mount_point().display().to_string(), size, used_percent }
}
