"""Reports: made of scored answers, kept as files of a run directory, and compared."""
