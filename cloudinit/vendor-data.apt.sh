#!/bin/sh
# Made by `guestagent cloud-init render --form vendor-data`: brings the agent, once for each instance.
set -eu
! systemctl -q is-enabled guestagent 2>/dev/null || exit 0
put() { # PATH MODE OWNER
    mkdir -p "${1%/*}"
    cat > "$1"
    chown "$3" "$1"
    chmod "$2" "$1"
}
put /etc/apt/keyrings/guestagent.asc 0644 root:root <<'END_OF_GUESTAGENT_FILE'
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawsiNRYJKwYBBAHaRw8BAQ==
=VpB/
-----END PGP PUBLIC KEY BLOCK-----
END_OF_GUESTAGENT_FILE
put /etc/apt/sources.list.d/guestagent.sources 0644 root:root <<'END_OF_GUESTAGENT_FILE'
Types: deb
URIs: https://packages.example/guestagent/apt
Suites: stable
Components: main
Signed-By: /etc/apt/keyrings/guestagent.asc
END_OF_GUESTAGENT_FILE
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update
apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install -y guestagent
put /etc/guestagent/ca.crt 0644 root:guestagent <<'END_OF_GUESTAGENT_FILE'
-----BEGIN CERTIFICATE-----
MIIB
-----END CERTIFICATE-----
END_OF_GUESTAGENT_FILE
put /etc/guestagent/guestagent.toml 0640 root:guestagent <<'END_OF_GUESTAGENT_FILE'
to = ["tls://collector.example"]
cpu = 5.0

[tls]
ca = "/etc/guestagent/ca.crt"
cert = "/etc/guestagent/agent.crt"
key = "/etc/guestagent/agent.key"
END_OF_GUESTAGENT_FILE
systemctl enable --now guestagent
