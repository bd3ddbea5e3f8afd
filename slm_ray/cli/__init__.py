"""What people call: every step as a command of `slm-ray` and as a job for `ray job submit`, from one table."""
