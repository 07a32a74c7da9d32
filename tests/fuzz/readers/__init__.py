"""One reader of outside bytes a file: `seeds(folder)` yields inputs, `read(data, folder)` reads one.

The folder is the list. `REFUSALS`, where a file has it, are what its reader's docstring names instead of an
RwkvExportError.
"""
