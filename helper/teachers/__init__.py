"""Frozen teachers, an idea a file: what a person says of one, files, loading, images, classes, cache, what is asked."""
