#!/usr/bin/env bash
# Table 3 of Cohen et al. 2019 for CIFAR-10 at sigma .25 and .50, and what grew from it, unattended: trains ResNet-110 by
# the paper's recipe and by Consistency, and certifies all 10 000 test images at the table's radii. For a GPU, in chunks:
#
#     while true; do benchmarks/paper_cifar10.sh out 540; s=$?; [[ $s == 75 ]] || exit $s; done
#
# One call works for so many seconds (default 540) and ends with status 75 where there is more to do; the next call goes
# on: training after the last whole epoch, certification after the last image. Status 0: all is done.
set -euo pipefail
out=${1:?"usage: $0 FOLDER [SECONDS]"}
deadline=$((SECONDS + ${2:-540}))
radii=0,0.25,0.5,0.75,1.0,1.25,1.5
mkdir -p "$out"

# the command, until the deadline, unless an earlier call has finished it
once() {
  local done=$out/$1.done left=$((deadline - SECONDS)) status=0
  shift
  if [[ -e $done ]]; then return; fi
  if ((left < 5)); then exit 75; fi
  timeout --signal=INT --kill-after=30 "$left" "$@" || status=$?
  case $status in
    0) touch "$done" ;;
    124 | 130 | 137) exit 75 ;;
    *) exit "$status" ;;
  esac
}

for method in gaussian consistency; do
  for sigma in 0.25 0.50; do
    name=$method-$sigma
    case $name in
      gaussian-*) recipe=(--recipe cifar10) ;;
      consistency-0.25) recipe=(--recipe cifar10-consistency --option weight=20) ;;
      consistency-0.50) recipe=(--recipe cifar10-consistency --option weight=10) ;;
    esac
    once "train-$name" art-rs train "${recipe[@]}" --sigma "$sigma" --precision bf16 --num-workers 8 --seed 0 \
      --cuda-graphs --out "$out/$name"
    once "certify-$name" art-rs certify --checkpoint "$out/$name" --data cifar10 --budget looks --radii "$radii" \
      --precision bf16 --seed 0 --out "$out/$name.jsonl"
  done
done
art-rs curve "$out"/*.jsonl --radii "$radii" --out "$out/curves"
