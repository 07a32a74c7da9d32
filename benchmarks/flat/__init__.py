"""The two sides of flat_line.py, how they are made and what their run says; no part of the package."""
