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

# An upgrade keeps what the operator wrote.
inside dpkg -i /root/package.deb >/dev/null
grep -q renamed "$config" || fail "the upgrade overwrote models.yaml"
wait_for 30 inside xgen-model healthcheck --config /etc/xgen-model/models.yaml || fail "not ready after an upgrade"
say "keeps models.yaml in an upgrade"

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

inside dpkg --purge xgen-model >/dev/null 2>&1
inside test ! -e /etc/xgen-model -a ! -e /var/cache/xgen-model -a ! -e /usr/bin/xgen-model || fail "purge leaves something"
say "purged"
say "passed"
