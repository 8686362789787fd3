#!/bin/bash
# Copy an archive to a disk of this node, once: copy_data.sh FROM TO. Run by job.sh as one task a node.
#
# A marker says that a copy is whole, so a second job on the node goes on at once; a cut one is copied again. What was
# copied is compared by size and, file by file, by checksum.
set -euo pipefail

from=$1 to=$2
marker=$to/.copied
if [ -f "$marker" ] && [ "$(cat "$marker")" = "$from" ]; then
  echo "$to of $(hostname) holds the copy"
  exit 0
fi
mkdir -p "$to"
rm -f "$marker"
need=$(du -sk "$from" | cut -f1)
free=$(df -Pk "$to" | awk 'NR == 2 { print $4 }')
if [ "$free" -lt "$need" ]; then
  echo "$to of $(hostname) has $((free / 1024)) MiB free, the data need $((need / 1024)) MiB; unset LOCAL_DATA" >&2
  exit 2
fi
cp -R "$from/." "$to/"
(cd "$from" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | (cd "$to" && sha256sum --check --quiet -)
echo "$from" >"$marker"
echo "copied $((need / 1024)) MiB to $to of $(hostname)"
