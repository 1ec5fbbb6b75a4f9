"""Puts images into a collage or a stripe, and turns scores into answers. The names of the stripe
encoders are here, so that settings and --help need no numpy.
"""

ENCODERS = ("sum", "concat")  # of a stripe's images into one picture, for a trained network
BERRUT = "berrut"  # likewise, for the single network itself
SUMMED = ("logits", "probabilities")  # what of the single network's answers a parity answer sums
MIN_K, MAX_K = 2, 256  # images of a stripe; 256 * 255 is the most that the sum's 16 bits hold
