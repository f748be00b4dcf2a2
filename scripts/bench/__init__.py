"""The parts of scripts/benchmark.py: what is timed, and how. Each measures ``title → rows``, see ``timing.Rows``."""
