//! Clients that stop reading, and what becomes of them and their events.

use super::costs::Moment;
use crate::report::Report;
use crate::scenario::Disturbance;

/// Who stalls: users spread over all, so that every process of clients has some. Nobody, if nobody is to.
pub fn stalled(disturbance: &Disturbance, sessions: usize) -> Vec<u32> {
    let Some(share) = disturbance.stalled_share else { return Vec::new() };
    let count = ((sessions as f64 * share.0).round() as usize).clamp(1, sessions);
    (0..count).map(|number| (number * sessions / count) as u32).collect()
}

/// What the disturbance did to the server, from before it to the last event. `unread`: events for those who stalled that
/// they did not read, each with so many bytes of data.
pub fn figures(report: &mut Report, (before, after): (&Moment, &Moment), stalled: usize, unread: u64, bytes: usize) {
    report.value("calm_rss_bytes", before.server.rss as f64);
    if stalled == 0 {
        return;
    }
    report.value("stalled_sessions", stalled as f64);
    report.value("stalled_unread_events", unread as f64);
    report.value("stalled_unread_kib_per_session", (unread * bytes as u64) as f64 / 1024.0 / stalled as f64);
    let (before, after) = (&before.server, &after.server);
    for (name, less, more) in [
        // Who reads is not closed, or the run has a fault.
        ("stalled_sessions_closed", after.connections(), before.connections()),
        ("slow_consumers_closed", before.slow, after.slow),
        ("dropped_events", before.dropped, after.dropped),
    ] {
        if let (Some(less), Some(more)) = (less, more) {
            report.value(name, more - less);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::meter::{Each, Reading};
    use crate::scenario::{Length, Share};

    #[test]
    fn stalled_readers_are_spread() {
        let disturbance = |share| Disturbance {
            after: Length(Duration::from_secs(1)),
            hot_user_per_second: None,
            stalled_share: share,
            stalled_per_second: None,
        };
        assert_eq!(stalled(&disturbance(Share::try_from(0.02).ok()), 100), [0, 50]);
        assert_eq!(stalled(&disturbance(Share::try_from(0.02).ok()), 10), [0]);
        assert_eq!(stalled(&disturbance(None), 10), [0; 0]);
    }

    #[test]
    fn what_became_of_them_is_what_the_server_says_more_than_before() {
        let moment = |rss, connections, slow, dropped| Moment {
            at: Instant::now(),
            server: Reading {
                rss,
                slow: Some(slow),
                dropped: Some(dropped),
                each: vec![Each { connections, ..Each::default() }],
                ..Reading::default()
            },
            store: None,
            received: 0,
            sent: 0,
            own: Duration::ZERO,
            clients: Vec::new(),
        };
        let mut report = Report::new("test");
        let (before, after) = (moment(7, Some(100.0), 1.0, 10.0), moment(9, Some(98.0), 2.0, 60.0));
        figures(&mut report, (&before, &after), 4, 120, 2048);
        let all = ["calm_rss_bytes", "stalled_sessions", "stalled_unread_kib_per_session", "stalled_sessions_closed"];
        assert_eq!(all.map(|name| report.get(name)), [7.0, 4.0, 60.0, 2.0].map(Some));
        let all = ["slow_consumers_closed", "dropped_events", "stalled_unread_events"];
        assert_eq!(all.map(|name| report.get(name)), [1.0, 50.0, 120.0].map(Some));
        let mut hot = Report::new("test");
        figures(&mut hot, (&before, &moment(9, None, 2.0, 60.0)), 0, 0, 2048);
        assert_eq!((hot.values().len(), hot.get("calm_rss_bytes")), (1, Some(7.0)));
    }
}
