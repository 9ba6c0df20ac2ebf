#!/usr/bin/env bash
# Runs the tests that need root: power cuts on file systems of their own, full and read-only mounts,
# devices, files that belong to others. Without root it runs what it can of them, and says what was left
# out; with root, whatever is left out is a failure. Takes a minute, and a build.
set -euo pipefail
cd "$(dirname "$0")/.."
target=()
if [ "$(id -u)" = 0 ]; then
  export TOKENSEAL_REQUIRE_ROOT=1
  # Files of root in another user's target directory would be in the way of the next build.
  [ "$(stat -c %u .)" = 0 ] || target=(--target-dir target/root)
fi
exec cargo test --locked --all-features "${target[@]}" --test power_cut --test mounts --test planted --test hostile
