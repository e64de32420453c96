#!/usr/bin/env bash
# Installs what is missing on a Debian 12 machine with Rust and Python, and says nothing when nothing is.
#
#   deploy/setup.sh build    what the release module is built with
#   deploy/setup.sh demo     the same, and a server, the text and the Python packages of the demo
#   deploy/setup.sh test     the same without the text, and what the tests and lints need
#
# Debian packages come by apt (through sudo when not root), Python packages by pip into .venv.
# SETUP_NO_APT=1 leaves the system alone: then whatever only apt can bring must be there already.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=/usr/bin/python3
build_env=$venv/build.env
export PATH=$HOME/.cargo/bin:$PATH
lock_wait_s=600
libclang_wheel=libclang==18.1.1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ $# -le 1 ] || fail "give one set: build, demo or test"
set_name=${1:-build}
case $set_name in build | demo | test) ;; *) fail "unknown set '$set_name': give build, demo or test" ;; esac

# Two runs at once would both write .venv: the second waits for the first.
exec 9<"${BASH_SOURCE[0]}"
flock -w "$lock_wait_s" 9 || fail "another setup has been running for $lock_wait_s s: wait for it or end it"

# --- Rust ------------------------------------------------------------------------------------------------------

check_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
    local how="Install it with rustup (https://rustup.rs), open a new shell and run the command again."
    command -v cargo >/dev/null || fail "Rust $wanted or newer is needed and no cargo is in PATH. $how"
    found=$(cargo --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust $wanted or newer is needed, $(command -v cargo) is $found (Debian 12's own is too old). $how"
}

# --- what is there ---------------------------------------------------------------------------------------------

has_program() { command -v "$1" >/dev/null; }
has_c_compiler() { has_program gcc && [ -e /usr/include/stdlib.h ]; }
has_module() { [ -x "$python" ] && "$python" -I -c "import $1" 2>/dev/null; }

# bindgen loads libclang and reads the compiler's own headers next to it.
has_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
        compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
}

has_libpython() {
    [ -x "$python" ] && "$python" -I -c '
import os, sys, sysconfig
name = sysconfig.get_config_var
sys.exit(not os.path.exists(os.path.join(name("LIBDIR"), name("LDLIBRARY"))))'
}

missing=()
need() { # need <Debian package> <check> [argument]: notes the package when the check fails
    "${@:2}" || missing+=("$1")
}

find_missing() {
    missing=()
    need gcc has_c_compiler
    need libc6-dev has_c_compiler
    need make has_program make
    need git has_program git
    need python3 test -x "$python"
    need python3-dev has_libpython
    need libclang-dev has_libclang
    [ "$set_name" != build ] || return 0
    need python3-venv has_module venv,ensurepip
    need redis-server has_program redis-server
    need redis-tools has_program redis-cli
    case $set_name in
    demo)
        need bible-kjv-text test -e /usr/lib/bible.data
        need bible-kjv has_program bible
        ;;
    test)
        need python3-numpy has_module numpy
        need openssl has_program openssl
        ;;
    esac
}

# --- Debian packages -------------------------------------------------------------------------------------------

sudo=()
can_use_apt() {
    [ "${SETUP_NO_APT:-0}" != 1 ] || return 1
    has_program apt-get || return 1
    [ "$(id -u)" -ne 0 ] || return 0
    has_program sudo || return 1
    # Without a terminal sudo could only hang at its prompt.
    [ -t 0 ] || sudo -n true 2>/dev/null || return 1
    sudo=(sudo)
}

# apt waits by itself for the lock on packages, not for the one on its lists.
apt_update() {
    local deadline=$((SECONDS + lock_wait_s)) log
    until log=$("${sudo[@]}" apt-get -q -o APT::Update::Error-Mode=any update 2>&1); do
        case $log in
        *"Could not get lock"*) [ $SECONDS -lt $deadline ] || fail "the lock of apt was held for $lock_wait_s s" ;;
        *) say "apt-get update failed; going on with the package lists at hand"; return 0 ;;
        esac
        sleep 2
    done
}

# The package starts a server on port 6379, now and at every boot. Only its binary is wanted here.
policy=/usr/sbin/policy-rc.d
forbid_start() {
    [ ! -e "$policy" ] || return 0
    trap allow_start EXIT
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
}
allow_start() {
    "${sudo[@]}" rm -f "$policy"
    trap - EXIT
}

apt_install() {
    local with_server=no log
    case " ${missing[*]} " in *" redis-server "*) with_server=yes ;; esac
    say "installing Debian packages, this can take a minute or two: ${missing[*]}"
    apt_update
    [ $with_server = no ] || forbid_start
    log=$("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=$lock_wait_s -o Dpkg::Use-Pty=0 install "${missing[@]}" 2>&1) ||
        fail "apt-get could not install ${missing[*]}:"$'\n'"$log"
    if [ $with_server = yes ]; then
        [ -z "$(trap -p EXIT)" ] || allow_start
        "${sudo[@]}" update-rc.d redis-server disable >/dev/null 2>&1 || true
        say "redis-server is installed for its binary; its service is switched off (update-rc.d redis-server enable)"
    fi
}

# --- Python packages -------------------------------------------------------------------------------------------

make_venv() {
    # One made by another Python would run the tests with other rules than the module's scripts see.
    local which='import sys; print(sys.base_prefix, sys.version)'
    if [ -x "$venv/bin/python" ] &&
        [ "$("$venv/bin/python" -I -c "$which" 2>/dev/null)" = "$("$python" -I -c "$which")" ]; then
        return 0
    fi
    say "making the virtual environment .venv"
    "$python" -m venv --clear "$venv" || fail "$python -m venv failed: is python3-venv installed?"
}

pip_install() { # pip_install <stamp name> <pip arguments...>: does nothing when done before with the same files
    local stamp=$venv/.installed-$1 sum
    shift
    sum=$(printf '%s ' "$@" | cat - "$root/deploy/requirements.txt" "$root/tests/requirements.txt" | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ] || return 0
    say "installing Python packages into .venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@" ||
        fail "pip could not install: $*"
    printf '%s\n' "$sum" >"$stamp"
}

# Where apt cannot bring libclang, its PyPI wheel does; the compiler's headers are then gcc's.
libclang_from_wheel() {
    make_venv
    pip_install libclang "$libclang_wheel"
    local dir
    dir=$(dirname "$(compgen -G "$venv/lib/python3*/site-packages/clang/native/libclang.so")")
    printf 'export LIBCLANG_PATH=%q\nexport BINDGEN_EXTRA_CLANG_ARGS=-I%q\n' \
        "$dir" "$(gcc -print-file-name=include)" >"$build_env"
}

# --- all together ----------------------------------------------------------------------------------------------

check_rust
find_missing
if [ ${#missing[@]} -gt 0 ] && can_use_apt; then
    apt_install
    find_missing
fi
case " ${missing[*]} " in
*" libclang-dev "*)
    if has_c_compiler && has_module venv,ensurepip; then
        libclang_from_wheel
        kept=()
        for package in "${missing[@]}"; do [ "$package" = libclang-dev ] || kept+=("$package"); done
        missing=("${kept[@]}")
    fi
    ;;
*) rm -f "$build_env" ;;
esac
[ ${#missing[@]} -eq 0 ] ||
    fail "these Debian packages are missing and cannot be installed from here (neither root nor sudo," \
        "or no apt): run 'apt-get install ${missing[*]}' as root, then the same command again"

case $set_name in
demo) make_venv && pip_install demo -r "$root/deploy/requirements.txt" ;;
test) make_venv && pip_install test -r "$root/tests/requirements.txt" ;;
esac
