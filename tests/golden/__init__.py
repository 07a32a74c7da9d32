"""Traces of the bundled model, checked in so that an implementation cannot drift together with its oracle."""
