"""YAML files that people write: read without guesses, checked against a shape, and every problem named with its line."""
