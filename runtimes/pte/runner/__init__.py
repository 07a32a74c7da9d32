"""ExecuTorch programs stepped by C++ of our own: a command for phones and boards, a library for Python."""
