"""Sessions in another process, of another Python or on another machine, that are asked over its stdin and stdout."""
