"""Speed beside its baselines and the floor, in one run, after a check that what is timed is right."""
