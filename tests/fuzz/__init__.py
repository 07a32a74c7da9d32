"""Fuzzing of every reader of bytes that come from elsewhere; README.md says how."""
