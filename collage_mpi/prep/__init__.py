"""Makes shards from users' pictures and arrays: `plan` assigns pictures to shards, `work` writes
many shards in parallel, and `arrays` reads images from other programs' files and from shards.
"""
