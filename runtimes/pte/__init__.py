"""ExecuTorch programs: reading them, running them through the wheel or through C++ of our own; knows no manifest."""
