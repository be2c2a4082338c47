"""Group files made of public data sets: candidates of which one is right, split and seeded."""
