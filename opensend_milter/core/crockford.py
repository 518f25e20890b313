"""Numbers in letters of which nobody takes one for another: Crockford's base 32."""

from __future__ import annotations

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def spelled(number: int, characters: int) -> str:
    """Spell a number, as far as so many characters hold it."""
    found = ""
    for _ in range(characters):
        number, digit = divmod(number, len(LETTERS))
        found = LETTERS[digit] + found
    return found


def number_of(text: str) -> int:
    """Return the number that was spelled so."""
    number = 0
    for letter in text:
        number = number * len(LETTERS) + LETTERS.index(letter)
    return number
