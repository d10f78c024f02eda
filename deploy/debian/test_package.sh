#!/bin/bash
# test_package.sh PACKAGE.deb [MIRROR]: installs the package on a bare Debian 12 with a running systemd (see container.sh)
# and checks the service's life there. Takes a few minutes and 400 MB.
set -euo pipefail
package=$(readlink -f "$1")
. "$(dirname "$(readlink -f "$0")")/container.sh"
active() { inside systemctl is-active xgen-model || true; }

install curl "${2:-}"
cp "$package" "$root/root/package.deb"
boot

inside dpkg -i /root/package.deb >/dev/null
[ "$(active)" = active ] || fail "installing does not start the service"
wait_for 30 inside xgen-model healthcheck --config /etc/xgen-model/models.yaml || fail "not ready"
say "installed, started, ready"
inside curl -sf localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
  -d '{"model": "xgen-demo", "messages": [{"role": "user", "content": "How do I add a model?"}]}' | grep -q models.yaml || fail "no answer"
say "answers"

pid=$(inside systemctl show -P MainPID xgen-model)
[ "$(inside stat -c %U "/proc/$pid")" = xgen-model ] || fail "runs as another user"
inside grep -q '^NoNewPrivs:.*1' "/proc/$pid/status" || fail "may gain privileges"
inside grep -q '^CapBnd:.*0000000000000000' "/proc/$pid/status" || fail "has capabilities"
inside nsenter -t "$pid" -m findmnt -no OPTIONS -T /usr | grep -q '^ro' || fail "/usr can be written"
say "runs as its own user, without capabilities, on a read-only system: $(inside systemd-analyze security xgen-model | tail -n 1)"

# A reload takes up a new list; one with a fault changes nothing.
config=$root/etc/xgen-model/models.yaml
sed -i 's/aliases: \[default\]/aliases: [renamed]/' "$config"
inside systemctl reload xgen-model
wait_for 30 inside sh -c 'curl -sf localhost:8000/v1/models | grep -q renamed' || fail "not reloaded"
[ "$(inside systemctl show -P MainPID xgen-model)" = "$pid" ] || fail "a reload restarted the service"
say "reloads"

inside systemctl kill -s KILL xgen-model
wait_for 30 inside xgen-model healthcheck --config /etc/xgen-model/models.yaml || fail "not restarted after kill -9"
say "is restarted after kill -9"

before=$(inside systemctl show -P MainPID xgen-model)
# An upgrade keeps what the operator wrote, also where the new version ships another file.
dpkg-deb -R "$package" "$root/root/next"
echo '# of the next version' >>"$root/root/next/etc/xgen-model/models.yaml"
sed -i 's/^Version: .*/&+next/' "$root/root/next/DEBIAN/control"
dpkg-deb --root-owner-group -b "$root/root/next" "$root/root/next.deb" >/dev/null
inside dpkg --force-confold -i /root/next.deb >/dev/null 2>&1 || fail "the upgrade does not end well"
case "$(inside dpkg-query -W -f '${Version}' xgen-model)" in *+next) ;; *) fail "not upgraded" ;; esac
grep -q renamed "$config" || fail "the upgrade overwrote models.yaml"
grep -q 'of the next version' "$config.dpkg-dist" || fail "the next version shipped no other models.yaml"
wait_for 30 inside xgen-model healthcheck --config /etc/xgen-model/models.yaml || fail "not ready after an upgrade"
[ "$(inside systemctl show -P MainPID xgen-model)" != "$before" ] || fail "the upgrade left the old program running"
say "keeps models.yaml in an upgrade that ships another"

echo 'nonsense: 1' >>"$config"
inside systemctl restart xgen-model || true
wait_for 30 inside systemctl is-failed xgen-model || fail "a wrong configuration does not fail"
inside journalctl --no-pager -u xgen-model -n 20 | grep -q 'nonsense: unknown key' || fail "the journal does not name the wrong key"
sed -i '$d' "$config"
inside systemctl restart xgen-model
say "stays down, with the reason, on a wrong configuration"

begin=$(date +%s%N)
inside systemctl stop xgen-model
say "stopped in $((($(date +%s%N) - begin) / 1000000)) ms (server.drain_delay included)"
[ "$(inside systemctl show -P Result xgen-model)" = success ] || fail "the stop was not clean"

# What the operator wrote beside models.yaml is not the package's.
echo 'keys: []' >"$root/etc/xgen-model/keys.yaml"
inside dpkg --purge xgen-model >/dev/null 2>&1
[ "$(ls "$root/etc/xgen-model")" = keys.yaml ] || fail "purge took the operator's keys, or left something of its own"
inside test ! -e /var/cache/xgen-model -a ! -e /var/lib/xgen-model -a ! -e /usr/bin/xgen-model -a ! -e /usr/share/doc/xgen-model || fail "purge leaves something"
say "purged"
say "passed"
