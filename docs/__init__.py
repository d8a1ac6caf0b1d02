"""What builds the documentation: pages from elsewhere (`site`), outputs of commands (`transcripts`), the `picture`.

`forked` runs commands, for the transcripts and for the tests.
"""
