"""A randomised run against the real processes: see ``python -m tests.chaos.run --help``."""
