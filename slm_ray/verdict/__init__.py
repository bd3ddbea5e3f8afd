"""From two reports to a decision: pairing, bounds, the rule, partial replacement. Pure; no disk, clock, network or models."""
