#!/usr/bin/env bash
# A better drafter for the embedded target: text in pieces, states, training from the best drafter so far, evaluation; in rounds.
#
#   examples/train_embedded.sh [--work DIR] [--rounds N] [--pieces N] [--size N] [--passes N] [--core N] \
#       [--mean N] [--nice N] [--seed N] [--dtype DTYPE] [--text FILE]... [--eval FILE]... [--train KEY=VALUE]...
#
# A round writes so many pieces of SIZE prompts with two answers each, trains on all text so far, and answers 100 held-out
# prompts; so does the mean of the last N checkpoints, if N is above 0. Each --eval FILE is answered by the best drafter.
# Another --seed (1000) writes other text. --dtype float32 is faster on processors without bfloat16 (bfloat16).
# Kill it whenever you like and start it again with the same options: every step goes on where it was. It runs on one core
# at the lowest priority (--nice 19), as a group of its own: `kill -STOP -- -$(cat DIR/pgid)` pauses it, `-CONT` lets it go on.
# What it makes is in DIR: text/ (with the answers left out beside it), cache/, round-N/, and best/, the best drafter so far.
set -euo pipefail

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; }

WORK="${XDG_CACHE_HOME:-$HOME/.cache}/dspark_hf/train_embedded"
ROUNDS=8 PIECES=2 SIZE=300 BATCH=96 PASSES=2 MEAN=3 NICE=19 CORE=0 SEED=1000 TARGET=embedded DRAFTER=embedded DTYPE=bfloat16
PYTHON="${PYTHON:-python}"
TEXTS=() EVALS=() TRAIN=()

main() {
  arguments "$@"
  cd "$(dirname "$0")/.."
  mkdir -p "$WORK"/{text,eval}
  exec 9>"$WORK/lock"
  flock -w 30 9 || { echo "Another run works in $WORK." >&2; exit 1; }
  echo $$ >"$WORK/pgid"
  renice -n "$NICE" $$ >/dev/null
  # Where the kernel shares time among sessions first, it is the session's priority that counts beside other ones.
  [ ! -w /proc/$$/autogroup ] || echo "$NICE" >/proc/$$/autogroup
  taskset -cp "$CORE" $$ >/dev/null
  export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
  once first-drafter cp -rLT "$(resolve "$DRAFTER")" "$WORK/first"
  [ -e "$WORK/best" ] || ln -sfn first "$WORK/best"
  write_held_out
  measure first "$WORK/first"
  for ((round = 1; round <= ROUNDS; round++)); do
    for ((piece = (round - 1) * PIECES + 1; piece <= round * PIECES; piece++)); do write_piece "$piece"; done
    train_round "$round"
    compare_round "$round"
  done
  say "done; the best drafter is $(readlink "$WORK/best")"
}

arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --work) WORK="$2" ;; --rounds) ROUNDS="$2" ;; --pieces) PIECES="$2" ;; --size) SIZE="$2" ;; --core) CORE="$2" ;;
      --text) TEXTS+=("$2") ;; --eval) EVALS+=("$2") ;; --train) TRAIN+=("$2") ;;
      --target) TARGET="$2" ;; --drafter) DRAFTER="$2" ;; --batch) BATCH="$2" ;;
      --passes) PASSES="$2" ;; --mean) MEAN="$2" ;; --nice) NICE="$2" ;; --seed) SEED="$2" ;; --dtype) DTYPE="$2" ;;
      *) usage >&2; exit 2 ;;
    esac
    shift 2
  done
  # As they are meant where the script was started.
  WORK=$(realpath -m -- "$WORK")
  for ((number = 0; number < ${#TEXTS[@]}; number++)); do TEXTS[number]=$(realpath -m -- "${TEXTS[number]}"); done
  for ((number = 0; number < ${#EVALS[@]}; number++)); do EVALS[number]=$(realpath -m -- "${EVALS[number]}"); done
  [ ! -d "$TARGET" ] || TARGET=$(realpath -- "$TARGET")
  [ ! -d "$DRAFTER" ] || DRAFTER=$(realpath -- "$DRAFTER")
}

say() { echo "$(date -u +%H:%M:%S) $*" | tee -a "$WORK/log"; }
dspark() { "$PYTHON" -m dspark_hf "$@"; }
resolve() { "$PYTHON" -c 'import sys; from dspark_hf.hub.embedded import resolve_drafter as r; print(r(sys.argv[1]))' "$1"; }

# once NAME COMMAND...: a step that is skipped once it has ended well.
once() {
  local mark="$WORK/.done-$1" start=$SECONDS
  shift
  [ -e "$mark" ] && return
  "$@"
  touch "$mark"
  say "$(basename "$mark" | cut -c7-) took $((SECONDS - start)) s"
}

regenerate() { dspark regenerate --target "$TARGET" --dtype "$DTYPE" --batch-size "$BATCH" --max-new-tokens 160 --resume "$@"; }

write_held_out() {
  local seed=900
  for kind in openings openings_tasks whole; do
    seed=$((seed + 1))
    once "held-out-$kind" regenerate --batch-size 12 --synthesize 34 $(kind_options $kind) --seed $seed --out "$WORK/eval/held_out_$kind.jsonl"
  done
  cat "$WORK"/eval/held_out_{openings,openings_tasks,whole}.jsonl >"$WORK/eval/held_out"
  mv "$WORK/eval/held_out" "$WORK/eval/held_out.jsonl"
}

kind_options() {
  [ "$1" = whole ] && echo "--max-prompt-tokens 40" || echo "--openings examples/$1.txt --max-prompt-tokens 56"
}

# Prompts of half of the pieces are made by examples/task_prompts/write.py. Each has a greedy answer and a sampled one.
write_piece() {
  local kinds=(openings_tasks openings problems chats functions whole) number
  number=$(printf %04d "$1")
  local kind="${kinds[$((($1 - 1) % 6))]}" greedy="$WORK/text/$number-greedy.jsonl" sampled="$WORK/text/$number-sampled.jsonl"
  local made="$WORK/text/$number-prompts"
  case "$kind" in
    problems | functions | chats)
      once "piece-$number-prompts" "$PYTHON" examples/task_prompts/write.py "$kind" --number "$SIZE" --seed $((SEED + $1)) --out "$made"
      once "piece-$number-greedy" answer "$1" "$greedy" --prompts "$made" ;;
    *) once "piece-$number-greedy" answer "$1" "$greedy" --synthesize "$SIZE" $(kind_options "$kind") ;;
  esac
  once "piece-$number-sampled" answer "$1" "$sampled" --prompts "$greedy" --temperature 0.8
}

# answer PIECE OUT OPTION...
answer() { regenerate --out "$2" --seed $((SEED + $1)) --without-loops --exclude "$WORK/eval/held_out.jsonl" "${@:3}"; }

# Some passes over all text so far, from the best drafter so far.
train_round() {
  local name="round-$1" data=() rows steps
  for file in "${TEXTS[@]}"; do data+=("$file"); done
  for ((piece = 1; piece <= $1 * PIECES; piece++)); do
    data+=("$WORK/text/$(printf %04d $piece)-greedy.jsonl" "$WORK/text/$(printf %04d $piece)-sampled.jsonl")
  done
  once "$name-states" dspark cache --target "$TARGET" "${data[@]/#/--data=}" --drafter "$WORK/first" --dtype int4 --log-norm \
    --target-dtype "$DTYPE" --max-length 320 --out "$WORK/cache"
  rows=$(cat "${data[@]}" | wc -l)
  steps=$((rows * PASSES / 8))
  once "$name-training" train "$name" "$steps" "${data[@]}"
  [ "$MEAN" = 0 ] || once "$name-mean" "$PYTHON" examples/average_drafters.py --out "$WORK/$name-mean" \
    $(ls -d "$WORK/$name"/checkpoint-* | sort -V | tail -n "$MEAN")
}

train() {
  local name="$1" steps="$2"
  shift 2
  # What it starts from must not change while it is resumed.
  [ -e "$WORK/$name.from" ] || readlink "$WORK/best" >"$WORK/$name.from"
  dspark train target="$TARGET" target_dtype="$DTYPE" start_from="$WORK/$(cat "$WORK/$name.from")" "data=[$(IFS=,; echo "$*")]" cache="$WORK/cache" \
    cache_dtype=int4 held_out=1 max_length=320 num_eval_prompts=0 output_dir="$WORK/$name" max_steps="$steps" \
    per_device_train_batch_size=8 num_anchors=40 learning_rate=3e-4 muon_learning_rate=8e-4 warmup_steps=20 bf16=$([ "$DTYPE" = bfloat16 ] && echo true || echo false) \
    compile_loss=true seed=5 logging_steps=25 save_strategy=steps save_steps=$((steps / 12 + 1)) save_total_limit=4 \
    report_to=none "${TRAIN[@]}" --resume
}

# measure NAME DRAFTER: greedy tau on the held-out prompts, by decoding.
measure() { bench held_out "$1" "$2" "$WORK/eval/held_out.jsonl" 0; }

bench() {
  once "tau-$1-$2-T$5" dspark evaluate --target "$TARGET" --dtype "$DTYPE" --drafter "$3" --task "$4" --limit 100 --max-new-tokens 128 \
    --batch-size 10 --no-plain --speculation alone --temperature "$5" --out "$WORK/eval/$1-$2-T$5" --resume
}

tau() { "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["rows"][0]["tau"])' "$WORK/eval/held_out-$1-T0/summary.json"; }

compare_round() {
  local best best_tau name
  for name in "round-$1" "round-$1-mean"; do
    [ -e "$WORK/$name" ] || continue
    measure "$name" "$WORK/$name"
    best=$(readlink "$WORK/best")
    [ "$best" = "$name" ] && continue
    say "$name: held-out greedy tau $(tau "$name"), the best so far $(tau "$best") ($best)"
    if "$PYTHON" -c "exit(not $(tau "$name") > $(tau "$best"))"; then ln -sfn "$name" "$WORK/best"; fi
  done
  best=$(readlink "$WORK/best")
  for file in "${EVALS[@]}"; do
    for temperature in 0 1; do bench "$(basename "$file" .jsonl)" "$best" "$WORK/$best" "$file" $temperature; done
  done
}

# A group of its own can be paused whole. Read to its end before it runs, so that it can be edited meanwhile.
if [ "$(ps -o pgid= -p $$ | tr -d ' ')" != $$ ]; then exec setsid --wait "$0" "$@"; fi
main "$@"; exit
