"""Faults planted one at a time in a copy of the tree, each of which some test must notice; run by hand."""
