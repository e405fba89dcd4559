#!/usr/bin/env bash
# The comparisons of this folder, unattended: trains the networks that they need, and compares. Stopped, it goes on.
#
#     benchmarks/comparisons/run.sh OUT PUBLISHED [NAME...]
#
# PUBLISHED holds `mnist.pth` and `cifar_small_36px.pth` of Wong et al. 2018 (their repository's `models_scaled` and
# `models_scaled_l2`), data sets come from ART_RS_DATA. NAME is a file here without its .toml; all if none is given.
# An hour or two on two cores; every network has the architecture that it is compared with.
set -euo pipefail
usage="usage: $0 OUT PUBLISHED [NAME...]"
out=${1:?"$usage"} published=${2:?"$usage"}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out/networks"
cp "$published/mnist.pth" "$published/cifar_small_36px.pth" "$out/networks"
cp "$here"/*.toml "$out"
if (($# == 0)); then set -- mnist figure7-mnist figure7-cifar10 figure13-crown figure13-lipschitz; fi

# a checkpoint of that name, of data set, model, sigma, epochs and what more there is to say
network() {
  local name=$1 data=$2 model=$3 sigma=$4 epochs=$5
  shift 5
  art-rs train --data "$data" --model "$model" --sigma "$sigma" --epochs "$epochs" --batch-size 128 --lr 0.05 \
    --schedule cosine --seed 0 --out "$out/networks/$name" "$@"
}

networks() {
  case $1 in
    mnist | *-mnist | *-lipschitz) network mnist-0.25 mnist wong-kolter 0.25 10 ;;&
    *-lipschitz) network mnist-0.50 mnist wong-kolter 0.5 10 --lr 0.02 ;;&
    mnist | *-lipschitz) network mnist-lmt mnist wong-kolter 0.25 20 --lr 0.01 --method lmt --option margin=1 \
      --option warmup=10 ;;
    figure7-cifar10)
      network cifar10-0.12 cifar10 wong-kolter 0.12 15
      network cifar10-0.25 cifar10 wong-kolter 0.25 15
      ;;
    figure13-crown)
      network cifar10-mlp-0.12 cifar10 mlp-7x256 0.12 8 --lr 0.01
      # without a margin this is training without noise
      network cifar10-mlp cifar10 mlp-7x256 0.25 8 --lr 0.01 --method lmt --option margin=0
      ;;
  esac
}

for name in "$@"; do
  if [[ ! -e $here/$name.toml ]]; then
    echo "NAME must be one of $(cd "$here" && echo *.toml), without .toml, got $name" >&2
    exit 2
  fi
  networks "$name"
  art-rs compare --config "$out/$name.toml" --out "$out/$name"
done
