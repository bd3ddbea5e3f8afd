#!/usr/bin/env bash
# Submit one job to the cluster in RAY_ADDRESS, or to a Ray head that lives as long as the job.
# usage: jobs/on_local_ray.sh JOB.py JOB.yaml [--set a.b=c ...]      environment: RUN (logs), SLOTS (training slots)
set -uo pipefail

run=${RUN:-$PWD/runs/local}
slots=${SLOTS:-4}
head_pid=""
submission="slm-ray-$$-$(date +%s)"
mkdir -p "$run"

finish() {
  trap - EXIT
  trap '' INT TERM  # what follows is clean-up, which another Ctrl-C would leave half done
  [ -z "${status:-}" ] && echo "stopping..." >&2
  if [ -n "${submitted:-}" ] && [ -z "${ended:-}" ]; then
    ray job stop "$submission" >>"$run/ray.log" 2>&1
  fi
  [ -n "${logs:-}" ] && kill "$logs" 2>/dev/null
  if [ -n "$head_pid" ]; then
    kill -TERM "$head_pid" 2>/dev/null
    wait "$head_pid" 2>/dev/null
    # A head that is told to end leaves its address behind, and the next job on this machine would look for it there.
    note=${RAY_TMPDIR:-${TMPDIR:-/tmp}}/ray/ray_current_cluster
    if grep -q ":$gcs\$" "$note" 2>/dev/null; then rm -f "$note"; fi
  fi
  exit "${status:-130}"
}
trap finish INT TERM EXIT

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

settings=$(python -m slm_ray.ray_environment local) || exit 2
eval "$settings"
export RAY_JOB_STOP_WAIT_TIME_S=20 PYTHONUNBUFFERED=1
# Two memory arenas a process: a trainer frees and takes large blocks on many threads, and unused ones add up.
export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-2}
if [ -z "${RAY_ADDRESS:-}" ]; then
  # A head of our own, with a token of its own: its dashboard is on loopback, but Ray binds other ports to every address.
  gcs=$(free_port) dashboard=$(free_port) agent=$(free_port)
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
  RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
  echo "starting Ray on this machine ($slots training slots; log: $run/ray.log)"
  setsid ray start --head --block --node-ip-address=127.0.0.1 --port="$gcs" --dashboard-host=127.0.0.1 \
    --dashboard-port="$dashboard" --dashboard-agent-listen-port="$agent" --num-cpus="$slots" --num-gpus="${GPUS:-$(ls /dev/nvidia[0-9]* 2>/dev/null | wc -l)}" \
    --resources="{\"slot\": $slots}" --object-store-memory=300000000 >>"$run/ray.log" 2>&1 &
  head_pid=$!
  export RAY_ADDRESS="http://127.0.0.1:$dashboard"
  for _ in $(seq 120); do
    ray job list >/dev/null 2>&1 && break
    if ! kill -0 "$head_pid" 2>/dev/null; then
      echo "error: Ray did not start; see $run/ray.log" >&2
      status=2
      exit 2
    fi
    sleep 0.5
  done
fi

# A new head takes jobs a moment after it answers, so the submission alone is tried again.
for _ in $(seq 60); do
  submitted=yes
  if ray job submit --submission-id "$submission" --no-wait --log-style record --working-dir . -- python "$@" >>"$run/ray.log" 2>&1; then
    accepted=yes
    break
  fi
  tail -n 3 "$run/ray.log" | grep -q "No available agent" || break
  sleep 1
done
if [ -z "${accepted:-}" ]; then
  echo "error: Ray did not accept the job; see $run/ray.log" >&2
  ended=yes status=2
  exit 2
fi
# In the background: bash runs a trap only once its foreground command has ended, but `wait` ends at a signal.
ray job logs --follow --log-style record "$submission" 2>>"$run/ray.log" |
  grep --line-buffered -vE '[[:space:]](INFO|SUCC) (cli|job_manager)\.py:|^Running entrypoint for job' &
logs=$!
wait "$logs"
ended=yes
# Not `| grep -q`: it leaves at the first match, and with pipefail the broken pipe behind it is a failure.
answer=$(ray job status --log-style record "$submission" 2>&1)
echo "$answer" >>"$run/ray.log"
case "${answer,,}" in *succeeded*) status=0 ;; *) status=1 ;; esac
