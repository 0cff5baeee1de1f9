"""Doors: files in, files out."""
