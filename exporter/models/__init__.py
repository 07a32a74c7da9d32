"""One file per RWKV version (v4, v5, v6, v7, v7a) over shared primitives; a model file knows no target."""
