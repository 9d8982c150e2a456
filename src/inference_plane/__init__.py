"""Tools of the inference plane: everything behind `scripts/`, and the processes that run in pods."""
