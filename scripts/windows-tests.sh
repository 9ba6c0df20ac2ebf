#!/usr/bin/env bash
# Builds all tests for Windows (x86_64, GNU) and runs them under Wine: those of one process, those of many,
# and the storms against an identity provider that runs on this side.
#   scripts/windows-tests.sh [TEST-PROGRAM...]      all, or for example: processes storms
# Debian: apt-get install gcc-mingw-w64-x86-64-win32 wine wine64 nodejs npm (some 700 MB on the disk).
# With everything built it takes some four minutes, from nothing ten.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/target/windows
mkdir -p "$root"

# Wine knows the access of others only as the umask leaves it.
umask 077
unset DISPLAY
export WINEPREFIX=$root/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree=;mshtml='

# Its output must go to no pipe: services outlive it and would keep the pipe open.
if [ ! -e "$WINEPREFIX/done" ]; then
  wineboot --init >"$root/wineboot.log" 2>&1 </dev/null
  # Wine 8 lacks the library of the random numbers that Rust's std takes; the function is a loop over an
  # older one.
  cat >"$root/random.c" <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length)
{
    while (length > 0) {
        ULONG step = length < 65536 ? (ULONG)length : 65536;
        if (!SystemFunction036(buffer, step))
            return FALSE;
        buffer += step;
        length -= step;
    }
    return TRUE;
}
C
  x86_64-w64-mingw32-gcc -O2 -shared -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" \
    "$root/random.c" -ladvapi32
  wineserver --wait
  touch "$WINEPREFIX/done"
fi
pids=()
finish() {
  trap - EXIT
  [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || :
  wineserver --kill >/dev/null 2>&1 || :
}
trap finish EXIT
wineserver --persistent >/dev/null 2>&1 </dev/null

export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
scripts/cross-std.sh "$PWD/target/cross-std" test --locked -Zbuild-std=std,panic_unwind,test \
  --target x86_64-pc-windows-gnu --target-dir "$root/target" --profile windows --all-features --tests \
  --no-run --message-format=json-render-diagnostics >"$root/built.json"
mapfile -t programs < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$root/built.json")
[ ${#programs[@]} -gt 10 ] || { echo 'no test programs were built' >&2; exit 1; }

# One identity provider for each test of a storm; each ends when its input is closed.
provider=$root/oidc-provider
mkdir -p "$provider"
if ! cmp -s tests/oidc-provider/package-lock.json "$provider/package-lock.json" ||
  [ ! -e "$provider/node_modules/.package-lock.json" ]; then
  cp tests/oidc-provider/package.json tests/oidc-provider/package-lock.json "$provider"
  (cd "$provider" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
fi
cp tests/oidc-provider/provider.mjs "$provider"
rm -f "$provider/hold" "$provider"/*.out
mkfifo "$provider/hold"
exec 9<>"$provider/hold"
providers=''
for number in 1 2 3 4 5 6; do
  node "$provider/provider.mjs" <"$provider/hold" >"$provider/$number.out" 9>&- &
  pids+=($!)
done
for number in 1 2 3 4 5 6; do
  for _ in {1..300}; do
    ! grep -qs listening "$provider/$number.out" || break
    sleep 0.1
  done
  grep -q listening "$provider/$number.out" || { echo 'an identity provider did not start' >&2; exit 1; }
  providers+=" $(sed 's/listening //' "$provider/$number.out")"
done

passed=0 failed=()
for program in "${programs[@]}"; do
  name=$(basename "$program" .exe)
  name=${name%-*}
  if [ $# -gt 0 ] && ! printf '%s\n' "$@" | grep -qx "$name"; then continue; fi
  code=0
  TOKENSEAL_IDENTITY_PROVIDERS=$providers timeout 600 wine "$program" \
    >"$root/$name.log" 2>&1 </dev/null 9>&- || code=$?
  summary=$(grep '^test result' "$root/$name.log" | tail -n 1 || :)
  echo "$name: ${summary:-no summary}, exit code $code"
  number=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$root/$name.log" | tail -n 1)
  if [ "$code" -ne 0 ] || [ -z "$number" ]; then
    failed+=("$name")
    tail -n 80 "$root/$name.log"
  else
    passed=$((passed + number))
  fi
done
echo "under Wine: $passed tests passed, ${#failed[@]} programs failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ] && [ "$passed" -gt 0 ]
