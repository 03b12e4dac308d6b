#!/bin/sh
# Makes data/fashion/{train,test}.pack from Debian's package dataset-fashion-mnist. Run as root where the package is missing:
#   tools/make_fashion_subset.sh [folder with the four IDX files]
set -eu
cd "$(dirname "$0")/.."
from=${1:-/usr/share/datasets/fashion-mnist}
if [ ! -d "$from" ]; then
    apt-get update
    apt-get install -y --no-install-recommends dataset-fashion-mnist
fi
mkdir -p data/fashion
cargo run --release -p data --example make_subset -- "$from" data/fashion
(cd data/fashion && sha256sum train.pack test.pack)
