"""People label the pairs that a run asks about: in a terminal, in a browser, or elsewhere."""
