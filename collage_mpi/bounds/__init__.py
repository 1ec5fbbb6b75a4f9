"""What share of a cheap stage's answers may differ from the reference network's: a threshold with a
bound, chosen on a random sample of the job and audited until its end. No MPI, no torch, no files.
"""
