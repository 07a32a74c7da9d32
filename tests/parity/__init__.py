"""Numerical agreement with implementations that are not this project's."""
