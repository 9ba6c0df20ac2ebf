#!/bin/sh
# Runs a command on a private D-Bus session bus with a Secret Service of its own (gnome-keyring).
#
#   scripts/with-secret-service.sh [--locked | --no-collection | --no-service] COMMAND [ARGUMENT...]
#
# Without an option the default collection exists and is unlocked. --locked: it exists and is locked.
# --no-collection: the service runs and has none. --no-service: there is a bus and no service on it.
# The command gets SECRET_SERVICE_PID, for tests that stop or kill the service, and everything is
# gone when it ends. Debian: apt-get install dbus gnome-keyring libglib2.0-bin
set -eu

state=unlocked
case ${1:-} in
  --locked | --no-collection | --no-service) state=${1#--}; shift ;;
esac
[ $# -gt 0 ] || { sed -n '2,9p' "$0" >&2; exit 64; }

home=$(mktemp -d "${TMPDIR:-/tmp}/secret-service.XXXXXX")
exec 3<&0 # A background command would lose the standard input.
bus='' keyring='' command=''
finish() {
  trap - EXIT INT TERM
  for pid in $command $keyring $bus; do kill -CONT "$pid" 2>/dev/null || :; kill "$pid" 2>/dev/null || :; done
  wait 2>/dev/null || :
  rm -rf "$home"
}
trap finish EXIT
trap 'exit 130' INT TERM

wait_until() {
  tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "$0: gave up on: $*" >&2; cat "$home"/*.log >&2; exit 70; }
    sleep 0.02
  done
}

mkdir -m 700 "$home/data" "$home/run" "$home/control"
# No service directories, so that the bus starts nothing by itself: no prompter, no second service.
cat > "$home/bus.conf" <<EOF
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=$home/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
EOF
dbus-daemon --config-file="$home/bus.conf" --nofork --nopidfile --nosyslog </dev/null 2>"$home/bus.log" 3<&- &
bus=$!
wait_until test -S "$home/bus"
export DBUS_SESSION_BUS_ADDRESS="unix:path=$home/bus"

if [ "$state" != no-service ]; then
  unlock=--unlock
  [ "$state" != no-collection ] || unlock=
  # The password ends with the input: a line end would be part of it.
  printf test | HOME="$home" XDG_DATA_HOME="$home/data" XDG_RUNTIME_DIR="$home/run" \
    gnome-keyring-daemon --foreground --components=secrets --control-directory="$home/control" $unlock \
    >"$home/keyring.log" 2>&1 3<&- &
  keyring=$!
  wait_until gdbus call --session --dest org.freedesktop.DBus --object-path / \
    --method org.freedesktop.DBus.GetNameOwner org.freedesktop.secrets
  if [ "$state" = locked ]; then
    gdbus call --session --dest org.freedesktop.secrets --object-path /org/freedesktop/secrets \
      --method org.freedesktop.Secret.Service.Lock "['/org/freedesktop/secrets/collection/login']" >/dev/null
  fi
fi

export SECRET_SERVICE_PID="$keyring" SECRET_SERVICE_HOME="$home"
"$@" <&3 3<&- &
command=$!
code=0
wait "$command" || code=$?
command=''
exit $code
