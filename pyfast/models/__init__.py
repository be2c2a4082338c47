"""What a causal language model is, said once for whoever scores, samples or sketches with one."""
