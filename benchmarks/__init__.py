"""Measurements: each module has one command that writes its results with a description of the machine."""
