"""The parts of soak.py: one runtime for a long time, and what its windows say; neither is a benchmark by itself."""
