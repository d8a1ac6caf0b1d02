"""What is said of a process that failed."""


def last_words(errors: str, status: int | None) -> str:
    """The last line of what it wrote to stderr; one that died without a word has its status."""
    return ([line.strip() for line in errors.splitlines() if line.strip()] or [f"status {status}"])[-1]
