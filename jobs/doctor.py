"""`slm-ray doctor` as a script for `ray job submit`; the settings beside it are those of the repository's demo."""

from slm_ray.cli.commands import run_job

if __name__ == "__main__":
    run_job(__file__)
