#!/bin/sh
# Build the crate for aarch64 and run its tests there, under qemu unless this is such a machine already. Arguments go to
# cargo test. Wants that target's standard library (rustup target add aarch64-unknown-linux-gnu) and, of Debian's
# packages, gcc-aarch64-linux-gnu and qemu-user-static.
set -eu
cd "$(dirname "$0")"
target=aarch64-unknown-linux-gnu
if [ "$(uname -m)" != aarch64 ]; then
    for program in aarch64-linux-gnu-gcc qemu-aarch64-static; do
        command -v "$program" >/dev/null 2>&1 || {
            echo "aarch64.sh: no $program here: apt-get install gcc-aarch64-linux-gnu qemu-user-static" >&2
            exit 77
        }
    done
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
fi
# shellcheck disable=SC2086 # several words
library=$("${RUSTC:-rustc}" ${RUSTFLAGS:-} --print target-libdir --target $target)
[ -n "$(ls "$library"/libstd-*.rlib 2>/dev/null)" ] || {
    echo "aarch64.sh: no standard library for it ($library): rustup target add $target" >&2
    exit 77
}
exec cargo test --locked --package raven-dataplane --lib --target $target "$@"
