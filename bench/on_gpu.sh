#!/usr/bin/env bash
# Everything there is to measure and to check on an NVIDIA GPU, in a plain checkout: nothing is installed or downloaded.
#
#   bench/on_gpu.sh                      all sections, in the order below
#   bench/on_gpu.sh bench-fwd limits     some of them
#   BUDGET=240 bench/on_gpu.sh bench-bwd-matrix   what a short loan of a GPU has time for: the most telling rows come first
#   bench/on_gpu.sh tune                 tiles of the tensor-core forward against those of its table: by name only
#   bench/on_gpu.sh --dry-run [...]      print the commands
#
# Each section writes into bench/results/<gpu>-<date>-<section>/ and ends within nine minutes, whatever happens in it. A
# section that fails does not stop the next; the exit status tells. Environment:
#   PYTHON             the interpreter (default: python3)
#   OUT                where set, results go into the one file $OUT/on_gpu.tar.gz instead, rewritten after every section
#   FLASHCUPY_COMMIT   the commit, for a copy of the tree without its history
#   FLASHCUPY_PEERS    folder with the peers that were brought along; bench/README.md says how it is made
#   BUDGET             seconds after which a benchmark begins no further row (default: 400)
#   MATCH              a regular expression without spaces: only rows of the benchmarks whose name holds it
#   QUICK=1            small sizes, to see that it runs
set -ufo pipefail # -f: commands are words, regular expressions among them
cd "$(dirname "$0")/.." || exit 2

all=(env test sanitize limits bench-fwd bench-matrix bench-bwd-matrix bench-bwd bench-sparse bench-masks bench-options bench-small peers)
known=("${all[@]}" tune)
python=${PYTHON:-python3}
limit=520 # seconds of a section
dry_run=
sections=()
for argument in "$@"; do
  case " ${known[*]} " in
    *" $argument "*) sections+=("$argument") ;;
    *)
      if [ "$argument" != --dry-run ]; then
        echo "on_gpu.sh: '$argument' is no section, expected --dry-run or some of: ${known[*]}" >&2
        exit 2
      fi
      dry_run=1
      ;;
  esac
done
[ ${#sections[@]} -gt 0 ] || sections=("${all[@]}")

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
results=bench/results
if [ -n "${OUT:-}" ] && [ -z "$dry_run" ]; then
  results=$(mktemp -d)
  trap 'rm -rf "$results"' EXIT
fi

gpu_name() {
  local name
  name=$(nvidia-smi -i 0 --query-gpu=name --format=csv,noheader 2>/dev/null) || name=gpu
  printf '%s' "${name:-gpu}" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-'
}

# A folder of its own for each run of a section.
folder_for() {
  local stem folder n=2
  stem=$results/$gpu-$(date -u +%F)-$1
  folder=$stem
  while [ -e "$folder" ]; do
    folder=$stem-$n
    n=$((n + 1))
  done
  printf '%s' "$folder"
}

sanitizer() {
  command -v compute-sanitizer || printf '%s' /usr/local/cuda/bin/compute-sanitizer
}

# Print the commands of a section, one a line; $1 is the section, $2 its folder.
commands() {
  local rows=" --budget ${BUDGET:-400}${MATCH:+ --match $MATCH}${QUICK:+ --quick}"
  case $1 in
    env | limits) echo "$python -m bench.gpu $1 --output $2" ;;
    test)
      echo "$python -m pytest -m gpu -p no:cacheprovider --junitxml=$2/junit.xml tests"
      echo "$python -m flashcupy check"
      ;;
    sanitize)
      local tool
      for tool in memcheck racecheck synccheck; do
        echo "$(sanitizer) --tool $tool --error-exitcode 9 $python -m bench.sanitize_case"
      done
      ;;
    peers | tune) echo "$python -m bench.gpu $1 --output $2$rows" ;;
    bench-*) echo "$python -m bench.gpu ${1#bench-} --output $2$rows" ;;
  esac
}

# Run the commands of a section: they share its time, and one that fails does not stop the next.
run_commands() {
  local section=$1 folder=$2 end=$((SECONDS + limit)) status=0 command left code
  while IFS= read -r command; do
    left=$((end - SECONDS))
    if [ "$left" -le 0 ]; then
      echo "no time left for: $command"
      status=124
      continue
    fi
    echo "+ $command"
    # shellcheck disable=SC2086 # the commands hold no spaces but those between words
    timeout --kill-after=10 "$left" $command </dev/null
    code=$?
    if [ "$code" -ne 0 ]; then
      echo "exit status $code: $command"
      status=$code
    fi
  done < <(commands "$section" "$folder")
  return "$status"
}

run_section() {
  mkdir -p "$2"
  run_commands "$1" "$2" 2>&1 | tee "$2/log.txt"
  return "${PIPESTATUS[0]}"
}

keep_results() {
  [ -n "${OUT:-}" ] || return 0
  tar -czf "$OUT/.on_gpu.tar.gz" -C "$results" . && mv "$OUT/.on_gpu.tar.gz" "$OUT/on_gpu.tar.gz"
}

gpu=$(gpu_name)
failed=()
for section in "${sections[@]}"; do
  folder=$(folder_for "$section")
  if [ -n "$dry_run" ]; then
    commands "$section" "$folder"
    continue
  fi
  printf '\n=== %s (%d s so far)\n' "$section" "$SECONDS"
  run_section "$section" "$folder" || failed+=("$section")
  keep_results
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
