#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test/install.sh GROUP: installs what that group of make's targets needs, by name with apt-get, as root or with sudo; without
# apt-get, says what is missing. Does nothing if all is there. A word is PACKAGE:COMMAND if the command is enough, else the
# package is asked for.
set -eu

compiler=${CC:-gcc}
build="gcc:${compiler%% *} libc6-dev make:make binutils:readelf mawk:awk tar:tar gzip:gzip bzip2:bzip2 xz-utils:xz patch:patch"
arm64='gcc-aarch64-linux-gnu:aarch64-linux-gnu-gcc libc6-dev-arm64-cross'
windows='gcc-mingw-w64-x86-64-win32:x86_64-w64-mingw32-gcc binutils-mingw-w64-x86-64:x86_64-w64-mingw32-windres'
case ${1:-} in
build) words=$build ;;
demo) words="$build python3:python3 openssl:openssl" ;;
test) words="$build clang:clang libclang-rt-dev clang-format:clang-format clang-tidy:clang-tidy llvm:llvm-symbolizer
    shellcheck:shellcheck python3-flake8 python3-pytest python3-pytest-xdist python3-pytest-timeout python3-pytest-rerunfailures
    openssl:openssl nginx:nginx webhook:webhook procps:ps iproute2:ip" ;;
bench) words="$build libssl-dev python3:python3 openssl:openssl gnuplot-nox:gnuplot" ;;
peers) words='prometheus-alertmanager:prometheus-alertmanager prometheus:promtool python3-jsonschema squid:squid
    tinyproxy:tinyproxy curl:curl' ;;
npm) words='python3-jsonschema nodejs:node npm:npm' ;;
arm64) words="$build $arm64" ;;
windows) words="$build $windows" ;;
archives) words="$build $arm64 $windows git:git python3:python3 zip:zip" ;;
wine) words='wine:wine wine64' ;;
vendor) words="$build python3:python3 git:git" ;;
emulator) words="qemu-user-static:qemu-aarch64-static" ;;
dist) words="python3:python3 openssl:openssl unzip:unzip qemu-user-static:qemu-aarch64-static wine:wine wine64" ;;
*) echo "usage: test/install.sh build|demo|test|peers|npm|bench|arm64|windows|archives|wine|vendor|emulator|dist" >&2 && exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin

# Sets missing to the packages, and tools to the commands, that are not there. Without dpkg only commands can be looked for.
look() {
    missing=
    tools=
    for word in $words; do
        package=${word%%:*}
        case $word in
        *:*) command -v "${word##*:}" >/dev/null && continue ;;
        *)
            command -v dpkg-query >/dev/null || continue
            dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -q '^installed$' && continue
            ;;
        esac
        missing="$missing $package"
        tools="$tools ${word##*:}"
    done
}

look
[ -n "$missing" ] || exit 0
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
for tool in apt-get $sudo; do
    command -v "$tool" >/dev/null || {
        echo "missing:$tools
There is no $tool here to install them with. Install them and run make again; Debian's packages are$missing." >&2
        exit 1
    }
done

# One after the other: those of make -j, and those of all folders of this machine. Only one at a time has its policy-rc.d.
lock=/var/lock/butler_webhook-install
[ -e $lock ] || $sudo install -m 644 /dev/null $lock
exec 9<$lock
flock 9
look
[ -n "$missing" ] || exit 0
echo "installing$missing"

# The daemons are wanted as programs that tests start on their own ports, not as services of this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '$sudo rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
fi
# An update may fail where another one runs; what counts is the installation.
# shellcheck disable=SC2086
said=$({ $sudo apt-get -q update || :; } 2>&1 && $sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing 2>&1) || {
    echo "$said" | tail -n 20 >&2
    echo "apt-get could not install:$missing" >&2
    exit 1
}
for service in nginx webhook prometheus prometheus-node-exporter prometheus-alertmanager squid tinyproxy; do
    case " $missing " in
    *" $service "*) $sudo systemctl -q disable $service 2>/dev/null || $sudo update-rc.d $service disable 2>/dev/null || : ;;
    esac
done
