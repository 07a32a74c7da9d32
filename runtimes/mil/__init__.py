"""A numpy interpreter for saved Core ML programs; it reads the package alone and shares no code with any converter."""
