"""One module a paper: what it selects from a group, and the loss on what it selected."""
