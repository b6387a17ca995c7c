//! The registry as Prometheus text, version 0.0.4. prometheus-client writes OpenMetrics, in which a counter's family has its name
//! without `_total`; older readers take such a counter for one of no type.

use std::fmt;

use prometheus_client::{encoding::text::encode as encode_open_metrics, registry::Registry};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode_open_metrics(&mut text, registry)?;
    Ok(to_prometheus(&text))
}

fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        // HELP comes before TYPE, which alone tells a counter.
        let of_counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        let help = line.starts_with("# HELP ") && lines.peek().is_some_and(|next| of_counter(next));
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            [mark, word, name, rest] if help || of_counter(line) => {
                text.extend([mark, " ", word, " ", name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    #[test]
    fn counters_have_their_name_in_every_line() {
        let mut registry = Registry::default();
        registry.register("a", "What a counts", Counter::<u64>::default());
        registry.register("b_total", "kube-proxy has such a gauge", Gauge::<i64>::default());
        let expected = "# HELP a_total What a counts.\n# TYPE a_total counter\na_total 0\n\
            # HELP b_total kube-proxy has such a gauge.\n# TYPE b_total gauge\nb_total 0\n";
        assert_eq!(encode(&registry).unwrap(), expected);
    }
}
