#!/bin/bash
# Copy an archive to a local disk of this node: copy_data.sh FROM TO. job.sh runs it as one task per node.
#
# A marker file is written after a complete copy, so that a second job on the node reuses it; an incomplete copy is
# repeated. The checksum of every file is verified.
set -euo pipefail

from=$1 to=$2
marker=$to/.copied
if [ -f "$marker" ] && [ "$(cat "$marker")" = "$from" ]; then
  echo "$to on $(hostname) contains the copy"
  exit 0
fi
mkdir -p "$to"
rm -f "$marker"
need=$(du -sk "$from" | cut -f1)
free=$(df -Pk "$to" | awk 'NR == 2 { print $4 }')
if [ "$free" -lt "$need" ]; then
  echo "$to on $(hostname) has $((free / 1024)) MiB free, $((need / 1024)) MiB required; unset LOCAL_DATA" >&2
  exit 2
fi
cp -R "$from/." "$to/"
(cd "$from" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | (cd "$to" && sha256sum --check --quiet -)
echo "$from" >"$marker"
echo "copied $((need / 1024)) MiB to $to on $(hostname)"
