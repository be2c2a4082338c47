"""A folder a paper: recipe.py is what it selects and the loss on that, beside its equations."""
