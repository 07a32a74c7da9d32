"""`python -m rwkv_export`, the same program as `rwkv-export`."""

from rwkv_export.main import main

main()
