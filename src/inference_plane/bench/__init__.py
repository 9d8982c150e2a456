"""`scripts/bench`: what the parts of the plane cost, side by side with the least that could do their work."""
