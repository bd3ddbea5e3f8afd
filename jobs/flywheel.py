"""`slm-ray flywheel` as a script for `ray job submit`, cron and RayCronJob; see docs/how-to/traffic.md."""

from slm_ray.cli.commands import run_job

if __name__ == "__main__":
    run_job(__file__)
