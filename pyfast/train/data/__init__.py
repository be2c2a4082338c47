"""What is learnt from: prompts, groups of responses, and the files that hold them."""
