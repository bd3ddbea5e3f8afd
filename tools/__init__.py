"""What maintainers run: the locks, the tiny base, the shipped task data, benchmarks. Not part of the installed package."""
