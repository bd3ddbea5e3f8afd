"""Unit tests compute on one thread each: two torch processes of two threads on two cores spend most of their time waiting
for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any test loads torch
