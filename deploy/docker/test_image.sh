#!/bin/bash
# test_image.sh IMAGE [PROGRAM]: runs the image with podman, read-only and as another user than root, and checks what the
# documentation says of it. With PROGRAM (the same version, outside) it compares the times from exec to ready. Needs root
# and the Debian packages podman, runc, skopeo and curl; port 8000 must be free.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
image=$1
program=${2:-}
name=xgen-model-test-$$
work=$(mktemp -d)
run=(podman --runtime runc)
hardened=(--network=host --read-only --cap-drop=ALL --security-opt=no-new-privileges)

say() { printf '%s\n' "test_image: $*"; }
fail() { say "FAILED: $*" >&2; "${run[@]}" logs "$name" >&2 || true; exit 1; }
finish() {
  "${run[@]}" rm -f -v -t 2 "$name" >/dev/null 2>&1 || true
  "${run[@]}" volume rm -f "$name" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT
now() { date +%s%N; }
# until_ready BEGIN: milliseconds from BEGIN to the first 200 of /health/ready
until_ready() {
  local end=$((SECONDS + 60))
  until curl -sf -o /dev/null localhost:8000/health/ready; do [ $SECONDS -lt $end ] || return 1; sleep 0.002; done
  echo $((($(now) - $1) / 1000000))
}
median() { sort -n | sed -n "$((($1 + 1) / 2))p"; }

skopeo copy -q --dest-compress "containers-storage:localhost/${image#localhost/}" "dir:$work/image"
bytes=$(cat "$work"/image/* | wc -c)
say "compressed size: $((bytes / 1000)) kB"
[ "$bytes" -lt 60000000 ] || fail "the image is larger than 60 MB"
user=$("${run[@]}" image inspect -f '{{.Config.User}}' "$image")
case "$user" in 0* | "" | *[!0-9:]*) fail "the user '$user' is not numeric, or is root" ;; esac

"${run[@]}" run -d --name "$name" "${hardened[@]}" -v "$name:/var/cache/xgen-model" "$image" >/dev/null
until_ready "$(now)" >/dev/null || fail "not ready"
curl -sf localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
  -d '{"model": "xgen-demo", "messages": [{"role": "user", "content": "How do I add a model?"}]}' | grep -q models.yaml || fail "no answer"
say "answers as $user on a read-only root"
"${run[@]}" exec "$name" /usr/bin/xgen-model healthcheck || fail "healthcheck"
"${run[@]}" healthcheck run "$name" || fail "the image's HEALTHCHECK"
pid=$("${run[@]}" inspect -f '{{.State.Pid}}' "$name")
grep -q '^CapEff:.*0000000000000000' "/proc/$pid/status" || fail "has capabilities"
[ "$(stat -c %u "/proc/$pid")" = "${user%%:*}" ] || fail "runs as $(stat -c %u "/proc/$pid")"
say "resident memory: $(awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status") MiB"
begin=$(now)
"${run[@]}" stop -t 45 "$name" >/dev/null
say "stopped in $((($(now) - begin) / 1000000)) ms (server.drain_delay included)"
[ "$("${run[@]}" inspect -f '{{.State.ExitCode}}' "$name")" = 0 ] || fail "the stop was not clean"
"${run[@]}" rm -f -v "$name" >/dev/null

# memory.host is a share of the container's limit.
"${run[@]}" run -d --name "$name" "${hardened[@]}" --memory 512m "$image" >/dev/null
until_ready "$(now)" >/dev/null || fail "not ready within 512 MiB"
budget=$(curl -sf localhost:8000/metrics | sed -n 's/^xgen_memory_budget_bytes{memory="host"} //p')
[ "$budget" = $((512 * 1024 * 1024 * 8 / 10)) ] || fail "of 512 MiB, $budget bytes are the models'"
say "with --memory 512m the models have $((budget >> 20)) MiB"
"${run[@]}" rm -f -v -t 0 "$name" >/dev/null
# What Kubernetes puts into the environment of every pod beside a Service of this name does no harm.
links=(-e XGEN_MODEL_PORT=tcp://10.0.0.1:8000 -e XGEN_MODEL_SERVICE_HOST=10.0.0.1 -e XGEN_MODEL_SERVICE_PORT=8000)
[ "$("${run[@]}" run --rm "${hardened[@]}" "${links[@]}" "$image" check --print-effective)" = \
  "$("${run[@]}" run --rm "${hardened[@]}" "$image" check --print-effective)" ] || fail "the Service's variables change settings"
say "XGEN_MODEL_PORT changes nothing"

# Under the name by which a kubelet looks for it in what containerd has imported.
podman tag "$image" "docker.io/library/$image"
podman save -q -o "$work/image.tar" "docker.io/library/$image" 2>/dev/null
podman rmi "docker.io/library/$image" >/dev/null
tar -xOf "$work/image.tar" manifest.json | grep -qF "[\"docker.io/library/$image\"]" || fail "saved under another name"
say "is saved as docker.io/library/$image"

if [ -n "$program" ]; then
  runs=7
  for _ in $(seq $runs); do
    begin=$(now)
    "${run[@]}" run -d --name "$name" "${hardened[@]}" "$image" >/dev/null &
    until_ready "$begin" >>"$work/podman"
    wait
    # Of that, the time since the program itself was started.
    pid=$("${run[@]}" inspect -f '{{.State.Pid}}' "$name")
    ticks=$(cut -d ' ' -f 22 "/proc/$pid/stat")
    age=$(awk -v ticks="$ticks" -v hertz="$(getconf CLK_TCK)" '{printf "%d", ($1 - ticks / hertz) * 1000}' /proc/uptime)
    elapsed=$((($(now) - begin) / 1000000))
    echo $(($(tail -n 1 "$work/podman") - (elapsed - age))) >>"$work/inside"
    "${run[@]}" rm -f -v -t 0 "$name" >/dev/null
    begin=$(now)
    MODEL_CONFIG_PATH=$here/../config/models.yaml "$program" serve >/dev/null 2>&1 &
    until_ready "$begin" >>"$work/outside"
    kill -9 $! && wait $! 2>/dev/null || true
  done
  outside=$(median $runs <"$work/outside")
  inside=$(median $runs <"$work/inside")
  say "exec to ready, median of $runs: $outside ms outside, $inside ms inside; $(median $runs <"$work/podman") ms from calling podman"
  [ $((inside - outside)) -le 300 ] || fail "the container costs more than 0.3 s"
fi
say "passed"
