"""From scores to a decision: reports, paired comparison, bounds, the rule. Pure; no disk, clock, network or models."""
