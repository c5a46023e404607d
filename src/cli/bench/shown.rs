//! What a benchmark showed, as people read it.

use super::Output;

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(report) => f.write_str(&report.line()),
            Self::Disk(report) => write!(f, "{report}"),
            Self::Drained(drained) => write!(f, "{drained}"),
            Self::Spool(report) => write!(f, "{report}"),
            Self::Reload(reports) => {
                let lines = reports.iter().map(|report| {
                    format!(
                        "{:<16} {} reloads, closed to serving p50 {:.1} p99 {:.1} max {:.1} ms; meanwhile {:.0} msg/s, lost {} duplicated {}",
                        report.scenario, report.messages, report.latency_ms.p50, report.latency_ms.p99, report.latency_ms.max,
                        report.messages_per_second, report.lost, report.duplicated
                    )
                });
                f.write_str(&lines.collect::<Vec<_>>().join("\n"))
            }
            Self::Two(comparison) => write!(f, "{comparison}"),
            #[cfg(feature = "kafka")]
            Self::Recovery(recovery) => write!(f, "{recovery}"),
        }
    }
}
