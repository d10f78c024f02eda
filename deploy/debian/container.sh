# A bare Debian 12 with a running systemd, in a container by debootstrap and systemd-nspawn; for the test scripts beside
# this file, which source it. Needs root and the Debian packages debootstrap and systemd-container; the container shares
# the machine's network and control group: one at a time, and port 8000 must be free. TMPDIR says where it goes.
root=$(mktemp -d)
chmod 755 "$root"  # it is `/` there, for every user

inside() { nsenter -t "$init" -m -u -i -p -C -- "$@"; }
say() { printf '%s\n' "$(basename "$0" .sh): $*"; }
fail() { say "FAILED: $*" >&2; inside journalctl --no-pager -u xgen-model -n 30 >&2 || true; exit 1; }
# wait_for SECONDS COMMAND…
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}
finish() {
  if [ -n "${init:-}" ] && kill -0 "$init" 2>/dev/null; then
    kill -s RTMIN+4 "$init"  # systemd's signal for poweroff
    wait_for 60 sh -c "! kill -0 $nspawn" || kill -9 "$init"
    wait "$nspawn" || true
  fi
  rm -rf --one-file-system "$root"
}
trap finish EXIT

# install PACKAGES [MIRROR]: lays the system down in $root. PACKAGES are separated by commas.
install() {
  say "debootstrap"
  debootstrap --variant=minbase --include="systemd,systemd-sysv,init-system-helpers,adduser,ca-certificates,$1" \
    bookworm "$root" ${2:+"$2"} >/dev/null
}

boot() {
  say "boot"
  systemd-nspawn -q -D "$root" -b --register=no --keep-unit --console=pipe </dev/null >/dev/null 2>&1 &
  nspawn=$!
  wait_for 60 pgrep -P "$nspawn"
  init=$(pgrep -P "$nspawn")
  wait_for 300 inside systemctl is-active basic.target || fail "the container does not boot"
}
