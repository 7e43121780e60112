"""Sweep files, where their points run, and progress."""
