"""From a verdict to traffic: routes that clients ask for, what answers them, and how that is changed and taken back."""
