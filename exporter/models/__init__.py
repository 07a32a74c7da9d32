"""One file per RWKV version (v*.py) over shared primitives; a model file knows no target."""
