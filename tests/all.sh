#!/usr/bin/env bash
# Everything that a change must pass: format, lints, docs, tests. Needs Rust and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step format && cargo fmt --all --check
step lints && cargo clippy --workspace --all-targets --release -- -D warnings
step documentation && RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --release
step tests && cargo test --workspace --release
