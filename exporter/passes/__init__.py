"""Graph rewrites that targets ask for, each a pure function."""
