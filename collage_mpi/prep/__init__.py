"""Turns users' pictures and arrays into shards: `plan` assigns pictures to shards, `work` makes
many shards at once, and `arrays` reads rows of other programs' files and of shards.
"""
