#!/bin/sh
# Puts the bundle of @recipe@ for @target@, release @release@, in place on a board; POSIX sh, tar and sha256sum are enough.
#
#   install.sh BUNDLE.TAR     unpacks beside what runs, checks every file and the answers, and only then switches
#   install.sh --rollback     back to what ran before, if what this script installed runs now; else nothing happens
#
# @folder@/@recipe@/current points to a whole bundle at any moment, also where power is lost, and what it points to is never
# changed. Folders of bundles are called <release>-<digest>.<n>; nothing else in there is touched. A copy of this script
# stays as @folder@/@recipe@/install.sh.
set -u
store='@folder@/@recipe@'
release='@release@'
digest='@digest@'
short=$(printf %.16s "$digest")
making="$store/.$short.tmp"

say() { echo "edge-model: $*"; }
stop() {
  rm -rf "$making" "$store/incoming.tar" # the second is where SWUpdate lays the archive
  say "$*; $(if [ -e "$store/current" ]; then echo 'what runs is untouched'; else echo 'nothing is installed'; fi)" >&2
  exit 1
}
points() { readlink "$store/$1" 2> /dev/null || true; }
link() { # NAME FOLDER: in one step
  ln -sfn "$2" "$store/.$1.tmp" && mv -fT "$store/.$1.tmp" "$store/$1" || stop "cannot switch to $2"
  sync
}
intact() { (cd "$1" 2> /dev/null && sha256sum -c SHA256SUMS > /dev/null 2>&1); }
ours() { case "$(points current)" in "$release-$short".*) true ;; *) false ;; esac; }

mkdir -p "$store" || stop "cannot write to $store"
if command -v flock > /dev/null; then # held as long as this runs, however it ends
  exec 9> "$store/.lock"
  flock -n 9 || { say "another run is at work in $store; try again" >&2; exit 1; }
fi
if [ -e "$store/current" ] && [ ! -L "$store/current" ]; then stop "$store/current is no link of ours; move it away"; fi

if [ "${1:-}" = --rollback ]; then
  if ! ours; then
    say "release $release ($short) does not run here; nothing to take back"
    exit 0
  fi
  back=$(points previous)
  [ -n "$back" ] && [ "$back" != "$(points current)" ] || stop "there is nothing to go back to"
  intact "$store/$back" || stop "$back, which ran before, is damaged"
  link current "$back"
  say "$back runs again"
  exit 0
fi

finish() { # a copy of this script stays; of bundles the one that runs and the one before
  if [ "$0" != "$store/install.sh" ] && cp "$0" "$store/.install.tmp"; then mv -f "$store/.install.tmp" "$store/install.sh"; fi
  rm -rf "$store"/.????????????????.tmp "$store/incoming.tar" # of this run, and of one that was cut
  for folder in "$store"/*/; do
    name=$(basename "$folder")
    case "$name" in "$(points current)" | "$(points previous)") continue ;; esac
    if expr "$name" : '[0-9][0-9]*-[0-9a-f]\{16\}\.[0-9][0-9]*$' > /dev/null; then rm -rf "${store:?}/$name"; fi
  done
}

archive=${1:?the archive to install}
[ -f "$archive" ] || archive=${RAUC_BUNDLE_MOUNT_POINT:-.}/$archive # RAUC names it as it lies in its own package
[ -f "$archive" ] || stop "$archive is not there"
[ "$(sha256sum < "$archive" | cut -d ' ' -f 1)" = "$digest" ] || stop "the archive is not the one that was packed for @device@"
old=$(points current)
if [ -n "$old" ] && [ "${old%%-*}" -gt "$release" ]; then
  stop "release $release is older than release ${old%%-*}, which runs here"
fi
if ours && intact "$store/$old"; then
  finish
  say "@recipe@ release $release runs already"
  exit 0
fi

rm -rf "$making"
mkdir -p "$making" || stop "cannot write to $store"
tar -xf "$archive" -C "$making" || stop "the archive cannot be unpacked (is there room? $(df -k "$store" | tail -n 1))"
intact "$making/bundle" || stop "a file of the bundle is not as it was built (is there room?)"

# the answers, by whatever runner this board has
if command -v edge-runner > /dev/null; then
  edge-runner "$making/bundle" --self-test || stop "the self-test failed"
elif command -v python3 > /dev/null && python3 -c 'import numpy, @runtime@' 2> /dev/null; then
  python3 "$making/bundle/run.py" --self-test || stop "the self-test failed"
else
  say "neither edge-runner nor python3 with numpy and @runtime@ is here: the files are intact, the answers were not tried"
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
