"""Hydra's sweeper for grids whose points may be impossible, equal, or done already."""
