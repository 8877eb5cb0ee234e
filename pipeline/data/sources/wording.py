"""What other libraries say of a problem, made fit to stand in one of our sentences."""


def in_one_line(error: BaseException, at_most: int = 200) -> str:
    """The error's text in one line of printable characters: it can quote the bytes of the file, and escape sequences act on a terminal."""
    words = " ".join(str(error).split())[:at_most]
    return "".join(character if character.isprintable() else "\ufffd" for character in words).rstrip(".?")
