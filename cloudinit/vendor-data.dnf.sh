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
put /etc/pki/rpm-gpg/RPM-GPG-KEY-guestagent 0644 root:root <<'END_OF_GUESTAGENT_FILE'
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawsiNRYJKwYBBAHaRw8BAQ==
=VpB/
-----END PGP PUBLIC KEY BLOCK-----
END_OF_GUESTAGENT_FILE
put /etc/yum.repos.d/guestagent.repo 0644 root:root <<'END_OF_GUESTAGENT_FILE'
[guestagent]
name=guestagent
baseurl=https://packages.example/guestagent/rpm
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-guestagent
gpgcheck=1
repo_gpgcheck=1
enabled=1
END_OF_GUESTAGENT_FILE
dnf -q -y install guestagent
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
