//! Tests with processes: three replicas over one backend, a proxy on each of their connections, random
//! schedules of changes and validations, and faults. Every answer is checked against the changes that are
//! known to have been made.
//!
//! A short form is part of every test run, and `scripts/prove` runs the long one. A seed repeats the
//! schedules and the plan of faults, but not the timing.

#![expect(clippy::print_stdout, reason = "`scripts/prove` shows what was tried and measured")]

mod fleet;
mod history;
mod propagation;
mod proxy;
mod rewound;
mod schedule;

use std::time::Duration;

use keyvouch::domain::{Clock as _, SystemClock};

use self::fleet::{Fleet, Stack};
use self::schedule::Random;
use crate::process::program;

/// The maximum staleness that replicas are configured with, `cache.max_staleness`.
const BOUND: Duration = Duration::from_secs(1);

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => otherwise,
    }
}

/// Runs random schedules during the planned faults.
async fn prove(stack: Stack) {
    let schedules = number("KEYVOUCH_PROVE_SCHEDULES", 60);
    let at_once = number("KEYVOUCH_PROVE_AT_ONCE", 30);
    let seed = number("KEYVOUCH_PROVE_SEED", 20_261_124);
    let fleet = Fleet::start(stack).await;
    let faults = tokio::spawn(fleet.clone().faults(Random::new(seed)));
    let told = schedule::run_all(&fleet, schedules, at_once, seed).await;
    faults.abort();
    println!("{stack:?}, seed {seed}: {told}");
    assert!(told.violations.is_empty(), "seed {seed}: {:#?}", told.violations);
    // The test would show nothing if no validation could be decided.
    assert!(told.allowed > schedules && told.denied > schedules, "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_schedule_breaks_a_promise_over_postgres_and_redis() {
    prove(Stack::PostgresAndRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_schedule_breaks_a_promise_over_mariadb_and_redis() {
    prove(Stack::MariaDbAndRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_schedule_breaks_a_promise_over_redis() {
    prove(Stack::Redis).await;
}

/// Runs failovers that lose changes which replicas have made, loaded and cached, and not polled.
async fn rewind(stack: Stack) {
    let rewinds = number("KEYVOUCH_PROVE_REWINDS", 2);
    let seed = number("KEYVOUCH_PROVE_SEED", 20_261_124);
    let mut random = Random::new(seed);
    let fleet = Fleet::start(stack).await;
    for nth in 1..=rewinds {
        let told = rewound::lose_changes(&fleet, &mut random).await;
        println!("{stack:?}, seed {seed}, failover {nth}: {told}");
    }
    let faults = fleet.faults_in_logs();
    assert!(faults.is_empty(), "{faults}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lost_history_is_served_over_postgres_and_redis() {
    rewind(Stack::PostgresAndRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lost_history_is_served_over_mariadb() {
    rewind(Stack::MariaDbAlone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lost_history_is_served_over_mariadb_and_redis() {
    rewind(Stack::MariaDbAndRedis).await;
}

/// Checks that the checker reports a stale answer after the bound as a violation.
#[test]
fn a_stale_answer_is_a_violation() {
    history::tests_of_the_judge();
}

/// Checks that the faults have an effect.
#[test]
fn a_stepped_clock_is_the_one_that_servers_read() {
    let home = program::Home::with_clock();
    home.step_clock(-3_600);
    let server = home.serve(&[]);
    let created = home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    let created_at =
        created["key"]["createTime"].as_str().unwrap().parse::<prost_types::Timestamp>().unwrap();
    let behind = SystemClock.now().as_micros() / 1_000_000 - created_at.seconds;
    assert!((3_590..3_700).contains(&behind), "{behind} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_propagate() {
    let revocations = number("KEYVOUCH_PROVE_REVOCATIONS", 20);
    let rate = number("KEYVOUCH_PROVE_RATE", 200);
    for (stack, wakes) in [
        (Stack::PostgresAndRedis, "told by PostgreSQL and Redis"),
        (Stack::Redis, "told by Redis"),
        (Stack::MariaDbAlone, "polled every 500ms"),
    ] {
        let fleet = Fleet::start(stack).await;
        let times = propagation::measure(&fleet, revocations, rate).await;
        println!("{stack:?}, {wakes}, {rate} validations a second: {times}");
        assert_eq!(times.count(), usize::try_from(revocations * 2).unwrap());
    }
}
