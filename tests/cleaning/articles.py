"""Made-up articles that the rules of cleaning let pass."""

_WORDS = """
    the river of a town was old and people have walked with their children to see that bridge which stands over water
    in summer when light falls through green trees while boats carry grain from farms near hills where sheep eat grass
    beside stone houses built by hands long ago for families who remember every winter storm
"""
VOCABULARY = _WORDS.split()


def article(chance):
    """Ten sentences without sense, of 150 words."""
    sentences = [" ".join(chance.sample(VOCABULARY, 15)).capitalize() + "." for _ in range(10)]
    return "\n".join(" ".join(sentences[i : i + 2]) for i in range(0, 10, 2))
