"""Commands around the training scripts: quick start, published runs, tests, reports."""
