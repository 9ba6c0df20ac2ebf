#!/bin/sh
# Runs cargo with a compiler that comes with its std's sources, so that std can be built for systems that
# this machine's own toolchain has no std for. Debian's packages, unpacked in a directory of their own;
# nothing is installed.
#   scripts/cross-std.sh DIRECTORY CARGO-ARGUMENT...
set -eu
directory=$1
shift
if [ ! -e "$directory/done" ]; then
  mkdir -p "$directory/packages" "$directory/bin"
  (
    cd "$directory/packages"
    rm -f ./*.deb
    apt-get update -q
    depends() { apt-cache depends "$1" | awk -v on="$2" '$1 ~ /Depends:/ && $2 ~ on { print $2; exit }'; }
    std=$(depends libstd-rust-web-dev '^libstd-rust-web-')
    apt-get download -q rustc-web rust-web-src rust-web-clippy libstd-rust-web-dev "$std" "$(depends "$std" '^libllvm')"
    for package in *.deb; do dpkg -x "$package" ..; done
  ) >&2
  for tool in rustc rustdoc clippy-driver cargo-clippy; do
    cat > "$directory/bin/$tool" <<TOOL
#!/bin/sh
LD_LIBRARY_PATH=$directory/usr/lib/x86_64-linux-gnu exec "$directory/usr/bin/$tool" "\$@"
TOOL
    chmod +x "$directory/bin/$tool"
  done
  # Debian 12 without its security updates has one that is too old.
  "$directory/bin/rustc" --version | grep -Eq ' 1\.(89|9[0-9]|[1-9][0-9][0-9])\.' ||
    { "$directory/bin/rustc" --version; echo 'Rust 1.89 or later is needed' >&2; exit 1; }
  touch "$directory/done"
fi
# Building std is an unstable option of cargo's; this lets the stable one take it.
export RUSTC_BOOTSTRAP=1
export RUSTC="$directory/bin/rustc" RUSTDOC="$directory/bin/rustdoc" PATH="$directory/bin:$PATH"
case $1 in
  # Cargo might find another one.
  clippy) exec cargo-clippy "$@" ;;
  *) exec cargo "$@" ;;
esac
