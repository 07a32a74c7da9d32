"""The page as browsers load it: no Python is in here."""
