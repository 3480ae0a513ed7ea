"""Fit a model to a machine: what fits, with what context, how fast, before anything is downloaded or written."""
