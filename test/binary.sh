#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# test/binary.sh: checks on the binary itself: what kind of file it is, what it needs to run, and what is inside. Wants
# build/butler_webhook. That the same sources give the same bytes is dist.sh's.
# shellcheck source=test/checks.sh
. "$(dirname "$0")/checks.sh"
binary=$PWD/build/butler_webhook

check_elf binary "$binary" X86-64 0x1000 680000

# What is inside.
licences=$("$binary" --licenses 2>"$tmp/err")
check "--licenses ends well" [ $? = 0 ]
check "--licenses says nothing on stderr" [ ! -s "$tmp/err" ]
for part in 'The butler_webhook authors' 'Apache License' 'The Mbed TLS Contributors' 'Kirill Simonov' 'Dave Gamble' \
    'Rich Felker' 'Mozilla Public License' 'certdata.txt' 'GCC Runtime Library Exception'; do
    check "--licenses names $part" has "$licences" "$part"
done
while read -r name version _; do
    case $name in
    '#'* | '') ;;
    musl-*) check "--licenses names musl's commit ${name#musl-}" has "$licences" "later commits.* ${name#musl-}" ;;
    *) check "--licenses names $name's version" has "$licences" "${version//[+.]/.}" ;;
    esac
done <vendor/lock

# An empty root: the binary, a configuration and a CA file, nothing else. The call goes out over TLS, which needs random numbers.
root=$tmp/root
in_root=()
if [ "$(id -u)" = 0 ]; then
    in_root=(chroot "$root")
elif unshare -r true 2>/dev/null; then
    in_root=(unshare -r chroot "$root")
fi
free_port() {
    python3 -c 'import socket, sys
s = socket.socket(type=int(sys.argv[1]))
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])' "$1"
}
if [ ${#in_root[@]} = 0 ]; then
    skip "runs in an empty root" "this system lets a normal user not change the root"
else
    mkdir "$root"
    cp "$binary" "$root/"
    udp=$(free_port 2)
    tls=$(free_port 1)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN=empty root' \
        -addext 'subjectAltName=IP:127.0.0.1' -keyout "$tmp/key.pem" -out "$root/ca.pem" 2>/dev/null
    cat >"$root/butler.yaml" <<YAML
Butler:
  udpServerConfig:
    enable: true
    serverHost: 127.0.0.1
    portTaskFailure: $udp
  webhookNotification:
    enable: true
    reloadTaskFailure:
      rateLimit: 0
      webhooks:
        - description: empty root
          webhookURL: https://127.0.0.1:$tls/
          httpMethod: GET
          cert: { enable: true, rejectUnauthorized: true, certCA: ca.pem }
YAML
    openssl s_server -accept "127.0.0.1:$tls" -key "$tmp/key.pem" -cert "$root/ca.pem" -www -quiet </dev/null >/dev/null 2>&1 &
    pids+=($!)
    check "--check in an empty root" "${in_root[@]}" /butler_webhook --check /butler.yaml
    "${in_root[@]}" /butler_webhook /butler.yaml >"$tmp/log" 2>"$tmp/err" &
    pid=$!
    pids+=("$pid")
    # wait_log PATTERN: up to ten seconds.
    # shellcheck disable=SC2317 # check calls it
    wait_log() {
        for _ in $(seq 100); do
            grep -qE "$1" "$tmp/log" && return
            sleep 0.1
        done
        cat "$tmp/log" "$tmp/err"
        return 1
    }
    check "listens in an empty root" wait_log 'listening on'
    printf '%s' '/scheduler-reload-failed/;srv;Task;App;LAB\user;a98fc5a8-ae75-4dc4-9b34-e4ae7a80d0a4;' \
        'f0e1d2c3-b4a5-4697-8879-6a5b4c3d2e1f;2026-11-22T09:30:00.000+01:00;ERROR;' \
        'c7e3a1b5-2d4f-4c6e-8a9b-0c1d2e3f4a5b;Reload failed' >"/dev/udp/127.0.0.1/$udp"
    check "calls over TLS from an empty root" wait_log 'delivered to failure 1 .*: 200 '
    kill -TERM "$pid" 2>/dev/null
    wait "$pid"
    check "stops well in an empty root" [ $? = 0 ]
    check "nothing on stderr in an empty root" [ ! -s "$tmp/err" ]
    state=./butler_webhook.state
    check "nothing was written to the empty root but the state directory" \
        [ "$(cd "$root" && find . -type f | LC_ALL=C sort | tr "\n" " ")" = \
        "./butler.yaml ./butler_webhook $state/journal $state/lock ./ca.pem " ]
fi

finish
