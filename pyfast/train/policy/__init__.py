"""The model that is trained: loaded, sampled from, scored, and told apart from any other."""
