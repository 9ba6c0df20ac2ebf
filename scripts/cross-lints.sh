#!/bin/sh
# Clippy with warnings denied and all features for other systems: Windows by GNU with its tests, and what
# this machine can neither link nor run for, Windows by MSVC and macOS, the library alone (the tests need
# crates that compile C for the target).
set -eu
cd "$(dirname "$0")/.."
lint() {
  echo "== $1"
  scripts/cross-std.sh "$PWD/target/cross-std" clippy --locked --target "$1" --target-dir target/cross \
    --all-features --quiet "$2" "$3" -- -D warnings
}
lint x86_64-pc-windows-gnu -Zbuild-std=std,panic_unwind,test --tests
for target in x86_64-pc-windows-msvc aarch64-pc-windows-msvc aarch64-apple-darwin x86_64-apple-darwin; do
  lint "$target" -Zbuild-std=std,panic_unwind --lib
done
