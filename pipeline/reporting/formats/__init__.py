"""The reports that the cards read, as typed records (docs/stage-files.md describes them).

Only the keys that a card shows are listed; others are ignored. A key that is missing or of another type is a StageInputError that
names the file and the dotted key, so that a card is never made from half a record.
"""
