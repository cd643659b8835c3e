"""Pure values and rules of the worker."""
