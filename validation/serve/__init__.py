"""A browser as a measured target: the page it opens, the server behind it, and the harness that steps what it loads."""
