"""The state of every node of a Ray cluster in one table, and what is wrong with it and how to mend it."""

from slm_ray.doctor.run import doctor
from slm_ray.doctor.table import plain, summary

__all__ = ["doctor", "plain", "summary"]
