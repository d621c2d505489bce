#!/bin/sh
# Brings a bare Debian 12, Ubuntu 24.04 or later to where `make test` and `make demo` work: the missing system packages
# by apt-get (as root or through passwordless sudo), then .venv with guestagent, editable. Run again, it changes nothing
# and takes a few milliseconds.
# shellcheck disable=SC3013 # -nt and -ef: dash, bash and busybox all have them
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
venv=.venv
stamp=$venv/.stamp

die() {
    echo "setup: $*" >&2
    exit 1
}

# The first Python of at least 3.11 that can make a venv; Debian splits ensurepip off into python3-venv.
find_python() {
    for candidate in ${PYTHON:-python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# With the word `boot`, what the boot test needs, too.
# Debian's names of what is not here yet. libpcap comes with tcpdump; a venv that works brings its Python.
missing_packages() {
    [ "$1" != boot ] || while read -r command package; do
        command -v "$command" >/dev/null 2>&1 || echo "$package"
    done <<-END
	qemu-system-x86_64 qemu-system-x86
	qemu-img qemu-utils
	mmdebstrap mmdebstrap
	mke2fs e2fsprogs
	genisoimage genisoimage
	END
    while read -r command package; do
        command -v "$command" >/dev/null 2>&1 || echo "$package"
    done <<-END
	ip iproute2
	tshark tshark
	tcpdump tcpdump
	iperf3 iperf3
	ethtool ethtool
	nc netcat-openbsd
	nft nftables
	ovs-vswitchd openvswitch-switch
	systemd-analyze systemd
	go-md2man go-md2man
	lintian lintian
	rpm rpm
	rpmlint rpmlint
	debootstrap debootstrap
	apt-ftparchive apt-utils
	createrepo_c createrepo-c
	gpg gpg
	dnf dnf
	END
    if ! venv_works && [ -z "$(find_python)" ]; then
        echo python3 python3-venv
    fi
    # pip trusts the system's certificates.
    [ -n "$(ls /etc/ssl/certs 2>/dev/null)" ] || echo ca-certificates
}

install_packages() {
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        as_root=no
    fi
    if [ "$as_root" = no ] || ! command -v apt-get >/dev/null 2>&1; then
        die "these packages are missing (Debian's names): $*; install them, on Debian and Ubuntu with" \
            "'sudo apt-get install $*', then run 'make setup' again"
    fi
    echo "setup: installing $*"
    # tshark and iperf3 ask a question otherwise; a fresh cloud VM's own upgrade may hold the lock for a while.
    apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300"
    $apt update || die "'apt-get update' failed; see above, then run 'make setup' again"
    $apt install -y --no-install-recommends "$@" || die "could not install $*; see above, then run 'make setup' again"
}

# A venv breaks when the checkout moves or its Python goes: the command's first line names the python it was made for.
# Where that path is too long for a first line, pip writes #!/bin/sh there.
venv_works() {
    [ -x "$venv/bin/python" ] && [ -x "$venv/bin/guestagent" ] || return 1
    interpreter=$(head -n 1 "$venv/bin/guestagent")
    [ "$interpreter" = "#!/bin/sh" ] || [ "$(dirname "${interpreter#??}")" -ef "$venv/bin" ]
}

make_venv() {
    python=$(find_python)
    [ -n "$python" ] || die "no Python of 3.11 or later that can make a venv; set PYTHON to one, then run 'make setup' again"
    echo "setup: making $venv with $("$python" --version)"
    venv_works || rm -rf "$venv"
    [ -d "$venv" ] || "$python" -m venv "$venv"
    # Dependency groups need pip 25.1; Debian 12 brings 23.0.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[portable,pki]' --group dev
    touch "$stamp"
}

# A file or folder out of a package that is not installed: no server, and nothing that would set up this machine. Where that
# fails, the tests that need it skip.
fetch() { # PACKAGE PATH-IN-IT DESTINATION
    scratch=$(mktemp -d)
    chmod 755 "$scratch"
    echo "setup: fetching $(basename "$3")"
    mkdir -p "$(dirname "$3")"
    (cd "$scratch" && apt-get -q download "$1" && dpkg-deb --fsys-tarfile "$1"_*.deb | tar x "$2") \
        >/dev/null 2>&1 && mv "$scratch/$2" "$3" ||
        echo "setup: $(basename "$3") could not be fetched; 'apt-get update', then 'make setup' again" >&2
    rm -rf "$scratch"
}

packages=$(missing_packages "${1:-}" | tr '\n' ' ')
# shellcheck disable=SC2086 # one word for each package
[ -z "$packages" ] || install_packages $packages
if ! venv_works || ! [ "$stamp" -nt pyproject.toml ]; then
    make_venv
fi
command -v promtool >/dev/null 2>&1 || [ -x "$venv/bin/promtool" ] ||
    fetch prometheus ./usr/bin/promtool "$venv/bin/promtool"
code=./usr/lib/python3/dist-packages/cloudinit
[ -e "$venv/share/cloudinit" ] || fetch cloud-init "$code" "$venv/share/cloudinit"
