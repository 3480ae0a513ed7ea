"""Pictures and sound from files, as models read them; each library is imported when a file is read.

Imports: nothing.
"""
