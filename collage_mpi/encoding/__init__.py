"""Encodes images into a collage, and decodes scores into answers."""
