#!/bin/sh
# Install the bundle of @recipe@ for @target@, release @release@, on a board. Needs only POSIX sh, tar and sha256sum.
#
#   install.sh BUNDLE.TAR     unpack beside the running bundle, check every file and the golden outputs, then switch over
#   install.sh --rollback     return to the previous bundle, if the one that this script installed is running; else do nothing
#
# @folder@/@recipe@/current always points to a complete bundle, even after a power loss, and that bundle is never changed.
# Folders of bundles are called <release>-<digest>.<n>; nothing else in there is touched. A copy of this script is kept as
# @folder@/@recipe@/install.sh.
set -u
store='@folder@/@recipe@'
release='@release@'
digest='@digest@'
short=$(printf %.16s "$digest")
making="$store/.$short.tmp"

say() { echo "edge-model: $*"; }
stop() {
  rm -rf "$making" "$store/incoming.tar" # the second is where SWUpdate puts the archive
  say "$*; $(if [ -e "$store/current" ]; then echo 'the running bundle is unchanged'; else echo 'nothing is installed'; fi)" >&2
  exit 1
}
points() { readlink "$store/$1" 2> /dev/null || true; }
link() { # NAME FOLDER: replace the link atomically
  ln -sfn "$2" "$store/.$1.tmp" && mv -fT "$store/.$1.tmp" "$store/$1" || stop "cannot switch to $2"
  sync
}
intact() { (cd "$1" 2> /dev/null && sha256sum -c SHA256SUMS > /dev/null 2>&1); }
ours() { case "$(points current)" in "$release-$short".*) true ;; *) false ;; esac; }

mkdir -p "$store" || stop "cannot write to $store"
if command -v flock > /dev/null; then # released when this process ends, however it ends
  exec 9> "$store/.lock"
  flock -n 9 || { say "another installation is running in $store; try again later" >&2; exit 1; }
fi
if [ -e "$store/current" ] && [ ! -L "$store/current" ]; then stop "$store/current is not a link; move it away"; fi

if [ "${1:-}" = --rollback ]; then
  if ! ours; then
    say "release $release ($short) is not running here; nothing to roll back"
    exit 0
  fi
  back=$(points previous)
  [ -n "$back" ] && [ "$back" != "$(points current)" ] || stop "there is no previous bundle to roll back to"
  intact "$store/$back" || stop "the previous bundle $back is damaged"
  link current "$back"
  say "rolled back to $back"
  exit 0
fi

finish() { # keep a copy of this script, the running bundle and the previous one; remove all else that is ours
  if [ "$0" != "$store/install.sh" ] && cp "$0" "$store/.install.tmp"; then mv -f "$store/.install.tmp" "$store/install.sh"; fi
  rm -rf "$store"/.????????????????.tmp "$store/incoming.tar" # of this run and of interrupted ones
  for folder in "$store"/*/; do
    name=$(basename "$folder")
    case "$name" in "$(points current)" | "$(points previous)") continue ;; esac
    if expr "$name" : '[0-9][0-9]*-[0-9a-f]\{16\}\.[0-9][0-9]*$' > /dev/null; then rm -rf "${store:?}/$name"; fi
  done
}

archive=${1:?give the archive to install}
[ -f "$archive" ] || archive=${RAUC_BUNDLE_MOUNT_POINT:-.}/$archive # RAUC gives a path relative to its mounted bundle
[ -f "$archive" ] || stop "$archive does not exist"
[ "$(sha256sum < "$archive" | cut -d ' ' -f 1)" = "$digest" ] || stop "the archive is not the one that was packed for @device@"
old=$(points current)
if [ -n "$old" ] && [ "${old%%-*}" -gt "$release" ]; then
  stop "release $release is older than release ${old%%-*}, which is running here"
fi
if ours && intact "$store/$old"; then
  finish
  say "@recipe@ release $release is already running"
  exit 0
fi

rm -rf "$making"
mkdir -p "$making" || stop "cannot write to $store"
tar -xf "$archive" -C "$making" || stop "the archive cannot be unpacked (is the disk full? $(df -k "$store" | tail -n 1))"
intact "$making/bundle" || stop "a file of the bundle is damaged (is the disk full?)"

# the golden outputs, with whichever runner this board has
if command -v edge-runner > /dev/null; then
  edge-runner "$making/bundle" --self-test || stop "the self-test failed"
elif command -v python3 > /dev/null && python3 -c 'import numpy, @runtime@' 2> /dev/null; then
  python3 "$making/bundle/run.py" --self-test || stop "the self-test failed"
else
  say "neither edge-runner nor python3 with numpy and @runtime@ is installed: the files are intact, the golden outputs were not checked"
fi

number=1
while [ -e "$store/$release-$short.$number" ]; do number=$((number + 1)); done
new="$release-$short.$number"
mv "$making/bundle" "$store/$new" || stop "cannot move the bundle into place"
sync
if [ -n "$old" ] && intact "$store/$old"; then link previous "$old"; fi
link current "$new"
finish
say "@recipe@ release $release runs from $store/current"
