"""A lint of saved Core ML programs: what is known to keep them off the Neural Engine. It runs and times nothing."""
