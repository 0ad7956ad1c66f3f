#!/bin/sh
# run.sh SECONDS [udp|tun|join …]: fuzz each target for this time under AddressSanitizer, starting from the committed
# corpus. Crashing inputs and the growing corpus go to $FUZZ_STATE (default: target/fuzz). RUSTC_BOOTSTRAP lets a stable
# compiler accept the sanitizer flag.
set -eu
cd "$(dirname "$0")"
seconds=$1
shift
[ $# -gt 0 ] || set -- udp tun join

host=$(rustc -vV | sed -n 's/^host: //p')
state=${FUZZ_STATE:-../target/fuzz}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-../target/fuzz-build}"
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cpasses=sancov-module \
 -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --locked --release --target "$host"
for target; do
    mkdir -p "$state/$target"
    echo "==> fuzzing $target for $seconds s"
    "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$state/$target-" "$state/$target" "corpus/$target" 2>"$state/$target.log" || {
        tail -n 60 "$state/$target.log" >&2
        exit 1
    }
    grep -E 'stat::number_of_executed_units|stat::peak_rss' "$state/$target.log"
done
