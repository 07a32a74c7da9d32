"""One file per family of targets; the folder is the list. A target file knows no model version."""
