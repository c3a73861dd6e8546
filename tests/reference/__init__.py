"""A second set of readers, written from the FORMAT.md files alone: slow, plain Python, strict.

They share nothing with the library. Where they and the library differ, one of the two or the document is wrong.
`container.reconstruct` is the way in; each codec has a module with `parse_tables` and `decode_chunk`.
"""
