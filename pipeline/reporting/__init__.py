"""The prompt card: one self-contained HTML page about one tuned prompt.

`formats` types what the card reads, `figures` places it on charts, `examples` chooses rows to show, `card` puts the page together.
"""
