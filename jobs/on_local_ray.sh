#!/usr/bin/env bash
# Submit one job to the cluster in RAY_ADDRESS, or to a Ray head that lives as long as the job.
# usage: jobs/on_local_ray.sh JOB.py JOB.yaml [--set a.b=c ...]      environment: RUN (logs), SLOTS (training slots)
exec python -m slm_ray.submit "$@"
