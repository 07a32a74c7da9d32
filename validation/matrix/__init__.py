"""Many artifacts on many devices: a plan, its cells and what runs them; a cell itself is `validate` and `bench`."""
