#!/usr/bin/env bash
# Runs each fuzz target for a number of seconds, from the corpus in the repository.
#   scripts/fuzz.sh SECONDS [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=$1
shift
[ $# -gt 0 ] || set -- envelope unified_json key_entry token_response
# The sanitizer's flags are unstable; this lets the stable compiler take them.
export RUSTC_BOOTSTRAP=1
for target in "$@"; do
  found=$(mktemp -d)
  # Each run of `key_entry` ends a thread, which the leak check may meet on its way out.
  leaks=1
  [ "$target" = key_entry ] && leaks=0
  export ASAN_OPTIONS="detect_leaks=$leaks"
  echo "== $target"
  if ! cargo fuzz run "$target" "$found" "corpus/$target" -- \
    -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=4096 -detect_leaks="$leaks" \
    >"$found.log" 2>&1; then
    tail -n 60 "$found.log"
    exit 1
  fi
  grep '^Done' "$found.log"
  rm -rf "$found" "$found.log"
done
