#!/bin/sh
# Downloads the source package of tcpdump into a folder, without touching the system's apt configuration.
set -eu
folder=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder" "$work/parts" "$work/lists/partial"
# deb822 files and one-line files alike, with "deb" turned into "deb-src"; only the distribution's own.
for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources; do
    [ -f "$list" ] && sed 's/^Types:.*/Types: deb-src/' "$list" > "$work/parts/$(basename "$list")"
done
if [ -f /etc/apt/sources.list ]; then
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list > "$work/parts/system.list"
fi
options="-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/parts -o Dir::State::lists=$work/lists
 -o Dir::Cache::srcpkgcache= -o Dir::Cache::pkgcache= -o APT::Sandbox::User=root"
cd "$folder"
# shellcheck disable=SC2086
apt-get $options update -q
# shellcheck disable=SC2086
apt-get $options source -q --download-only tcpdump
