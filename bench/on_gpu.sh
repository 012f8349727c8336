#!/usr/bin/env bash
# Everything there is to measure and to check on an NVIDIA GPU, in a plain checkout: nothing is installed or downloaded.
#
#   bench/on_gpu.sh                      all sections, in the order below
#   bench/on_gpu.sh bench-fwd limits     some of them
#   BUDGET=240 bench/on_gpu.sh bench-bwd-matrix   what a short loan of a GPU has time for: the most telling rows come first;
#                                        bench/README.md says which sections to run then, and in which order
#   bench/on_gpu.sh tune tune-bwd        tiles of the tensor-core kernels against those of their tables: by name only
#   bench/on_gpu.sh --dry-run [...]      print the commands
#
# Each section writes into bench/results/<gpu>-<date>-<section>/ and ends within nine minutes, whatever happens in it. What
# runs out of time is interrupted, and killed ten seconds later: a check of a new kernel takes its marker back when it is
# interrupted, and two markers of killed processes would condemn a good kernel. A section that fails does not stop the
# next; the exit status tells. Environment:
#   PYTHON             the interpreter (default: python3)
#   OUT                where set, results go into the one file $OUT/on_gpu.tar.gz instead, rewritten after every section
#   FLASHCUPY_COMMIT   the commit, for a copy of the tree without its history
#   FLASHCUPY_PEERS    folder with the peers that were brought along; bench/README.md says how it is made
#   LIMIT              seconds that a section may take (default: 520)
#   BUDGET             seconds after which a benchmark begins no further row (default: 400)
#   MATCH              a regular expression without spaces: only rows of the benchmarks whose name holds it
#   QUICK=1            small sizes, to see that it runs
set -ufo pipefail # -f: commands are words, regular expressions among them
cd "$(dirname "$0")/.." || exit 2

all=(env compile test test-rest sanitize-memcheck sanitize-racecheck sanitize-synccheck)
all+=(limits bench-fwd bench-matrix bench-bwd-matrix bench-bwd bench-sparse bench-masks bench-options bench-small peers)
known=("${all[@]}" tune tune-bwd)
python=${PYTHON:-python3}
limit=${LIMIT:-520} # seconds of a section
cores=$(nproc)
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

sanitizer_probe() {
  echo "$(sanitizer) --tool memcheck --error-exitcode 9 $python -m bench.sanitize_case --probe"
}

# Ask once whether compute-sanitizer works here: it may be missing, or not be let at the device, and says that in ways that
# do not all show in its exit status.
sanitizer_says=
sanitizer_works() {
  local told
  if [ -z "$sanitizer_says" ]; then
    # shellcheck disable=SC2046 # the command holds no spaces but those between words
    told=$(timeout --signal=INT --kill-after=10 120 $(sanitizer_probe) 2>&1 </dev/null)
    case $told in
      *"ERROR SUMMARY: 0 errors"*) sanitizer_says=yes ;;
      *) sanitizer_says=$(grep -i -m 1 error <<<"$told" || tail -n 1 <<<"$told") ;;
    esac
    : "${sanitizer_says:=it said nothing}"
  fi
  [ "$sanitizer_says" = yes ]
}

# Where pytest-xdist is installed, tests run on all cores.
workers() {
  if "$python" -c 'import xdist' >/dev/null 2>&1; then echo " -n $cores"; fi
}

# Print the commands of a section, one a line; $1 is the section, $2 its folder.
commands() {
  local rows=" --budget ${BUDGET:-400}${MATCH:+ --match $MATCH}${QUICK:+ --quick}"
  local pytest="$python -m pytest -m gpu -p no:cacheprovider" first="tests/test_gpu.py tests/test_gpu_lifetimes.py"
  case $1 in
    env | limits) echo "$python -m bench.gpu $1 --output $2" ;;
    compile)
      echo "$python -m flashcupy compile --jobs $cores"
      echo "$python -m bench.compile_cases --jobs $cores"
      ;;
    test)
      echo "$pytest -v --junitxml=$2/junit.xml $first"
      echo "$python -m flashcupy check"
      ;;
    test-rest)
      echo "$pytest -v$(workers) --continue-on-collection-errors --junitxml=$2/junit.xml ${first//tests/--ignore=tests} tests"
      ;;
    sanitize-*)
      echo "$python -m bench.sanitize_case --jobs $cores" # compiles: under the tool that would take its time
      echo "$(sanitizer) --tool ${1#sanitize-} --error-exitcode 9 $python -m bench.sanitize_case"
      ;;
    peers | tune | tune-bwd) echo "$python -m bench.gpu $1 --output $2$rows" ;;
    bench-*) echo "$python -m bench.gpu ${1#bench-} --output $2$rows" ;;
  esac
}

# Run the commands of a section. Each may take its share of the time that is left, so that one that hangs leaves some to
# the others; one that fails does not stop the next.
run_commands() {
  local section=$1 folder=$2 end=$((SECONDS + limit)) status=0 list command i left code
  mapfile -t list < <(commands "$section" "$folder")
  for i in "${!list[@]}"; do
    command=${list[i]}
    left=$(((end - SECONDS) / (${#list[@]} - i)))
    if [ "$left" -le 0 ]; then
      echo "no time left for: $command"
      status=124
      continue
    fi
    echo "+ $command"
    # shellcheck disable=SC2086 # the commands hold no spaces but those between words
    timeout --signal=INT --kill-after=10 "$left" $command </dev/null
    code=$?
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
      echo "stopped after $left s: $command"
    elif [ "$code" -ne 0 ]; then
      echo "exit status $code: $command"
    fi
    [ "$code" -eq 0 ] || status=$code
  done
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

# compute-sanitizer that does not work is one failure, not one of each section that needs it.
sanitizer_told=
tell_sanitizer() {
  [ -z "$sanitizer_told" ] || return 0
  sanitizer_told=1
  failed+=(compute-sanitizer)
  mkdir -p "$1"
  echo "compute-sanitizer does not work here, so none of its sections runs: $sanitizer_says" | tee "$1/log.txt"
  keep_results
}

gpu=$(gpu_name)
failed=()
probed=
for section in "${sections[@]}"; do
  folder=$(folder_for "$section")
  if [ -n "$dry_run" ]; then
    if [[ $section == sanitize-* ]] && [ -z "$probed" ]; then
      probed=1
      sanitizer_probe
    fi
    commands "$section" "$folder"
    continue
  fi
  if [[ $section == sanitize-* ]] && ! sanitizer_works; then
    tell_sanitizer "$folder"
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
