"""Encodes images into a collage or a stripe, and decodes scores into answers. The names of the
stripe encoders are here, so that settings and --help do not import numpy.
"""

ENCODERS = ("sum", "concat")  # encoders of a stripe for a trained parity network
BERRUT = "berrut"  # encoder of a stripe that the single network answers
SUMMED = ("logits", "probabilities")  # outputs of the single network that a parity network may sum
MIN_K, MAX_K = 2, 256  # images of a stripe; a sum of 256 pixels of 255 fits in 16 bits
