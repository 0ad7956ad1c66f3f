#!/bin/sh
# Build the crate for aarch64 and run its tests, under qemu unless this machine is aarch64. Arguments are passed to cargo
# test. Needs the target's standard library (rustup target add aarch64-unknown-linux-gnu) and the Debian packages
# gcc-aarch64-linux-gnu and qemu-user-static; exits 77 if something is missing.
set -eu
cd "$(dirname "$0")"
target=aarch64-unknown-linux-gnu
if [ "$(uname -m)" != aarch64 ]; then
    for program in aarch64-linux-gnu-gcc qemu-aarch64-static; do
        command -v "$program" >/dev/null 2>&1 || {
            echo "aarch64.sh: $program is not installed: apt-get install gcc-aarch64-linux-gnu qemu-user-static" >&2
            exit 77
        }
    done
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
fi
# shellcheck disable=SC2086 # several words
library=$("${RUSTC:-rustc}" ${RUSTFLAGS:-} --print target-libdir --target $target)
[ -n "$(ls "$library"/libstd-*.rlib 2>/dev/null)" ] || {
    echo "aarch64.sh: $library has no standard library for $target: rustup target add $target" >&2
    exit 77
}
exec cargo test --locked --package raven-dataplane --lib --target $target "$@"
