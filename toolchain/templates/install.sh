#!/bin/sh
# Puts the bundle of @recipe@ for @target@, release @release@, in place on a board; POSIX sh, tar and sha256sum are enough.
#
#   install.sh BUNDLE.TAR     unpacks beside what runs, checks every file and the answers, and only then switches
#   install.sh --rollback     switches back to what ran before
#
# @folder@/@recipe@/current always points to a whole bundle: what is there stays until the new one has passed.
set -u
store='@folder@/@recipe@'
digest='@digest@'
device='@device@'
short=$(printf %.16s "$digest")
new="$store/$short"
making="$store/.$short.tmp"

say() { echo "edge-model: $*"; }
stop() {
  rm -rf "$making"
  say "$*; $(if [ -e "$store/current" ]; then echo 'the model that runs is untouched'; else echo 'nothing is installed'; fi)" >&2
  exit 1
}
switch() { # to a folder of the store, in one step
  ln -sfn "$(basename "$1")" "$store/.current.tmp" && mv -fT "$store/.current.tmp" "$store/current" || stop "cannot switch to $1"
  sync
}
number() { sed -n 's/^ "release": \([0-9][0-9]*\),*$/\1/p' "$1/manifest.json"; }

if [ "${1:-}" = --rollback ]; then
  [ -d "$store/previous/" ] || stop "there is nothing to go back to"
  back=$(readlink "$store/previous")
  rm -f "$store/previous"
  switch "$store/$back"
  say "$back runs again"
  exit 0
fi

archive=${1:?the archive to install}
[ -f "$archive" ] || archive=${RAUC_BUNDLE_MOUNT_POINT:-.}/$archive # RAUC names it as it lies in its own package
[ -f "$archive" ] || stop "$archive is not there"
[ "$(sha256sum < "$archive" | cut -d ' ' -f 1)" = "$digest" ] || stop "the archive for $device is not the one that was packed"
rm -rf "$making"
mkdir -p "$making" || stop "cannot write to $store"
tar -xf "$archive" -C "$making" || stop "the archive cannot be unpacked (is there room? $(df -k "$store" | tail -n 1))"
cd "$making/bundle" || stop "the archive holds no bundle"
sha256sum -c SHA256SUMS > /dev/null || stop "a file of the bundle is not as it was built (is there room?)"

if [ -e "$store/current/manifest.json" ] && [ "$(number .)" -lt "$(number "$store/current")" ]; then
  stop "release $(number .) is older than release $(number "$store/current"), which runs here"
fi

# the answers, by whatever runner this board has
if command -v edge-runner > /dev/null; then
  edge-runner "$making/bundle" --self-test || stop "the self-test failed"
elif command -v python3 > /dev/null && python3 -c 'import numpy, @runtime@' 2> /dev/null; then
  python3 run.py --self-test || stop "the self-test failed"
else
  say "neither edge-runner nor python3 with numpy and @runtime@ is here: the files are intact, the answers were not tried"
fi

cd "$store" || exit 1
old=$(readlink current 2> /dev/null || true)
if [ "$old" != "$short" ]; then
  rm -rf "$new"
  mv "$making/bundle" "$new" || stop "cannot move the bundle into place"
  sync
  [ -z "$old" ] || ln -sfn "$old" previous
  switch "$new"
fi
rm -rf "$making" incoming.tar # where SWUpdate laid the archive
before=$(readlink previous 2> /dev/null || true)
for folder in "$store"/*/; do # the one that runs and the one before stay
  name=$(basename "$folder")
  case "$name" in current | previous | "$short" | "$before") ;; *) rm -rf "$folder" ;; esac
done
say "@recipe@ release @release@ runs from $store/current"
