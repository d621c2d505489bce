#!/bin/sh
# The `guestagent` command of the packages: it runs on the first Python of 3.11 or later that is there, beside whatever
# /usr/bin/python3 is (3.9 on RHEL 9 and Amazon Linux 2023, 3.10 on Ubuntu 22.04). Its libraries lie in a directory of
# their own, so that no update of the distribution's changes what runs; that of the caller's home are left out.
# What pip brings for this machine alone comes last (docs/install.md).
libraries=/usr/lib/guestagent:/usr/share/guestagent-cloud:/usr/local/lib/guestagent
for version in 3.13 3.12 3.11 3.14; do
    if [ -x "/usr/bin/python$version" ]; then
        PYTHONPATH=$libraries exec "/usr/bin/python$version" -sP -m guestagent "$@"
    fi
done
echo "guestagent: no Python of 3.11 or later in /usr/bin: install python3.12 or python3.11" >&2
exit 3
