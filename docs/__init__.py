"""What builds the documentation: pages from elsewhere (`site`), outputs of commands (`transcripts`), the `picture`."""
