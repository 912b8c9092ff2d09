#!/bin/sh
# Streams 10 GiB through the proxy, both ways at once, and fails if the memory of the process grows with it.
# Not part of the usual test run: it builds for release and moves 40 GiB over loopback.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --release --test proxy -- --ignored --nocapture ten_gibibytes_need_little_memory
