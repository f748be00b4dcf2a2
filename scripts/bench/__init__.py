"""The parts of scripts/benchmark.py: what is timed, how, and what it has to show."""
