"""A module for each step of a GPU run, run as a process of its own."""
