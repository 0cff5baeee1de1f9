"""Angles: WCS as data, footprints, the output frame and pixel maps."""
