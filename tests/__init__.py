"""Tests, and the helpers they share: random models, and the `rwkv` package behind our names."""
