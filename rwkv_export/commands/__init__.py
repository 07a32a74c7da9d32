"""One file a command; rwkv_export.main gives their order."""
