#!/bin/bash
# test_readme.sh [MIRROR]: runs the commands of README's "From zero to production", as they stand there, in this checkout's
# last commit on a bare Debian 12 with a running systemd (see container.sh). Takes 10 minutes and 2 GB.
set -euo pipefail
checkout=$(readlink -f "$(dirname "$0")/../..")
. "$checkout/deploy/debian/container.sh"

install git "${1:-}"
git clone -q "$checkout" "$root/root/xgen-model"
# The machine's own way to Debian's packages.
cp -rL /etc/apt/sources.list.d/debian.sources "$root/etc/apt/sources.list.d/" 2>/dev/null && rm -f "$root/etc/apt/sources.list"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
boot

# The indented lines of the section are what a reader types.
sed -n '/^## From zero to production/,/^## /s/^    //p' "$checkout/README.md" >"$root/root/commands"
[ -s "$root/root/commands" ] || fail "README has no such section"
say "runs $(wc -l <"$root/root/commands") lines of README.md"
inside env HOME=/root bash -c 'cd /root/xgen-model && bash -euo pipefail /root/commands' 2>&1 | tee "$root/root/output" ||
  fail "a command failed"

grep -q '"object":"chat.completion"' "$root/root/output" || fail "no answer over TLS with the key"
[ "$(curl -sko "$root/root/denied" -w '%{http_code}' https://localhost:8000/v1/models)" = 401 ] || fail "answers without a key"
inside systemctl is-active xgen-model >/dev/null || fail "the service does not run"
inside systemctl is-enabled xgen-model >/dev/null || fail "the service does not start with the machine"
inside journalctl --no-pager -u xgen-model | grep -q '"api_key":"first-team"' || fail "the log does not name the key"
say "passed"
