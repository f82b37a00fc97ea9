# Functions that the benchmarks share. Source this file in the root of the project, with `set -euo pipefail`.

readonly KEYVOUCH=${KEYVOUCH:-$PWD/target/release/keyvouch}
HZ=$(getconf CLK_TCK)
readonly HZ

# Installs the Debian package $2 if the command $1 does not exist.
need() {
    if command -v "$1" >/dev/null; then return; fi
    [ "$(id -u)" -eq 0 ] || { echo "install the package $2" >&2; exit 1; }
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

# Prints the CPU ticks (user and system) that process $1 has used.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }

# Prints the CPU ticks of process $1 and its children, including those that have ended.
family_ticks() {
    local total child
    total=$(sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 + $14 + $15 }')
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        # The child may have ended in the meantime. Its ticks are then already counted, or will be.
        total=$((total + $(ticks "$child" 2>/dev/null || echo 0)))
    done
    echo "$total"
}

# Prints the resident memory of process $1 in KiB.
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }

# Prints $1 ticks over $2 calls, in microseconds per call.
micros_a_call() { awk -v t="$1" -v n="$2" -v hz="$HZ" 'BEGIN { printf "%.1f", t / hz / n * 1e6 }'; }

# Builds the benchmark $1 and prints its path.
benchmark() {
    cargo build --release --locked --quiet --bench "$1" --message-format=json |
        python3 -c 'import json, sys
for line in sys.stdin:
    artifact = json.loads(line)
    if artifact.get("target", {}).get("name") == sys.argv[1]: print(artifact["executable"])' "$1"
}

# Waits until the server at $1 is healthy.
until_healthy() { until "$KEYVOUCH" healthcheck --addr "$1" >/dev/null 2>&1; do sleep 0.1; done; }

# Starts a private PostgreSQL in the folder $1 on port $2, and sets POSTGRES_PID.
start_postgres() {
    local bin as=()
    bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    # PostgreSQL refuses to run as root.
    if [ "$(id -u)" -eq 0 ]; then
        as=(runuser -u postgres --)
        install -d -o postgres -g postgres "$1"
    fi
    "${as[@]}" "$bin/initdb" -D "$1/data" -A trust -U postgres --no-instructions -E UTF8 --locale=C >/dev/null
    "${as[@]}" "$bin/pg_ctl" -D "$1/data" -w -l "$1/log" -o "-p $2 -k $1 -c listen_addresses=127.0.0.1" start >/dev/null
    POSTGRES_PID=$(head -n 1 "$1/data/postmaster.pid")
}

# Starts a private MariaDB in the folder $1 on port $2, and sets MARIADB_PID.
start_mariadb() {
    mkdir -p "$1"
    mariadb-install-db --no-defaults --user="$(id -un)" --auth-root-authentication-method=normal --skip-test-db \
        --datadir="$1/data" --tmpdir="$1" >/dev/null
    mariadbd --no-defaults --user="$(id -un)" --datadir="$1/data" --tmpdir="$1" --socket="$1/socket" --port="$2" \
        --bind-address=127.0.0.1 --skip-log-bin >"$1/log" 2>&1 &
    MARIADB_PID=$!
    until [ -S "$1/socket" ]; do sleep 0.1; done
}
