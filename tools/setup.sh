#!/usr/bin/env bash
# Makes a checkout ready to use: system packages, .venv, the guest's agent, the probe guest, a kernel for guests.
#
# Safe to run again: what is there is left alone, and then no network is needed. Exit code 5: this machine lacks
# something that only its administrator can install; what that is has been printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

agent=src/ramet/guest/bin/agent-x86_64
probe=src/ramet/guest/bin/probe-x86_64
venv=.venv/bin/python

say() { printf 'setup: %s\n' "$*"; }
cannot() {
    printf 'setup: %s\n' "$@" >&2
    exit 5
}
have() { command -v "$1" >/dev/null 2>&1; }

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

static_busybox() { [[ -x /bin/busybox ]] && ! ldd /bin/busybox >/dev/null 2>&1; }

# One Debian package a line for what is missing.
missing_packages() {
    have "${RAMET_QEMU:-qemu-system-x86_64}" || echo qemu-system-x86
    have qemu-img || echo qemu-utils
    have mke2fs || [[ -x /sbin/mke2fs ]] || echo e2fsprogs
    static_busybox || echo busybox-static
    have musl-gcc || echo musl-tools
    have gcc || echo gcc
    have make || echo make
    if recent "$venv" && "$venv" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python
    python=$(find_python)
    if [[ -z $python ]]; then
        printf '%s\n' python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
    fi
}

# Only tests want these, and are skipped without them.
missing_for_tests() {
    have mkfs.xfs || [[ -x /sbin/mkfs.xfs ]] || echo xfsprogs
    have mkfs.btrfs || [[ -x /sbin/mkfs.btrfs ]] || echo btrfs-progs
    have bindfs || echo bindfs
    [[ -d /usr/share/i18n/charmaps ]] || echo locales
    compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a' >/dev/null ||
        printf '%s\n' clang libclang-rt-dev
    have qemu-aarch64 || echo qemu-user
    have strace || echo strace
    have sqlite3 || echo sqlite3
    have umoci || echo umoci
    have mkfs.erofs || [[ -x /usr/sbin/mkfs.erofs ]] || echo erofs-utils
    have debootstrap || [[ -x /usr/sbin/debootstrap ]] || echo debootstrap
}

# Sets as_root to the words that make a command run as root; fails when there is no way without a password.
find_root() {
    as_root=()
    if ((EUID != 0)); then
        have sudo && sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n --preserve-env=DEBIAN_FRONTEND)
    fi
}

apt_get() { "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null; }
apt_install() {
    apt_get install -y --no-install-recommends "$@" && return
    say "that failed; fetching new package lists (apt-get update), then once more"
    apt_get update && apt_get install -y --no-install-recommends "$@"
}

system_packages() {
    local needed wanted
    mapfile -t needed < <(missing_packages)
    mapfile -t wanted < <(missing_for_tests)
    ((${#needed[@]} + ${#wanted[@]})) || return 0
    if have apt-get && find_root; then
        say "installing system packages with apt-get: ${needed[*]} ${wanted[*]}"
        if ((${#wanted[@]})) && ! apt_install "${wanted[@]}"; then
            say "without ${wanted[*]} some tests are skipped"
        fi
        ((${#needed[@]} == 0)) || apt_install "${needed[@]}" || cannot "apt-get could not install them; its words are above" \
            "on Ubuntu, musl-tools is in universe: sudo add-apt-repository universe"
        mapfile -t needed < <(missing_packages)
        ((${#needed[@]} == 0)) || cannot "still missing after the installation: ${needed[*]}"
    elif ((${#needed[@]})); then
        have apt-get || cannot "missing, by the names of Debian's packages: ${needed[*]}" \
            "install what your distribution has for them, then run this again"
        cannot "some packages are missing, and installing them needs root. Please run, or ask for:" \
            "    sudo apt-get install -y ${needed[*]} ${wanted[*]}"
    else
        say "without ${wanted[*]} some tests are skipped"
    fi
}

# done_for NAME KEY: whether the step NAME was done in this .venv for that very KEY; mark_done says that it was.
done_for() { [[ -f .venv/.done-$1 && $(<".venv/.done-$1") == "$2" ]]; }
mark_done() { printf '%s\n' "$2" >".venv/.done-$1"; }
digest() { sha256sum "$@" | sha256sum | cut -d' ' -f1; }

python_packages() {
    if ! recent "$venv" || ! "$venv" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    local lock here
    lock=$(digest requirements.lock)
    # Where the checkout is belongs to the key: a copied .venv still points at the tree that it was made in.
    here="$(digest pyproject.toml) $PWD"
    local pip=("$venv" -m pip install --quiet --no-input --disable-pip-version-check)
    if ! done_for packages "$lock"; then
        say "installing the Python packages of requirements.lock into .venv, hashes checked"
        "${pip[@]}" --require-hashes -r requirements.lock
        mark_done packages "$lock"
    fi
    if ! done_for ramet "$here"; then
        say "installing ramet itself into .venv, editable"
        "${pip[@]}" --no-deps --no-build-isolation -e .
        mark_done ramet "$here"
    fi
}

build_agent() {
    make -q -C src/ramet/guest/agent OUT="$PWD/$agent" >/dev/null 2>&1 && return
    say "building the guest's agent with musl-gcc"
    make -s -C src/ramet/guest/agent OUT="$PWD/$agent"
}

build_probe() {
    make -q -C src/ramet/guest/probe OUT="$PWD/$probe" >/dev/null 2>&1 && return
    say "building the probe guest with gcc"
    make -s -C src/ramet/guest/probe OUT="$PWD/$probe"
}

# dependency PACKAGE PREFIX: the first package that PACKAGE depends on and whose name is PREFIX and a version.
dependency() {
    apt-cache depends "$1" 2>/dev/null | awk -v prefix="$2" '
        $1 ~ /^\|?Depends:$/ && index($2, prefix) == 1 && substr($2, length(prefix) + 1) ~ /^[0-9]/ && !n++ { print $2 }'
}

# The packages that hold the newest kernel for VMs and its modules, a line each. The names below depend on it:
#   Debian           linux-image-cloud-amd64  one package has both
#   Ubuntu           linux-image-virtual      the modules are in linux-modules-VERSION, on which the kernel depends
#   Ubuntu to 22.04  linux-image-kvm          the same
kernel_packages() {
    local meta image
    for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-kvm; do
        image=$(dependency "$meta" linux-image-)
        if [[ -n $image ]]; then
            echo "$image"
            dependency "$image" linux-modules-
            return
        fi
    done
    return 1
}

download_kernel() (
    cd "$1"
    packages=$(kernel_packages) || return 1
    say "downloading, not installing: ${packages//$'\n'/ }"
    # shellcheck disable=SC2086  # one word a package
    apt-get -qq -o APT::Sandbox::User=root download $packages </dev/null
)

guest_kernel() {
    "$venv" tools/guest_kernel.py find >/dev/null 2>&1 && return
    say "there is no Linux kernel for guests yet; getting one from this distribution"
    have apt-get || cannot "that works with apt-get only: set RAMET_KERNEL to a bzImage or vmlinux, then run this again"
    local downloads
    downloads=$(mktemp -d)
    # shellcheck disable=SC2064  # this directory, whatever the variable says later
    trap "rm -rf '$downloads'" EXIT
    if ! download_kernel "$downloads"; then
        find_root || cannot "no kernel package could be downloaded. Please run, or ask for: sudo apt-get update"
        say "fetching new package lists (apt-get update)"
        apt_get update
        download_kernel "$downloads" || cannot "no kernel package could be downloaded; set RAMET_KERNEL to a kernel"
    fi
    "$venv" tools/guest_kernel.py add "$downloads"/*.deb
}

# `setup.sh newer-kernel`: a newer kernel from this Debian's backports, where the kernel that guests have lacks
# something. Without one the guests keep the kernel that they have.
newer_kernel() {
    local lacking downloads
    [[ -z ${RAMET_KERNEL:-} ]] || cannot "RAMET_KERNEL chooses the kernel; unset it first"
    have apt-get || cannot "that works with apt-get only: ramet kernel add PACKAGE.deb... takes a package from elsewhere"
    if lacking=$("$venv" tools/guest_kernel.py whole); then
        say "nothing to do: ${lacking%% *} lacks nothing"
        return
    fi
    say "the kernel $lacking; downloading a newer one from this distribution's backports"
    downloads=$(mktemp -d)
    # shellcheck disable=SC2064  # this directory, whatever the variable says later
    trap "rm -rf '$downloads'" EXIT
    "$venv" tools/newer_kernel.py "$downloads" >/dev/null || cannot "there is none; guests keep the kernel they have"
    "$venv" tools/guest_kernel.py add "$downloads"/*.deb
}

# QEMU does without it, and so do most tests.
firecracker() {
    [[ -e /dev/kvm ]] || return 0
    "$venv" tools/get_firecracker.py || say "without Firecracker some tests are skipped"
}

# Only tests of the registry client want it.
docker_registry() {
    "$venv" tools/get_docker_registry.py || say "without docker-registry some tests are skipped"
}

# Only tests of imports want these.
imports() {
    "$venv" tools/get_podman.py || say "without podman some tests are skipped"
    "$venv" tools/get_alpine.py || say "without Alpine's disk a test is skipped"
}

[[ $(uname -sm) == "Linux x86_64" ]] || cannot "ramet needs Linux on x86-64; this is $(uname -sm)"
system_packages
python_packages
build_agent
build_probe
guest_kernel
if [[ ${1:-} == newer-kernel ]]; then
    newer_kernel
    exit
fi
firecracker
docker_registry
imports
say "ready; \`make demo\` shows what ramet does"
