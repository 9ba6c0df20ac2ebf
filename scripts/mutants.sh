#!/usr/bin/env bash
# Breaks the code of a module in every way that cargo-mutants knows, and lists the breaks that its fast
# tests let pass. None of those tests needs a keyring.
#   scripts/mutants.sh MODULE [OPTION of cargo-mutants...]
set -euo pipefail
cd "$(dirname "$0")/.."
module=$1
shift
files=("--file=src/$module.rs" "--file=src/$module/**" "--exclude=**/tests.rs")
# What these builds leave out: other systems, the keyring, the models.
for name in windows* keyring probe model; do files+=("--exclude=**/$name.rs"); done

# A break may allocate without end.
ulimit -v 8000000

# mutants FEATURES TEST...
mutants() {
  local features=(--no-default-features --features "$1") tests=()
  shift
  for test in "$@"; do tests+=(--test "$test"); done
  # The two that are left out take seconds, and look at what others look at as well.
  cargo mutants "${features[@]}" --profile mutants --minimum-test-timeout 10 --output target "${files[@]}" "${options[@]}" \
    -- --locked --lib "${tests[@]}" \
    -- --skip every_seal_has_a_nonce_of_its_own --skip the_published_accumulated_test
}

options=("$@")
case $module in
  cache)
    # Most are noticed by tests that compile fast; what is left, by those of the cache in a file.
    # 2 and 3: some were not noticed, or only by hanging.
    mutants '' fields token_cache msal_python dialects || case $? in 2 | 3) ;; *) exit 1 ;; esac
    options+=(--iterate)
    mutants file fields token_cache msal_python dialects persisted rotation refresh refresh_faults ;;
  store) mutants file persisted planted rotation refresh refresh_faults ;;
  refresh) mutants file,tokio refresh refresh_async refresh_faults ;;
  secret | seal | deadline | private_file | key_store | persisted) mutants file persisted planted rotation ;;
  *) echo "no fast tests are known for src/$module" >&2; exit 64 ;;
esac
