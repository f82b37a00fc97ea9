//! Tests of the consistency guarantees with processes: three replicas over one backend, a proxy on each of
//! their connections, random schedules of changes and validations, and faults. Every response is checked
//! against the changes that are known to have been made.
//!
//! Each test run has a short form of these tests, and `scripts/prove` runs the long form. A seed repeats the
//! schedules and the plan of faults, but not the timing.

#![expect(clippy::print_stdout, reason = "`scripts/prove` prints the schedules and the measurements")]

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

/// Returns the number in the environment variable `name`, or `default` if that is unset.
fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

/// Runs random schedules during the planned faults.
async fn run_schedules(stack: Stack) {
    let schedules = number("KEYVOUCH_PROVE_SCHEDULES", 60);
    let concurrency = number("KEYVOUCH_PROVE_AT_ONCE", 30);
    let seed = number("KEYVOUCH_PROVE_SEED", 20_261_124);
    let fleet = Fleet::start(stack).await;
    let faults = tokio::spawn(fleet.clone().faults(Random::new(seed)));
    let outcome = schedule::run_all(&fleet, schedules, concurrency, seed).await;
    faults.abort();
    // A panic would have stopped the faults, and the test would have shown nothing.
    assert!(faults.await.unwrap_err().is_cancelled(), "the faults failed");
    println!("{stack:?}, seed {seed}: {outcome}");
    assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
    // The test shows nothing if no validation could be decided.
    assert!(outcome.allowed > schedules && outcome.denied > schedules, "{outcome}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schedules_over_postgres_and_redis_find_no_violation() {
    run_schedules(Stack::PostgresAndRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schedules_over_mariadb_and_redis_find_no_violation() {
    run_schedules(Stack::MariaDbAndRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schedules_over_redis_find_no_violation() {
    run_schedules(Stack::Redis).await;
}

/// Runs failovers that lose changes. Replicas have made, loaded and cached these changes, but not polled them.
async fn run_failovers(stack: Stack) {
    let rewinds = number("KEYVOUCH_PROVE_REWINDS", 2);
    let seed = number("KEYVOUCH_PROVE_SEED", 20_261_124);
    let mut random = Random::new(seed);
    let fleet = Fleet::start(stack).await;
    for nth in 1..=rewinds {
        let outcome = rewound::lose_changes(&fleet, &mut random).await;
        println!("{stack:?}, seed {seed}, failover {nth}: {outcome}");
    }
    let defects = fleet.defects_in_logs();
    assert!(defects.is_empty(), "{defects}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_lost_by_failovers_of_postgres_and_redis_are_not_served() {
    run_failovers(Stack::PostgresAndRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_lost_by_failovers_of_mariadb_are_not_served() {
    run_failovers(Stack::MariaDbAlone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_lost_by_failovers_of_mariadb_and_redis_are_not_served() {
    run_failovers(Stack::MariaDbAndRedis).await;
}

/// Checks that the fault has an effect.
#[test]
fn servers_read_the_stepped_clock() {
    let home = program::Home::with_clock();
    home.step_clock(-3_600);
    let server = home.serve(&[]);
    let created = home.create_key(&server, &[]);
    let created_at =
        created["key"]["createTime"].as_str().unwrap().parse::<prost_types::Timestamp>().unwrap();
    let behind = SystemClock.now().as_micros() / 1_000_000 - created_at.seconds;
    assert!((3_590..3_700).contains(&behind), "{behind} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_reach_every_replica_within_the_limit() {
    let revocations = number("KEYVOUCH_PROVE_REVOCATIONS", 20);
    let rate = number("KEYVOUCH_PROVE_RATE", 200);
    for (stack, trigger) in [
        (Stack::PostgresAndRedis, "notified by PostgreSQL and Redis"),
        (Stack::Redis, "notified by Redis"),
        (Stack::MariaDbAlone, "polled every 500ms"),
    ] {
        let fleet = Fleet::start(stack).await;
        let times = propagation::measure(&fleet, revocations, rate).await;
        println!("{stack:?}, {trigger}, {rate} validations a second: {times}");
        assert_eq!(times.count(), usize::try_from(revocations * 2).unwrap());
    }
}
