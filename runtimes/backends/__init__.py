"""One file per runtime; the folder is the list."""
