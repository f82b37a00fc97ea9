//! The mode of a server: whether the URL is for its kind of deployment.

/// The problem of a URL of a single server that leads to a node of a Cluster.
const IS_CLUSTER: &str = "the server is in cluster mode; use a redis-cluster: or rediss-cluster: URL";
/// The problem of a URL of a Cluster that leads to a server that is not in cluster mode.
pub(crate) const NO_CLUSTER: &str = "the server is not in cluster mode; use a redis: or rediss: URL";
/// The problem of a URL of a single server that leads to a Sentinel.
pub(crate) const IS_SENTINEL: &str =
    "the server is a Sentinel; use redis-sentinel://HOST:PORT?sentinelServiceName=NAME";

/// Returns the problem of a URL that does not fit the mode in `info`, the output of `INFO`.
pub(crate) fn mismatch(info: &str, is_for_cluster: bool) -> Option<&'static str> {
    let has = |fields: &[&str]| info.lines().any(|line| fields.contains(&line.trim_end()));
    // Redis and Valkey have different names for the mode, but the same one for that of a Cluster.
    let is_cluster = has(&["cluster_enabled:1"]);
    if has(&["redis_mode:sentinel", "server_mode:sentinel"]) {
        return Some(IS_SENTINEL);
    }
    match (is_cluster, is_for_cluster) {
        (true, false) => Some(IS_CLUSTER),
        (false, true) => Some(NO_CLUSTER),
        (true, true) | (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_fits_one_kind_of_url() {
        for (info, problems) in [
            ("redis_mode:standalone\r\ncluster_enabled:0\r\n", (None, Some(NO_CLUSTER))),
            ("redis_mode:cluster\r\ncluster_enabled:1\r\n", (Some(IS_CLUSTER), None)),
            ("server_mode:cluster\r\ncluster_enabled:1\r\n", (Some(IS_CLUSTER), None)),
            ("redis_mode:sentinel\r\n", (Some(IS_SENTINEL), Some(IS_SENTINEL))),
            ("server_mode:sentinel\r\n", (Some(IS_SENTINEL), Some(IS_SENTINEL))),
        ] {
            assert_eq!((mismatch(info, false), mismatch(info, true)), problems, "{info}");
        }
    }
}
