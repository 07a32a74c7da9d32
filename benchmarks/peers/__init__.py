"""The engines that cpu_peers.py compares, one file an engine; no part of the package."""
