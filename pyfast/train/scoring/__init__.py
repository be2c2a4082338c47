"""What says how good a response is, and what places it among the others."""
