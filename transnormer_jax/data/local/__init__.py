"""TFDS builders of public datasets that lie unpacked in a directory, with the feature names of the public ones."""
